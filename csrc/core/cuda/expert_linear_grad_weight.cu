// dW_e = sum over the slots of expert e of gate dy (x) x, and db_e = sum of gate dy.
//
// Expert-major: an expert's slots are a run of the plan, cut into parts of as many slots as sizes alone say. A block
// owns a part and a tile of 128 x 128 of dW: rows of dy and x are gathered by asynchronous copies, 16 or 32 slots at a
// time and two ahead, and each thread sums 8 x 8 products, of bfloat16 by matrix instructions. Parts are added up
// afterwards, in their order, so nothing is added atomically. Where tiles and experts are many enough, an expert is one
// part and its sums are the result. Floor: the multiply-adds.
#include <algorithm>

#include "core/cuda/expert_parts.cuh"
#include "core/cuda/tfloat32.cuh"
#include "core/cuda/workspace.h"
#include "core/expert_linear.h"

namespace gmoe::core::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 128;  // rows and columns of dW
template <typename T>
constexpr int kSlots = sizeof(T) == 2 ? 32 : 16;  // of a stage
constexpr int kStages = 3;                        // of which two are on their way
constexpr int kPerThread = 8;                     // rows and columns of a thread, in two pieces of 4
constexpr int kPiece = 4;
constexpr std::int64_t kWantedBlocks = 1024;  // several for each multiprocessor
constexpr std::int64_t kLeastPerPart = 512;   // slots: so many products are worth a write and a read of their sum
constexpr std::int64_t kLeastBiasPerPart = 256;

template <typename T>
struct WeightGradient {
  ExpertLinear<Element<T>> a;
  const Element<T>* grad_y;
  std::int64_t slots_per_grad;  // slot s has the gradient's row s / slots_per_grad
  ExpertParts parts;
  bool copies;           // whether rows can be read by 16 bytes
  Element<T>* result;    // [num_experts, out_dim, in_dim], of whole experts
  Accumulator<T>* sums;  // [parts.count(), out_dim, in_dim], of cut ones
  int row_tiles, column_tiles;

  std::int64_t num_tiles() const { return std::int64_t{row_tiles} * column_tiles; }
};

// Where the rows of some slots are, in shared memory.
template <typename A>
struct SlotRows {
  std::int64_t* grad;  // row of dy, or -1
  std::int64_t* x;
  A* gate;
};

template <typename T, typename A>
__device__ void list_rows(const WeightGradient<T>& w, const SlotRows<A>& rows, std::int64_t begin, int count,
                          BadIndex* bad) {
  const int i = static_cast<int>(threadIdx.x);
  rows.grad[i] = rows.x[i] = -1;
  rows.gate[i] = 0;
  if (i >= count) return;
  const std::int64_t slot = w.a.plan.order[begin + i];
  if (slot < 0 || slot >= num_slots(w.a.plan)) return note_bad_plan(w.a.plan, bad);
  const std::int64_t x = w.a.source != nullptr ? w.a.source[slot] : slot / w.a.plan.k;
  if (w.a.source != nullptr && !check_index(x, w.a.num_sources, slot, bad)) return;
  rows.grad[i] = slot / w.slots_per_grad;
  rows.x[i] = x;
  rows.gate[i] = w.a.gate != nullptr ? A{widened(w.a.gate[slot])} : A{1};
}

template <typename A>
using ThreadSums = A[kPerThread][kPerThread];

// Multiply-adds: a thread has rows and columns in two pieces of 4, half a tile apart, so that what lanes read at once
// lies side by side.
template <typename T>
struct Products {
  using A = Accumulator<T>;

  static __device__ int staged_at(int slot, int column) { return slot * kTile + column; }
  static __device__ int row(int i) { return at(static_cast<int>(threadIdx.x) / 16, i); }
  static __device__ int column(int j) { return at(static_cast<int>(threadIdx.x) % 16, j); }

