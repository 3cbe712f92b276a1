// The forward of expert_linear is a routed product, and its gradients for x and the gate are another. Each is cut into
// passes over columns, blocks of rows and tasks; blocks go by register tiles (gemm/routed_product.h), or where rows are
// mostly zeros by their non-zero values (gemm/sparse_product.h).
#include "core/expert_linear.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "core/counting_sort.h"
#include "core/cpu/gemm/sparse_product.h"

namespace gmoe::core::GMOE_ISA {
namespace {

constexpr std::int64_t kMaxPacked = 16 << 20;  // elements of packed weights at a time; more go in passes

// ---- a routed product: passes over columns, blocks of rows, tasks

// Panels follow one another; with `together` > 1, the panels of a group are side by side, row by row.
template <typename T, typename A>
void pack_pass(const RoutedProduct<T>& p, const std::vector<std::int64_t>& packed_experts, std::int64_t first_column,
               std::int64_t last_column, std::int64_t together, A* packed) {
  const std::int64_t panels = divide_up(last_column - first_column, kTileColumns<A>);
  const std::int64_t panel_size = p.depth() * kTileColumns<A>;
  const auto num_packed = static_cast<std::int64_t>(packed_experts.size());
  parallel_for(num_packed * panels, grain_rows(panel_size), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t panel = i % panels, in_group = panel % together, group = panel - in_group;
      A* to = packed + (i - in_group) * panel_size + in_group * kTileColumns<A>;
      pack_panel(p.weight, packed_experts[i / panels], first_column + panel * kTileColumns<A>,
                 std::min(together, panels - group) * kTileColumns<A>, to);
    }
  });
}

// Rows of a block. How blocks and columns are cut depends on sizes and threads, and changes no bit of the result.
template <typename T>
std::int64_t block_rows(const RoutedProduct<T>& p, bool sparse) {
  std::int64_t rows;
  if (sparse) {
    rows = std::clamp(kSparseEntries / (p.depth() * lines_per_row(p)), kMinRowsPerTask, kSparseBlockRows);
  } else {
    const std::int64_t wanted = kRowsPerExpert * p.num_experts * p.out_rows / std::max<std::int64_t>(1, p.num_slots());
    rows = std::clamp(wanted, kMinBlockRows, kMaxBlockRows);
  }
  const std::int64_t tasks = num_threads() == 1 ? 1 : 2 * num_threads();
  return std::min(rows, std::max(kMinRowsPerTask, divide_up(p.out_rows, tasks)));
}

// With few blocks, the columns are cut too: only as far as there are threads, because it repeats the gathering. A dot
// product sums over columns, so it is never cut.
template <typename T>
std::int64_t column_cuts(const RoutedProduct<T>& p, std::int64_t num_blocks, std::int64_t panels) {
  if (p.against != nullptr || num_threads() == 1 || num_blocks == 0) return 1;
  return std::clamp<std::int64_t>(divide_up(num_threads(), num_blocks), 1, panels);
}

// run(block, buffers) on every block of `rows` rows, with buffers = make() for each task.
template <typename T, typename A, typename Make, typename Run>
void for_each_block(const RoutedProduct<T>& p, const Pass<A>& pass, std::int64_t rows, std::int64_t together,
                    const Make& make, const Run& run) {
  const std::int64_t width = pass.last_column - pass.first_column;
  const std::int64_t panels = divide_up(width, kTileColumns<A>);
  const std::int64_t num_blocks = divide_up(p.out_rows, rows);
  const std::int64_t cuts = column_cuts(p, num_blocks, divide_up(panels, together));
  const std::int64_t cut = round_up(divide_up(panels, cuts), together) * kTileColumns<A>;
  const std::int64_t tasks = num_blocks * cuts;
  const std::int64_t work = p.num_slots() * p.depth() * width / 16 / std::max<std::int64_t>(1, tasks);
  parallel_for(tasks, grain_rows(work), [&](std::int64_t begin, std::int64_t end) {
    auto buffers = make();
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t row = task / cuts * rows, column = pass.first_column + task % cuts * cut;
      if (column >= pass.last_column) continue;
      run(Block{row, std::min(p.out_rows, row + rows), column, std::min(pass.last_column, column + cut)}, buffers);
    }
  });
}

