// dW_e = sum over the slots of expert e of gate dy_i (x) x_s, and db_e = sum of gate dy_i.
//
// Expert-major: the slots of an expert are contiguous in the plan. They are taken kSlotsPerStep at a time: rows of dy,
// times the gate, and of x are gathered, and a register tile sums over the step before it touches dW. An element of dW
// is owned by one task. An expert with many slots and a small dW is cut into parts of kSlotsPerPart with separate
// sums, added in order at the end. The cut depends only on sizes, so the result does not depend on threads. Floor: the
// same multiply-adds at the register tile's peak.
#include <algorithm>
#include <utility>
#include <vector>

#include "core/cpu/gemm/sparse_outer.h"
#include "core/cpu/gemm/tile.h"
#include "core/expert_linear.h"
#include "core/parallel.h"

namespace gmoe::core::GMOE_ISA {
namespace {

constexpr std::int64_t kBlock = 256;         // columns of dy and of x at a time
constexpr std::int64_t kSlotsPerStep = 128;  // two gathered blocks of 128 x 256 floats are 0.25 MiB of L2
template <typename A>
constexpr int kStride = kBlock + kCacheLine / sizeof(A);  // gathered rows start in different sets
constexpr std::int64_t kRowsAhead = 4;  // rows are scattered: this many are prefetched while one is copied
constexpr std::int64_t kSlotsPerPart = 8192;
constexpr std::int64_t kSparseBlock = 1024;  // columns of dy at a time where x is mostly zeros: x is read once for them
constexpr std::int64_t kMaxPartSize = 1 << 18;  // elements of dW_e up to which parts are worth their memory

// A run of slots of one expert and the sum it makes.
template <typename A>
struct Part {
  std::int64_t expert, begin, end;  // positions in the plan's order
  A* sum;
};

template <typename T, typename A>
struct Sums {
  std::vector<Part<A>> parts;            // by expert, then position
  std::vector<std::int64_t> first_part;  // [num_experts + 1]
  Workspace<A> memory;
};

// Parts of an expert write to a workspace; a single part of the right type writes to the result itself.
template <typename T, typename A = Accumulator<T>>
Sums<T, A> cut_into_parts(const ExpertPlanView& plan, std::int64_t size, T* result) {
  const bool cut = size <= kMaxPartSize;
  std::vector<Part<A>> parts;
  std::vector<std::int64_t> first_part;
  std::int64_t in_workspace = 0;
  for (std::int64_t e = 0; e < plan.num_experts; ++e) {
    first_part.push_back(static_cast<std::int64_t>(parts.size()));
    const std::int64_t count = cut ? std::max<std::int64_t>(1, divide_up(plan.load(e), kSlotsPerPart)) : 1;
    const bool direct = count == 1 && std::is_same_v<T, A>;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t begin = plan.offsets[e] + i * kSlotsPerPart;
      const std::int64_t end = i + 1 < count ? begin + kSlotsPerPart : plan.offsets[e + 1];
      parts.push_back({e, begin, end, direct ? reinterpret_cast<A*>(result + e * size) : nullptr});
    }
    if (!direct) in_workspace += count;
  }
  first_part.push_back(static_cast<std::int64_t>(parts.size()));
  Sums<T, A> sums{std::move(parts), std::move(first_part), Workspace<A>(in_workspace * size)};
  A* next = sums.memory.data();
  for (Part<A>& part : sums.parts) {
    if (part.sum == nullptr) part.sum = std::exchange(next, next + size);
  }
  return sums;
}

template <typename T, typename A>
void add_parts(const Sums<T, A>& sums, std::int64_t num_experts, std::int64_t size, T* result) {
  constexpr std::int64_t kPiece = 4096;  // elements of a result that one task adds up
  const std::int64_t pieces = divide_up(size, kPiece);
  parallel_for(num_experts * pieces, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t e = task / pieces;
      const std::int64_t first = sums.first_part[e], last = sums.first_part[e + 1];
      if (last - first == 1 && std::is_same_v<T, A>) continue;
      A* total = sums.parts[first].sum;
      const std::int64_t from = task % pieces * kPiece, to = std::min(size, from + kPiece);
      for (std::int64_t p = first + 1; p < last; ++p) {
        for (std::int64_t j = from; j < to; ++j) total[j] += sums.parts[p].sum[j];
      }
      for (std::int64_t j = from; j < to; ++j) result[e * size + j] = narrow<T>(total[j]);
    }
  });
}

template <typename T>
std::int64_t result_row(const ExpertLinear<T>& a, std::int64_t slot) {
  return a.gate != nullptr ? slot / a.plan.k : slot;
}
template <typename T>
std::int64_t source_row(const ExpertLinear<T>& a, std::int64_t slot) {
  return a.source != nullptr ? a.source[slot] : slot / a.plan.k;
}
template <typename T, typename A = Accumulator<T>>
A gate_of(const ExpertLinear<T>& a, std::int64_t slot) {
  return a.gate != nullptr ? A{widen(a.gate[slot])} : A{1};
}