  static __device__ void add(const T* grad, const T* x, const A* gate, int count, ThreadSums<A>& sum) {
#pragma unroll 1
    for (int slot = 0; slot < count; ++slot) {
      A left[kPerThread], right[kPerThread];
      load_pieces(grad + slot * kTile, row(0), left);
      load_pieces(x + slot * kTile, column(0), right);
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) left[i] *= gate[slot];
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
#pragma unroll
        for (int j = 0; j < kPerThread; ++j) sum[i][j] += left[i] * right[j];
      }
    }
  }

 private:
  static __device__ int at(int piece, int i) { return i / kPiece * (kTile / 2) + piece * kPiece + i % kPiece; }
  static __device__ void load_pieces(const T* stage, int first, A (&value)[kPerThread]) {
    constexpr int V = kPack<T> < kPiece ? kPack<T> : kPiece;
#pragma unroll
    for (int i = 0; i < kPerThread; i += V) {
      const Pack<T, V> pack = load<V>(stage + first + i / kPiece * (kTile / 2) + i % kPiece);
#pragma unroll
      for (int v = 0; v < V; ++v) value[i + v] = widened(pack.value[v]);
    }
  }
};

// Matrix instructions: 2 x 4 warps with 64 rows and 32 columns each. Slots are the depth of the product, so both sides
// are read transposed. Slots past the last are zeros, their gates too.
struct MatrixProducts {
  static __device__ int row(int i) { return warp_id() / 4 * 64 + i * 8 + lane_id() / 4; }
  static __device__ int column(int j) { return warp_id() % 4 * 32 + j / 2 * 8 + lane_id() % 4 * 2 + j % 2; }
};

// Rows of a stage have their 16-byte pieces swapped, eight rows in different banks.
template <>
struct Products<bfloat16> : MatrixProducts {
  static constexpr int kDepth = 16;

  static __device__ int staged_at(int slot, int column) { return slot * kTile + (column ^ (slot & 7) << 3); }

  static __device__ void add(const bfloat16* grad, const bfloat16* x, const float* gate, int count,
                             ThreadSums<float>& sum) {
    // What this lane names: row lane % 8 of matrix lane / 8.
    const int matrix = lane_id() / 8, in_matrix = lane_id() % 8, pair = lane_id() % 4 * 2;
    for (int first = 0; first < count; first += kDepth) {
      unsigned right[2][4];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int slot = first + matrix % 2 * 8 + in_matrix;
        load_transposed_8x8(x + staged_at(slot, warp_id() % 4 * 32 + n * 16 + matrix / 2 * 8), right[n]);
      }
      const Pack<float, 2> low = load<2>(gate + first + pair), high = load<2>(gate + first + pair + 8);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        unsigned left[4];
        const int slot = first + matrix / 2 * 8 + in_matrix;
        load_transposed_8x8(grad + staged_at(slot, warp_id() / 4 * 64 + m * 16 + matrix % 2 * 8), left);
#pragma unroll
        for (int i = 0; i < 4; ++i) left[i] = times(left[i], i < 2 ? low : high);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          multiply_m16n8k16(sum[2 * m][2 * n], sum[2 * m][2 * n + 1], sum[2 * m + 1][2 * n], sum[2 * m + 1][2 * n + 1],
                            left[0], left[1], left[2], left[3], right[n / 2][n % 2 * 2], right[n / 2][n % 2 * 2 + 1]);
        }
      }
    }
  }

 private:
  // Two neighbouring slots times their gates, rounded to bfloat16.
  static __device__ unsigned times(unsigned two, const Pack<float, 2>& gates) {
    const auto part = [&](unsigned bits, float g) {
      return unsigned{narrowed<bfloat16>(widened(bfloat16{static_cast<std::uint16_t>(bits)}) * g).bits};
    };
    return part(two & 0xffffu, gates.value[0]) | part(two >> 16, gates.value[1]) << 16;
  }
};

// Rows of a stage have their pieces of 8 columns swapped: four rows and eight columns are in different banks.
template <>
struct Products<tfloat32> : MatrixProducts {
  static constexpr int kDepth = 8;

  static __device__ int staged_at(int slot, int column) { return slot * kTile + (column ^ (slot & 3) << 3); }

