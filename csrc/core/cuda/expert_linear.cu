// expert_linear as a routed product, and its gradients for x and the gate as another. Two ways: where results have
// several slots and the weights are small, blocks own results (tile_product.cuh); else blocks own slots
// (grouped_product.cuh), and what belongs to one row is added up after.
#include "core/expert_linear.h"

#include "core/cuda/expert_linear_by_source.h"
#include "core/cuda/grouped_product.cuh"
#include "core/cuda/tile_product.cuh"
#include "core/cuda/workspace.h"

namespace gmoe::core::cuda {
namespace {

// Where tiles begin in the plan.
struct PlanCut {
  ExpertPlanView plan;
  std::int64_t slots_per_tile, num_tiles;
  std::int64_t* cut;
};

constexpr int kCutThreads = 128;
constexpr int kGateThreads = 256;

// A thread per expert and tile. Of a damaged plan, positions stay within it; product kernels note what is missing.
__global__ void cut_kernel(PlanCut c) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kCutThreads + threadIdx.x;
  if (i >= c.plan.num_experts * (c.num_tiles + 1)) return;
  const std::int64_t e = i / (c.num_tiles + 1), tile = i % (c.num_tiles + 1), n = num_slots(c.plan);
  std::int64_t begin = c.plan.offsets[e], end = c.plan.offsets[e + 1];
  begin = begin < 0 ? 0 : begin < n ? begin : n;
  end = end < begin ? begin : end < n ? end : n;
  if (tile == c.num_tiles) begin = end;
  while (tile > 0 && begin < end) {
    const std::int64_t middle = begin + (end - begin) / 2;
    if (c.plan.order[middle] < tile * c.slots_per_tile) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  c.cut[i] = begin;
}

enum class Weight { as_is, transposed };

template <typename T, typename Out>
RoutedProduct<T, Out> forward_product(const ExpertLinear<Element<T>>& a, Out* y) {
  RoutedProduct<T, Out> p{};
  p.in = a.x;
  p.source = a.source;
  p.num_in_rows = a.num_sources;
  p.slots_per_in = a.plan.k;
  p.weight = {nullptr, a.plan.num_experts, a.in_dim, a.out_dim};
  p.bias = a.bias;
  p.gate = a.gate;
  p.plan = a.plan;
  p.slots_per_out = a.gate != nullptr ? static_cast<int>(a.plan.k) : 1;
  p.with_out = true;
  p.out = y;
  return p;
}

template <typename T>
struct Weights {
  const T* values;
  Weight layout;
};

// Whether tiles take the product: every one of them reads all weights, and a batch should be of a matrix instruction's
// 16 rows or more.
template <typename T>
bool in_tiles(const RoutedInputs<T>& p) {
  constexpr std::int64_t kMostSize = 256 * 256, kLeastBatch = 16;
  return p.slots_per_out > 1 && p.weight.depth * p.weight.columns <= kMostSize &&
         kTileRows * p.slots_per_out >= kLeastBatch * p.plan.num_experts;
}

template <typename T>
void pack_weights(RoutedInputs<T>& p, const Weights<Element<T>>& weights, T* panels, Stream stream) {
  p.weight.panels = panels;
  launch("expert_linear/pack",
         weights.layout == Weight::transposed ? pack_weight_kernel<true, T> : pack_weight_kernel<false, T>,
         divide_up(p.weight.size() / kPack<T>, kPackThreads), kPackThreads, 0, stream, p.weight, weights.values,
         panels);
}

template <typename T, typename Out>
void run_tiles(RoutedProduct<T, Out> p, const Weights<Out>& weights, Workspace& workspace, const Call& call) {
  using A = Accumulator<T>;
  p.rows_per_tile = rows_per_tile(p.slots_per_out);
  p.num_tiles = divide_up(num_slots(p.plan), p.slots_per_tile());
  T* panels = workspace.take<T>(p.weight.size());
  auto* cut = workspace.take<std::int64_t>(p.plan.num_experts * (p.num_tiles + 1));
  if (workspace.counts_only()) return;
  p.cut = cut;
  p.packs = p.with_out && fits_packs<kPack<Out>>(p.weight.columns, p.out);
  pack_weights(p, weights, panels, call.stream);
  launch("expert_linear/cut", cut_kernel, divide_up(p.plan.num_experts * (p.num_tiles + 1), kCutThreads), kCutThreads,
         0, call.stream, PlanCut{p.plan, p.slots_per_tile(), p.num_tiles, cut});
  const std::size_t bytes = shared_bytes<T, A, A>(kStages * kBatch * kStageDepth<T>, p.rows_per_tile * kTileColumns,
                                                  p.dot != nullptr ? kBatch * kColumnPanels : 0) +
                            TileSlots<A>::bytes(p.plan.num_experts, p.slots_per_tile());
  launch("expert_linear/tiles",
         p.dot != nullptr ? tile_product_kernel<true, T, Out> : tile_product_kernel<false, T, Out>,
         p.num_tiles * p.num_column_blocks, kProductThreads, bytes, call.stream, p, call.bad_index);
}

// With `ranked`, also a row's slots by ascending expert.
void find_positions(const ExpertPlanView& plan, unsigned long long* position, std::int64_t* ranked, const Call& call) {
  const ExpertParts parts{plan, kGroup};
  const std::int64_t n = num_slots(plan), blocks = divide_up(n, kPlanThreads);
  fill_zero(position, static_cast<std::size_t>(n) * sizeof *position, call.stream);
  launch("expert_linear/position", position_kernel<ExpertParts>, blocks, kPlanThreads, 0, call.stream, parts, position);
  launch("expert_linear/rank", rank_kernel<ExpertParts>, blocks, kPlanThreads, 0, call.stream, parts, position, ranked,
         call.bad_index);
}

template <typename T, typename Out>
void run_grouped(RoutedProduct<T, Out> p, const Weights<Element<T>>& weights, std::int64_t* ranked,
                 Workspace& workspace, const Call& call) {
  using A = Accumulator<T>;
  T* panels = workspace.take<T>(p.weight.size());
  auto* position = workspace.take<unsigned long long>(num_slots(p.plan));
  if (workspace.counts_only()) return;
  p.packs = p.with_out && fits_packs<kPack<Out>>(p.weight.columns, p.out);
  pack_weights(p, weights, panels, call.stream);
  find_positions(p.plan, position, ranked, call);
  const GroupedProduct<T, Out> g{p, {p.plan, kGroup}, position};
  const std::size_t bytes = shared_bytes<T, A, std::int64_t, std::int64_t, A>(
      kStages * kGroup * kStageDepth<T>, p.dot != nullptr ? kGroup * kColumnPanels : 0, kGroup, kGroup, kGroup);
  launch("expert_linear/grouped",
         p.dot != nullptr ? grouped_product_kernel<true, T, Out> : grouped_product_kernel<false, T, Out>,
         g.parts.count() * p.num_column_blocks, kProductThreads, bytes, call.stream, g, call.bad_index);
}

// Launches nothing where the workspace has no memory.
template <typename T, typename Out>
void run_product(RoutedProduct<T, Out> p, const Weights<Element<T>>& weights, Workspace& workspace, const Call& call) {
  using A = Accumulator<T>;
  p.num_column_blocks = static_cast<int>(divide_up(p.weight.columns, kTileColumns));
  p.copies = fits_packs<kPack<T>>(p.weight.depth, p.in);
  if (num_slots(p.plan) * p.weight.columns == 0) return;
  if constexpr (std::is_same_v<Element<T>, Out>) {
    if (in_tiles(p)) return run_tiles(p, weights, workspace, call);
    if (p.slots_per_out > 1 && p.with_out) {
      RoutedProduct<T, A> rows{p, workspace.take<A>(num_slots(p.plan) * p.weight.columns)};
      auto* ranked = workspace.take<std::int64_t>(num_slots(p.plan));
      run_grouped(rows, weights, ranked, workspace, call);
      if (workspace.counts_only()) return;
      return sum_slots<Out>({rows.out, ranked, nullptr, p.plan.k, p.plan.num_rows, p.weight.columns, p.out}, call);
    }
  }
  run_grouped(p, weights, nullptr, workspace, call);
}

// ---- gradients for x and the gate

template <typename T>
struct GateGradient {
  ExpertPlanView plan;
  const Accumulator<T>* dot;  // [num_slots, num_dots]: x_s . (W_e^T dy_i) by block of columns
  std::int64_t num_dots;
  const T* bias;    // [num_experts, out_dim] or null
  const T* grad_y;  // [num_rows, out_dim]
  std::int64_t out_dim;
  const unsigned long long* position;
  T* grad_gate;  // [num_slots]
};

// dgate_s = dot_s + b_e . dy_i. A warp per slot, whose position in the plan has its expert.
template <typename T>
__global__ void gate_gradient_kernel(GateGradient<T> g) {
  using A = Accumulator<T>;
  const std::int64_t slot = (static_cast<std::int64_t>(blockIdx.x) * kGateThreads + threadIdx.x) / kWarp;
  if (slot >= num_slots(g.plan) || g.position[slot] == 0) return;
  const T* grad_y = g.grad_y + slot / g.plan.k * g.out_dim;
  A sum = 0;
  for (std::int64_t d = lane_id(); d < g.num_dots; d += kWarp) sum += g.dot[slot * g.num_dots + d];
  if (g.bias != nullptr) {
    const auto at = static_cast<std::int64_t>(g.position[slot] - 1);
    const T* bias = g.bias + ExpertParts{g.plan, 0}.expert_of(at) * g.out_dim;
    for (std::int64_t f = lane_id(); f < g.out_dim; f += kWarp) sum += widened(bias[f]) * widened(grad_y[f]);
  }
  sum = warp_sum(sum);
  if (lane_id() == 0) g.grad_gate[slot] = narrowed<T>(sum);
}

// W_e^T dy_i, times the gate for grad_x, and its dot products with x_s for the gate's gradient.
template <typename T, typename Out>
RoutedProduct<T, Out> gradient_product(const ExpertLinear<Element<T>>& a, const Element<T>* grad_y, Out* out,
                                       bool apart, bool with_dots) {
  RoutedProduct<T, Out> p{};
  p.in = grad_y;
  p.slots_per_in = a.gate != nullptr || with_dots ? a.plan.k : 1;
  p.weight = {nullptr, a.plan.num_experts, a.out_dim, a.in_dim};
  p.gate = a.gate;
  p.plan = a.plan;
  p.slots_per_out = apart ? 1 : static_cast<int>(a.plan.k);
  p.out = out;
  return p;
}

// What is asked for.
template <typename T>
struct Gradients {
  bool with_x, with_gate;
  T* x;
  T* gate;
};

template <typename T, typename Out>
void run_gradient(const ExpertLinear<Element<T>>& a, const Element<T>* grad_y, Out* out, bool apart,
                  const Gradients<Element<T>>& grad, Workspace& workspace, const Call& call) {
  RoutedProduct<T, Out> p = gradient_product<T>(a, grad_y, out, apart, grad.with_gate);
  p.with_out = grad.with_x;
  const Weights<Element<T>> weights{a.weight, Weight::transposed};
  if (!grad.with_gate) return run_product(p, weights, workspace, call);
  GateGradient<Element<T>> g{a.plan,  nullptr,  divide_up(a.in_dim, kTileColumns), a.bias, grad_y, a.out_dim,
                             nullptr, grad.gate};
  p.against = a.x;
  p.against_source = a.source;
  p.num_against_rows = a.num_sources;
  g.dot = p.dot = workspace.take<Accumulator<T>>(num_slots(a.plan) * g.num_dots);
  auto* position = workspace.take<unsigned long long>(num_slots(a.plan));
  g.position = position;
  run_product(p, weights, workspace, call);
  if (workspace.counts_only()) return;
  find_positions(a.plan, position, nullptr, call);
  launch("expert_linear/gate_gradient", gate_gradient_kernel<Element<T>>,
         divide_up(num_slots(a.plan), kGateThreads / kWarp), kGateThreads, 0, call.stream, g);
}

template <typename T>
void run_gradients(const ExpertLinear<Element<T>>& a, const Element<T>* grad_y, const Gradients<Element<T>>& grad,
                   Workspace& workspace, const Call& call) {
  using A = Accumulator<T>;
  if (!grad.with_x || a.source == nullptr) return run_gradient<T>(a, grad_y, grad.x, false, grad, workspace, call);
  A* rows = workspace.take<A>(num_slots(a.plan) * a.in_dim);
  run_gradient<T>(a, grad_y, rows, true, grad, workspace, call);
  sum_by_source<Element<T>>({rows, a.source, num_slots(a.plan), a.num_sources, a.in_dim, grad.x}, workspace, call);
}

void check_sizes(const ExpertPlanView& plan) {
  check_experts("expert_linear", plan.num_experts);
  if (plan.k <= kMaxChoices) return;
  throw std::invalid_argument("gmoe::expert_linear: expected k of at most " + std::to_string(kMaxChoices) +
                              " on CUDA, got " + std::to_string(plan.k));
}

}  // namespace

template <typename T>
std::int64_t expert_linear_workspace(const ExpertLinear<T>& a) {
  Workspace workspace(nullptr);
  run_product<T, T>(forward_product<T, T>(a, nullptr), {}, workspace, {});
  return workspace.bytes();
}

template <typename T>
void expert_linear(const ExpertLinear<T>& a, T* y, bool tf32, const Call& call) {
  check_sizes(a.plan);
  if (num_slots(a.plan) * a.out_dim == 0) return;
  Workspace workspace(call.workspace);
  dispatch_operand<T>(tf32, [&](auto operand) {
    using Factor = typename decltype(operand)::type;
    run_product(forward_product<Factor>(a, y), {a.weight, Weight::as_is}, workspace, call);
  });
}

template <typename T>
std::int64_t expert_linear_grad_x_gate_workspace(const ExpertLinear<T>& a, bool grad_x, bool grad_gate) {
  Workspace workspace(nullptr);
  run_gradients<T>(a, nullptr, {grad_x, grad_gate, nullptr, nullptr}, workspace, {});
  return workspace.bytes();
}

template <typename T>
void expert_linear_grad_x_gate(const ExpertLinear<T>& a, const T* grad_y, T* grad_x, T* grad_gate, bool tf32,
                               const Call& call) {
  check_sizes(a.plan);
  if (num_slots(a.plan) == 0) {
    if (grad_x != nullptr && a.num_sources * a.in_dim > 0) {
      fill_zero(grad_x, static_cast<std::size_t>(a.num_sources * a.in_dim) * sizeof(T), call.stream);
    }
    return;
  }
  Workspace workspace(call.workspace);
  dispatch_operand<T>(tf32, [&](auto operand) {
    using Factor = typename decltype(operand)::type;
    run_gradients<Factor>(a, grad_y, {grad_x != nullptr, grad_gate != nullptr, grad_x, grad_gate}, workspace, call);
  });
}

#define GMOE_INSTANTIATE(T)                                                                      \
  template std::int64_t expert_linear_workspace(const ExpertLinear<T>&);                         \
  template void expert_linear(const ExpertLinear<T>&, T*, bool, const Call&);                    \
  template std::int64_t expert_linear_grad_x_gate_workspace(const ExpertLinear<T>&, bool, bool); \
  template void expert_linear_grad_x_gate(const ExpertLinear<T>&, const T*, T*, T*, bool, const Call&);
GMOE_INSTANTIATE(float)
GMOE_INSTANTIATE(double)
GMOE_INSTANTIATE(bfloat16)
#undef GMOE_INSTANTIATE

}  // namespace gmoe::core::cuda