// Columns [column, column + width) of a row of each slot, times the slot's gate where Gated.
template <bool Gated, typename T, typename A, typename RowOf>
void gather(const ExpertLinear<T>& a, const T* rows, std::int64_t dim, const RowOf& row_of, const std::int64_t* slots,
            std::int64_t n, std::int64_t column, std::int64_t width, A* to) {
  for (std::int64_t i = 0; i < n; ++i, to += kStride<A>) {
    if (i + kRowsAhead < n) prefetch_row(rows + row_of(a, slots[i + kRowsAhead]) * dim + column, width);
    const T* from = rows + row_of(a, slots[i]) * dim + column;
    const A gate = Gated ? gate_of(a, slots[i]) : A{1};
    for (std::int64_t j = 0; j < width; ++j) to[j] = Gated ? gate * widen(from[j]) : A{widen(from[j])};
  }
}

template <int Rows, typename A>
void add_outer_tile(const A* grad_y, const A* x, std::int64_t n, A* out, std::int64_t stride, std::int64_t width) {
  Vector<A> c[Rows][2] = {};
  multiply_tile<Rows, 1, kStride<A>, kStride<A>>(grad_y, x, n, c);
  if (width == kTileColumns<A>) {
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
      A* row = out + m * stride;
      store(row, load(row) + c[m][0]), store(row + kLanes<A>, load(row + kLanes<A>) + c[m][1]);
    }
    return;
  }
  for (int m = 0; m < Rows; ++m) {
    A value[kTileColumns<A>];
    store(value, c[m][0]), store(value + kLanes<A>, c[m][1]);
    for (std::int64_t j = 0; j < width; ++j) out[m * stride + j] += value[j];
  }
}

template <typename A, int... Less>
void add_outer_tile(std::int64_t rows, const A* grad_y, const A* x, std::int64_t n, A* out, std::int64_t stride,
                    std::int64_t width, std::integer_sequence<int, Less...>) {
  using Function = void (*)(const A*, const A*, std::int64_t, A*, std::int64_t, std::int64_t);
  static constexpr Function kBySize[] = {add_outer_tile<Less + 1, A>...};
  kBySize[rows - 1](grad_y, x, n, out, stride, width);
}

// Rows [begin, end) of the part's sum, at most kBlock of them.
template <typename T, typename A>
void sum_part(const ExpertLinear<T>& a, const T* grad_y, const Part<A>& part, std::int64_t begin, std::int64_t end,
              A* grad_y_block, A* x_block) {
  std::fill(part.sum + begin * a.in_dim, part.sum + end * a.in_dim, A{0});
  for (std::int64_t first = part.begin; first < part.end; first += kSlotsPerStep) {
    const std::int64_t* slots = a.plan.order + first;
    const std::int64_t n = std::min(kSlotsPerStep, part.end - first);
    gather<true>(a, grad_y, a.out_dim, result_row<T>, slots, n, begin, end - begin, grad_y_block);
    for (std::int64_t block = 0; block < a.in_dim; block += kBlock) {
      const std::int64_t block_end = std::min(a.in_dim, block + kBlock);
      gather<false>(a, a.x, a.in_dim, source_row<T>, slots, n, block, block_end - block, x_block);
      for (std::int64_t column = block; column < block_end; column += kTileColumns<A>) {
        for (std::int64_t f = begin; f < end; f += kTileRows) {
          add_outer_tile(std::min(kTileRows, end - f), grad_y_block + f - begin, x_block + column - block, n,
                         part.sum + f * a.in_dim + column, a.in_dim, std::min(kTileColumns<A>, block_end - column),
                         std::make_integer_sequence<int, kTileRows>{});
        }
      }
    }
  }
}

// Tasks [begin, end): each is one of `cuts` ranges of rows of a part's dW.
struct Tasks {
  std::int64_t begin, end, cuts, rows_per_task;
};

template <typename T, typename A>
void sum_parts(const ExpertLinear<T>& a, const T* grad_y, const std::vector<Part<A>>& parts, const Tasks& tasks) {
  // A tile's second register may reach past the last column of the last row.
  Workspace<A> grad_y_block(kSlotsPerStep * kStride<A>), x_block(kSlotsPerStep * kStride<A> + kTileColumns<A>);
  for (std::int64_t task = tasks.begin; task < tasks.end; ++task) {
    const std::int64_t row = task % tasks.cuts * tasks.rows_per_task;
    sum_part(a, grad_y, parts[task / tasks.cuts], row, std::min(a.out_dim, row + tasks.rows_per_task),
             grad_y_block.data(), x_block.data());
  }
}

// ---- x mostly zeros

template <typename T>
double sparse_density(const ExpertLinear<T>& a) {
  const auto row_of = [&](std::int64_t i) { return a.x + source_row(a, a.plan.order[i]) * a.in_dim; };
  return density_to_skip<T>(a.plan.num_slots(), a.in_dim, a.out_dim, row_of);
}