// A density > 0 means that the input rows are mostly zeros.
template <typename T, typename A>
void run_pass(const RoutedProduct<T>& p, const Pass<A>& pass, bool any_packed, double density) {
  const std::int64_t rows = block_rows(p, density > 0);
  if (density > 0) {
    const std::vector<A> kept = kept_features(p);
    const auto make = [&] { return SparseBuffers<T>(p, rows, density, kept); };
    for_each_block(p, pass, rows, kSegmentPanels, make,
                   [&](const Block& block, auto& buffers) { run_sparse_block(p, pass, block, buffers); });
    return;
  }
  const auto make = [&] { return BlockBuffers<T>(p, any_packed, rows, pass.last_column - pass.first_column); };
  for_each_block(p, pass, rows, 1, make,
                 [&](const Block& block, auto& buffers) { run_block(p, pass, block, buffers); });
}

template <typename T, typename A = Accumulator<T>>
std::vector<A> padded_bias(const RoutedProduct<T>& p, std::int64_t stride) {
  if (p.bias == nullptr) return {};
  std::vector<A> bias(static_cast<std::size_t>(p.num_experts * stride), A{0});
  for (std::int64_t e = 0; e < p.num_experts; ++e) {
    for (std::int64_t c = 0; c < p.columns(); ++c) bias[e * stride + c] = widen(p.bias[e * p.columns() + c]);
  }
  return bias;
}

template <typename T>
void run_routed_product(const RoutedProduct<T>& p) {
  using A = Accumulator<T>;
  const double density = sparse_density(p);
  std::vector<std::int64_t> packed_experts, packed_at(static_cast<std::size_t>(p.num_experts), 0);
  for (std::int64_t e = 0; e < p.num_experts; ++e) {
    if (p.is_packed(e) || (density > 0 && p.offsets[e + 1] > p.offsets[e])) packed_experts.push_back(e);
  }
  const auto num_packed = static_cast<std::int64_t>(packed_experts.size());
  // A tile reads whole vectors of bias; without tiles the array can be used as it is.
  const bool as_is = num_packed == 0 && std::is_same_v<T, A>;
  const std::int64_t bias_stride = as_is ? p.columns() : round_up(p.columns(), kTileColumns<A>);
  const std::vector<A> padded = as_is ? std::vector<A>{} : padded_bias(p, bias_stride);
  const A* bias = p.bias == nullptr ? nullptr : as_is ? reinterpret_cast<const A*>(p.bias) : padded.data();
  const std::int64_t panels_at_once = kMaxPacked / kTileColumns<A> / std::max<std::int64_t>(1, num_packed * p.depth());
  const std::int64_t pass_columns =
      std::clamp(panels_at_once * kTileColumns<A>, kTileColumns<A>, std::max(bias_stride, kTileColumns<A>));
  const std::int64_t together = density > 0 ? kSegmentPanels : 1;
  Workspace<A> packed(num_packed * p.depth() * pass_columns);
  for (std::int64_t first = 0; first < p.columns(); first += pass_columns) {
    const std::int64_t last = std::min(p.columns(), first + pass_columns);
    const std::int64_t panels = divide_up(last - first, kTileColumns<A>);
    for (std::int64_t i = 0; i < num_packed; ++i) {
      packed_at[packed_experts[i]] = i * panels * p.depth() * kTileColumns<A>;
    }
    pack_pass(p, packed_experts, first, last, together, packed.data());
    const Pass<A> pass{.first_column = first,
                       .last_column = last,
                       .packed = packed.data(),
                       .bias = bias,
                       .bias_stride = bias_stride,
                       .packed_at = packed_at.data()};
    run_pass(p, pass, num_packed > 0, density);
  }
}

// ---- the operator as routed products

// The row of x that a slot reads, and the row of y that it adds to.
template <typename T>
RowOf source_row(const ExpertLinear<T>& a) {
  return {a.source, a.plan.k};
}
template <typename T>
RowOf result_row(const ExpertLinear<T>& a, bool combined) {
  return {nullptr, combined ? a.plan.k : 1};
}

// The plan's slots, within each expert ascending in the source row, then in the slot: the order that grad_x owns rows
// by.
template <typename T>
std::vector<std::int64_t> order_by_source(const ExpertLinear<T>& a) {
  const std::int64_t num_slots = a.plan.num_slots();
  std::vector<std::int64_t> offsets(static_cast<std::size_t>(a.num_sources + 1));
  std::vector<std::int64_t> by_source(static_cast<std::size_t>(num_slots));
  counting_sort(a.source, num_slots, a.num_sources, offsets.data(), by_source.data());

  std::vector<std::int64_t> expert(static_cast<std::size_t>(num_slots));
  for (std::int64_t e = 0; e < a.plan.num_experts; ++e) {
    for (std::int64_t i = a.plan.offsets[e]; i < a.plan.offsets[e + 1]; ++i) expert[a.plan.order[i]] = e;
  }
  std::vector<std::int64_t> place(a.plan.offsets, a.plan.offsets + a.plan.num_experts);
  std::vector<std::int64_t> order(static_cast<std::size_t>(num_slots));
  for (const std::int64_t s : by_source) order[place[expert[s]]++] = s;
  return order;
}