  static __device__ void add(const tfloat32* grad, const tfloat32* x, const float* gate, int count,
                             ThreadSums<float>& sum) {
    const auto bits = [](const tfloat32* stage, int slot, int column, float times) {
      return rounded_to_tf32(stage[staged_at(slot, column)].value * times);
    };
#pragma unroll 1
    for (int first = 0; first < count; first += kDepth) {
      const int low = first + lane_id() % 4, high = low + 4;
      unsigned right[4][2];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int at = warp_id() % 4 * 32 + n * 8 + lane_id() / 4;
        right[n][0] = bits(x, low, at, 1.0f);
        right[n][1] = bits(x, high, at, 1.0f);
      }
      const float low_gate = gate[low], high_gate = gate[high];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const unsigned left[4] = {bits(grad, low, row(2 * m), low_gate), bits(grad, low, row(2 * m + 1), low_gate),
                                  bits(grad, high, row(2 * m), high_gate), bits(grad, high, row(2 * m + 1), high_gate)};
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          multiply_m16n8k8(sum[2 * m][2 * n], sum[2 * m][2 * n + 1], sum[2 * m + 1][2 * n], sum[2 * m + 1][2 * n + 1],
                           left[0], left[1], left[2], left[3], right[n][0], right[n][1]);
        }
      }
    }
  }
};

// Columns [first, first + kTile) of the rows of kSlots<T> slots to a stage; zeros past the end.
template <typename T>
__device__ void fetch_rows(const Element<T>* from, const std::int64_t* row, int count, std::int64_t dim, int first,
                           bool copies, T* stage) {
  constexpr int kPacks = kTile / kPack<T>;
#pragma unroll 2
  for (int i = static_cast<int>(threadIdx.x); i < kSlots<T> * kPacks; i += kThreads) {
    const int slot = i / kPacks, column = i % kPacks * kPack<T>;
    T* to = stage + Products<T>::staged_at(slot, column);
    const std::int64_t r = slot < count ? row[slot] : -1, at = first + column;
    if (copies) {
      const bool valid = r >= 0 && at < dim;
      copy_async16(to, valid ? from + r * dim + at : from, valid);
    } else {
#pragma unroll
      for (int v = 0; v < kPack<T>; ++v) to[v] = r >= 0 && at + v < dim ? T{from[r * dim + at + v]} : T{};
    }
  }
}

template <typename To, typename T, typename A>
__device__ void store_sums(const WeightGradient<T>& w, int first_row, int first_column, const ThreadSums<A>& sum,
                           To* to) {
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int f = first_row + Products<T>::row(i);
    if (f >= w.a.out_dim) continue;
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      const int d = first_column + Products<T>::column(j);
      if (d < w.a.in_dim) to[f * w.a.in_dim + d] = narrowed<To>(sum[i][j]);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) grad_weight_kernel(WeightGradient<T> w, BadIndex* bad) {
  using A = Accumulator<T>;
  constexpr int kStage = kSlots<T> * kTile;
  DynamicShared shared;
  T* grad = shared.take<T>(kStages * kStage);
  T* x = shared.take<T>(kStages * kStage);
  const SlotRows<A> rows{shared.take<std::int64_t>(kThreads), shared.take<std::int64_t>(kThreads),
                         shared.take<A>(kThreads)};
  const int column_tile = static_cast<int>(blockIdx.x % w.column_tiles);
  const int row_tile = static_cast<int>(blockIdx.x / w.column_tiles % w.row_tiles);
  const int first_row = row_tile * kTile, first_column = column_tile * kTile;
  const std::int64_t index = blockIdx.x / w.column_tiles / w.row_tiles;
  const ExpertPart part = w.parts.part(index);
  if (w.parts.cut() && part.begin == part.end) return;
  ThreadSums<A> sum = {};
  for (std::int64_t begin = part.begin; begin < part.end; begin += kThreads) {
    const int count = part.end - begin < kThreads ? static_cast<int>(part.end - begin) : kThreads;
    __syncthreads();
    list_rows(w, rows, begin, count, bad);
    __syncthreads();
    const auto fetch = [&](int slot, int stage) {
      if (slot < count) {
        fetch_rows(w.grad_y, rows.grad + slot, count - slot, w.a.out_dim, first_row, w.copies, grad + stage * kStage);
        fetch_rows(w.a.x, rows.x + slot, count - slot, w.a.in_dim, first_column, w.copies, x + stage * kStage);
      }
      copy_async_commit();
    };
    for (int i = 0; i + 1 < kStages; ++i) fetch(i * kSlots<T>, i);
    for (int slot = 0, stage = 0; slot < count; slot += kSlots<T>, stage = (stage + 1) % kStages) {
      copy_async_wait<kStages - 2>();
      __syncthreads();  // the stage has come for all, and all have left the one that is fetched next
      fetch(slot + (kStages - 1) * kSlots<T>, (stage + kStages - 1) % kStages);
      Products<T>::add(grad + stage * kStage, x + stage * kStage, rows.gate + slot,
                       count - slot < kSlots<T> ? count - slot : kSlots<T>, sum);
    }
  }
  const std::int64_t size = w.a.out_dim * w.a.in_dim;
  if (w.parts.cut()) return store_sums(w, first_row, first_column, sum, w.sums + index * size);
  store_sums(w, first_row, first_column, sum, w.result + index * size);
}