template <typename T, typename A>
void sum_sparse_parts(const ExpertLinear<T>& a, const T* grad_y, const std::vector<Part<A>>& parts, double density,
                      const Tasks& tasks) {
  OuterBuffers<A> buffers(density, a.in_dim, tasks.rows_per_task);
  const std::int64_t grad_y_rows = a.gate != nullptr ? a.plan.num_rows : a.plan.num_slots();
  const bool finite = zero_times(grad_y, grad_y_rows * a.out_dim) == 0 &&
                      (a.gate == nullptr || zero_times(a.gate, a.plan.num_slots()) == 0);
  std::vector<std::int64_t> x_row, grad_y_row;
  std::vector<A> gate, kept;
  for (std::int64_t task = tasks.begin; task < tasks.end; ++task) {
    const Part<A>& part = parts[task / tasks.cuts];
    x_row.clear(), grad_y_row.clear(), gate.clear(), kept.clear();
    for (std::int64_t position = part.begin; position < part.end; ++position) {
      const std::int64_t slot = a.plan.order[position];
      x_row.push_back(source_row(a, slot));
      grad_y_row.push_back(result_row(a, slot));
      gate.push_back(gate_of(a, slot));
      if (!finite) kept.push_back(gate.back() * zero_times(grad_y + grad_y_row.back() * a.out_dim, a.out_dim));
    }
    const std::int64_t row = task % tasks.cuts * tasks.rows_per_task;
    const SparseOuter<T> outer{.x = a.x,
                               .grad_y = grad_y,
                               .x_row = x_row.data(),
                               .grad_y_row = grad_y_row.data(),
                               .gate = gate.data(),
                               .kept = finite ? nullptr : kept.data(),
                               .slots = part.end - part.begin,
                               .in_dim = a.in_dim,
                               .out_dim = a.out_dim};
    sum_sparse_outer(outer, row, std::min(a.out_dim, row + tasks.rows_per_task), buffers, part.sum + row * a.in_dim);
  }
}

}  // namespace

template <typename T>
void expert_linear_grad_weight(const ExpertLinear<T>& a, const T* grad_y, T* grad_weight) {
  using A = Accumulator<T>;
  const std::int64_t size = a.out_dim * a.in_dim;
  if (size == 0) return;
  const Sums<T, A> sums = cut_into_parts(a.plan, size, grad_weight);
  const double density = sparse_density(a);
  const auto num_parts = static_cast<std::int64_t>(sums.parts.size());
  // Rows of dW are cut further only as far as there are threads, because it repeats the gathering of x.
  const std::int64_t wanted = num_threads() == 1 ? 1 : divide_up(2 * num_threads(), num_parts);
  const std::int64_t unit = density > 0 ? kSegmentColumns<A> : kTileRows;
  const std::int64_t most = density > 0 ? kSparseBlock : kBlock;
  const std::int64_t rows_per_task = std::min(most, round_up(divide_up(a.out_dim, wanted), unit));
  const std::int64_t cuts = divide_up(a.out_dim, rows_per_task);
  const std::int64_t work = a.plan.num_slots() * size / 16 / (num_parts * cuts);
  parallel_for(num_parts * cuts, grain_rows(work), [&](std::int64_t begin, std::int64_t end) {
    if (density > 0) {
      sum_sparse_parts(a, grad_y, sums.parts, density, {begin, end, cuts, rows_per_task});
    } else {
      sum_parts(a, grad_y, sums.parts, {begin, end, cuts, rows_per_task});
    }
  });
  add_parts(sums, a.plan.num_experts, size, grad_weight);
}

template <typename T>
void expert_linear_grad_bias(const ExpertLinear<T>& a, const T* grad_y, T* grad_bias) {
  using A = Accumulator<T>;
  const std::int64_t size = a.out_dim;
  const Sums<T, A> sums = cut_into_parts(a.plan, size, grad_bias);
  const auto num_parts = static_cast<std::int64_t>(sums.parts.size());
  parallel_for(num_parts, grain_rows(a.plan.num_slots() * size / 4 / num_parts),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t i = begin; i < end; ++i) {
                   const Part<A>& part = sums.parts[i];
                   std::fill(part.sum, part.sum + size, A{0});
                   for (std::int64_t position = part.begin; position < part.end; ++position) {
                     const std::int64_t slot = a.plan.order[position];
                     const T* from = grad_y + result_row(a, slot) * size;
                     const A gate = gate_of(a, slot);
                     for (std::int64_t f = 0; f < size; ++f) part.sum[f] += gate * widen(from[f]);
                   }
                 }
               });
  add_parts(sums, a.plan.num_experts, size, grad_bias);
}

template void expert_linear_grad_weight(const ExpertLinear<float>&, const float*, float*);
template void expert_linear_grad_weight(const ExpertLinear<double>&, const double*, double*);
template void expert_linear_grad_weight(const ExpertLinear<bfloat16>&, const bfloat16*, bfloat16*);
template void expert_linear_grad_bias(const ExpertLinear<float>&, const float*, float*);
template void expert_linear_grad_bias(const ExpertLinear<double>&, const double*, double*);
template void expert_linear_grad_bias(const ExpertLinear<bfloat16>&, const bfloat16*, bfloat16*);

}  // namespace gmoe::core::GMOE_ISA