// The gradient of the gates where x has no columns: b_e . dy_i alone, as there is no product to compute it with.
template <typename T>
void add_bias_dots(const ExpertLinear<T>& a, const T* grad_y, Accumulator<T>* value) {
  for (std::int64_t e = 0; e < a.plan.num_experts; ++e) {
    const T* bias = a.bias + e * a.out_dim;
    for (std::int64_t i = a.plan.offsets[e]; i < a.plan.offsets[e + 1]; ++i) {
      const std::int64_t slot = a.plan.order[i];
      const T* grad = grad_y + slot / a.plan.k * a.out_dim;
      for (std::int64_t f = 0; f < a.out_dim; ++f) value[slot] += widen(bias[f]) * widen(grad[f]);
    }
  }
}

}  // namespace

template <typename T>
void expert_linear(const ExpertLinear<T>& a, T* y) {
  run_routed_product(RoutedProduct<T>{.in = a.x,
                                      .in_row = source_row(a),
                                      .out_row = result_row(a, a.gate != nullptr),
                                      .weight = {a.weight, WeightLayout::columns_by_depth, a.in_dim, a.out_dim},
                                      .bias = a.bias,
                                      .gate = a.gate,
                                      .offsets = a.plan.offsets,
                                      .order = a.plan.order,
                                      .num_experts = a.plan.num_experts,
                                      .out_rows = a.gate != nullptr ? a.plan.num_rows : a.plan.num_slots(),
                                      .out = y});
}

// dx_s += gate_ir W_e^T dy_i: the same product with rows in and out exchanged. The gradient of the gates,
// dy_i . (W_e x_s + b_e) = x_s . (W_e^T dy_i) + b_e . dy_i, needs the same W_e^T dy_i, so one pass gives both.
template <typename T>
void expert_linear_grad_x_gate(const ExpertLinear<T>& a, const T* grad_y, T* grad_x, T* grad_gate) {
  using A = Accumulator<T>;
  const std::vector<std::int64_t> order = a.source != nullptr ? order_by_source(a) : std::vector<std::int64_t>{};
  std::vector<A> value(grad_gate != nullptr ? static_cast<std::size_t>(a.plan.num_slots()) : 0, A{0});
  const bool combined = a.gate != nullptr || grad_gate != nullptr;
  run_routed_product(RoutedProduct<T>{.in = grad_y,
                                      .in_row = result_row(a, combined),
                                      .out_row = source_row(a),
                                      .weight = {a.weight, WeightLayout::depth_by_columns, a.out_dim, a.in_dim},
                                      .gate = a.gate,
                                      .offsets = a.plan.offsets,
                                      .order = a.source != nullptr ? order.data() : a.plan.order,
                                      .num_experts = a.plan.num_experts,
                                      .out_rows = a.num_sources,
                                      .out = grad_x,
                                      .against = grad_gate != nullptr ? a.x : nullptr,
                                      .in_against = grad_gate != nullptr ? a.bias : nullptr,
                                      .slot_value = value.data()});
  if (a.in_dim == 0 && grad_gate != nullptr && a.bias != nullptr) add_bias_dots(a, grad_y, value.data());
  for (std::size_t s = 0; s < value.size(); ++s) grad_gate[s] = narrow<T>(value[s]);
}

template void expert_linear(const ExpertLinear<float>&, float*);
template void expert_linear(const ExpertLinear<double>&, double*);
template void expert_linear(const ExpertLinear<bfloat16>&, bfloat16*);
template void expert_linear_grad_x_gate(const ExpertLinear<float>&, const float*, float*, float*);
template void expert_linear_grad_x_gate(const ExpertLinear<double>&, const double*, double*, double*);
template void expert_linear_grad_x_gate(const ExpertLinear<bfloat16>&, const bfloat16*, bfloat16*, bfloat16*);

}  // namespace gmoe::core::GMOE_ISA