// ---- the bias

template <typename T>
struct BiasGradient {
  ExpertLinear<T> a;
  const T* grad_y;
  std::int64_t slots_per_grad;
  ExpertParts parts;
  T* result;             // [num_experts, out_dim]
  Accumulator<T>* sums;  // [parts.count(), out_dim]
  int column_blocks;
};

// A block owns a part and 32 columns: each warp takes every eighth slot, and the warps' sums are added in order.
template <typename T>
__global__ void __launch_bounds__(kThreads) grad_bias_kernel(BiasGradient<T> b, BadIndex* bad) {
  using A = Accumulator<T>;
  constexpr int kWarps = kThreads / kWarp;
  GMOE_SHARED_ARRAY(A, warp_sum, kThreads);
  const std::int64_t index = blockIdx.x / b.column_blocks;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x % b.column_blocks) * kWarp + lane_id();
  const ExpertPart part = b.parts.part(index);
  A sum = 0;
  for (std::int64_t i = part.begin + warp_id(); i < part.end; i += kWarps) {
    const std::int64_t slot = b.a.plan.order[i];
    if (slot < 0 || slot >= num_slots(b.a.plan)) {
      note_bad_plan(b.a.plan, bad);
    } else if (column < b.a.out_dim) {
      const A gate = b.a.gate != nullptr ? A{widened(b.a.gate[slot])} : A{1};
      sum += gate * widened(b.grad_y[slot / b.slots_per_grad * b.a.out_dim + column]);
    }
  }
  warp_sum[threadIdx.x] = sum;
  __syncthreads();
  if (warp_id() != 0 || column >= b.a.out_dim) return;
  for (int w = 1; w < kWarps; ++w) sum += warp_sum[w * kWarp + lane_id()];
  if (b.parts.cut()) {
    b.sums[index * b.a.out_dim + column] = sum;
  } else {
    b.result[index * b.a.out_dim + column] = narrowed<T>(sum);
  }
}

// ---- the end of cut experts

// A thread adds an element of the parts of an expert.
template <typename T>
__global__ void add_parts_kernel(ExpertParts parts, const Accumulator<T>* sums, std::int64_t size, T* result) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= parts.plan.num_experts * size) return;
  const std::int64_t e = i / size, first = parts.first_part(e), last = first + parts.num_parts(e);
  Accumulator<T> sum = 0;
  for (std::int64_t p = first; p < last; ++p) sum += sums[p * size + i % size];
  result[i] = narrowed<T>(sum);
}

template <typename T>
void add_parts(const ExpertParts& parts, const Accumulator<T>* sums, std::int64_t size, T* result, const Call& call) {
  if (!parts.cut()) return;
  launch("expert_linear/add_parts", add_parts_kernel<T>, divide_up(parts.plan.num_experts * size, kThreads), kThreads,
         0, call.stream, parts, sums, size, result);
}

// Slots of a part such that there are enough blocks, each of which owns one of `tiles`.
ExpertParts cut_experts(const ExpertPlanView& plan, std::int64_t tiles, std::int64_t least) {
  const std::int64_t n = num_slots(plan);
  if (tiles * plan.num_experts >= kWantedBlocks) return {plan, 0};
  return {plan, std::max(least, divide_up(n * tiles, kWantedBlocks))};
}

template <typename T>
WeightGradient<T> weight_gradient(const ExpertLinear<Element<T>>& a, const Element<T>* grad_y, Element<T>* result,
                                  Workspace& workspace) {
  WeightGradient<T> w{};
  w.a = a;
  w.grad_y = grad_y;
  w.slots_per_grad = a.gate != nullptr ? a.plan.k : 1;
  w.result = result;
  w.row_tiles = static_cast<int>(divide_up(a.out_dim, kTile));
  w.column_tiles = static_cast<int>(divide_up(a.in_dim, kTile));
  w.parts = cut_experts(a.plan, w.num_tiles(), kLeastPerPart);
  w.copies = fits_packs<kPack<T>>(a.out_dim, grad_y) && fits_packs<kPack<T>>(a.in_dim, a.x);
  if (w.parts.cut()) w.sums = workspace.take<Accumulator<T>>(w.parts.count() * a.out_dim * a.in_dim);
  return w;
}

template <typename T>
BiasGradient<T> bias_gradient(const ExpertLinear<T>& a, const T* grad_y, T* result, Workspace& workspace) {
  BiasGradient<T> b{a, grad_y, a.gate != nullptr ? a.plan.k : 1, {}, result, nullptr, 0};
  b.column_blocks = static_cast<int>(divide_up(a.out_dim, kWarp));
  b.parts = cut_experts(a.plan, b.column_blocks, kLeastBiasPerPart);
  if (b.parts.cut()) b.sums = workspace.take<Accumulator<T>>(b.parts.count() * a.out_dim);
  return b;
}

}  // namespace

template <typename T>
std::int64_t expert_linear_grad_weight_workspace(const ExpertLinear<T>& a) {
  Workspace workspace(nullptr);
  weight_gradient<T>(a, nullptr, nullptr, workspace);
  return workspace.bytes();
}

template <typename T>
void expert_linear_grad_weight(const ExpertLinear<T>& a, const T* grad_y, T* grad_weight, bool tf32, const Call& call) {
  using A = Accumulator<T>;
  const std::int64_t size = a.out_dim * a.in_dim;
  if (a.plan.num_experts * size == 0) return;
  Workspace workspace(call.workspace);
  dispatch_operand<T>(tf32, [&](auto operand) {
    using Factor = typename decltype(operand)::type;
    constexpr std::int64_t kStaged = kStages * kSlots<Factor> * kTile;
    const WeightGradient<Factor> w = weight_gradient<Factor>(a, grad_y, grad_weight, workspace);
    const std::size_t bytes =
        shared_bytes<Factor, Factor, std::int64_t, std::int64_t, A>(kStaged, kStaged, kThreads, kThreads, kThreads);
    launch("expert_linear_grad_weight", grad_weight_kernel<Factor>, w.parts.count() * w.num_tiles(), kThreads, bytes,
           call.stream, w, call.bad_index);
    add_parts(w.parts, w.sums, size, grad_weight, call);
  });
}

template <typename T>
std::int64_t expert_linear_grad_bias_workspace(const ExpertLinear<T>& a) {
  Workspace workspace(nullptr);
  bias_gradient<T>(a, nullptr, nullptr, workspace);
  return workspace.bytes();
}

template <typename T>
void expert_linear_grad_bias(const ExpertLinear<T>& a, const T* grad_y, T* grad_bias, const Call& call) {
  if (a.plan.num_experts * a.out_dim == 0) return;
  Workspace workspace(call.workspace);
  const BiasGradient<T> b = bias_gradient(a, grad_y, grad_bias, workspace);
  launch("expert_linear_grad_bias", grad_bias_kernel<T>, b.parts.count() * b.column_blocks, kThreads, 0, call.stream, b,
         call.bad_index);
  add_parts(b.parts, b.sums, a.out_dim, grad_bias, call);
}

#define GMOE_INSTANTIATE(T)                                                                         \
  template std::int64_t expert_linear_grad_weight_workspace(const ExpertLinear<T>&);                \
  template void expert_linear_grad_weight(const ExpertLinear<T>&, const T*, T*, bool, const Call&); \
  template std::int64_t expert_linear_grad_bias_workspace(const ExpertLinear<T>&);                  \
  template void expert_linear_grad_bias(const ExpertLinear<T>&, const T*, T*, const Call&);
GMOE_INSTANTIATE(float)
GMOE_INSTANTIATE(double)
GMOE_INSTANTIATE(bfloat16)
#undef GMOE_INSTANTIATE

}  // namespace gmoe::core::cuda
