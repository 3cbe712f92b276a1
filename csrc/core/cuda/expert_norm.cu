// Sums per expert in two ordered stages: a block takes a chunk of slots, a thread one column of it with the sums of up
// to 32 experts in shared memory; then a thread adds the chunks of one (expert, column) in their order. What follows
// takes a warp per row. Without gates every slot is a row of its own. Floor: reading y three times forward, twice
// backward.
#include "core/expert_norm.h"

#include "core/cuda/primitives.cuh"

namespace gmoe::core::cuda {
namespace {

constexpr int kColumns = 64;          // of a block of the first stage, a thread each
constexpr int kExpertsPerBlock = 32;  // a slot is read by the block of its expert alone
constexpr int kSlotsAtOnce = 4;       // loads under way
constexpr int kCountThreads = 256;
constexpr int kReduceThreads = 64;
constexpr int kWarps = 8;
constexpr std::int64_t kSlotsPerChunk = 256;
constexpr std::int64_t kMaxChunks = 512;  // which one thread adds up
constexpr std::int64_t kMaxRowBlocks = 1 << 20;

enum class Sums { values, squares, gradients };
template <Sums S>
constexpr int kSums = S == Sums::gradients ? 2 : 1;

// The slots, and the workspace cut into its arrays.
template <typename T>
struct Layout {
  using A = Accumulator<T>;

  explicit Layout(const ExpertSlots<T>& slots_in, void* workspace = nullptr) : slots(slots_in) {
    if (slots.gate == nullptr) {
      slots.num_rows *= slots.k;
      slots.k = 1;
    }
    num_slots = slots.num_rows * slots.k;
    const std::int64_t least = divide_up(num_slots, kMaxChunks);
    per_chunk = least > kSlotsPerChunk ? least : kSlotsPerChunk;
    num_chunks = divide_up(num_slots, per_chunk);
    partial = static_cast<A*>(workspace);
  }

  __host__ __device__ std::int64_t size() const { return slots.num_experts * slots.dim; }
  __device__ A* scale() const { return partial + 2 * num_chunks * size(); }  // [num_experts, dim], as the next two
  __device__ A* level() const { return scale() + size(); }
  __device__ A* slope() const { return level() + size(); }
  // Slots of the experts with few, [num_experts, kFewSlots], and how many, [num_experts].
  __device__ std::int64_t* few() const { return reinterpret_cast<std::int64_t*>(partial) + value_bytes() / 8; }
  __device__ int* num_few() const { return reinterpret_cast<int*>(few() + slots.num_experts * kFewSlots); }
  __device__ int* counts() const { return num_few() + slots.num_experts; }  // [num_chunks, num_experts]
  __host__ __device__ std::int64_t value_bytes() const {
    return round_up((2 * num_chunks + 3) * size() * static_cast<std::int64_t>(sizeof(A)), 8);
  }
  std::int64_t bytes() const {
    const std::int64_t integers = (num_chunks + 1) * static_cast<std::int64_t>(sizeof(int));
    return value_bytes() + slots.num_experts * (kFewSlots * static_cast<std::int64_t>(sizeof(std::int64_t)) + integers);
  }

  ExpertSlots<T> slots;
  std::int64_t num_slots, per_chunk, num_chunks;
  A* partial;  // [num_chunks, sums, num_experts, dim]
};

template <typename T>
__global__ void count_kernel(Layout<T> w, BadIndex* bad) {
  DynamicShared shared;
  const std::int64_t experts = w.slots.num_experts, first = static_cast<std::int64_t>(blockIdx.x) * w.per_chunk;
  int* count = shared.take<int>(experts);
  for (std::int64_t e = threadIdx.x; e < experts; e += kCountThreads) count[e] = 0;
  __syncthreads();
  for (std::int64_t s = first + threadIdx.x; s < first + w.per_chunk && s < w.num_slots; s += kCountThreads) {
    const std::int64_t e = w.slots.index[s];
    if (check_index(e, experts, s, bad)) atomicAdd(count + e, 1);
  }
  __syncthreads();
  for (std::int64_t e = threadIdx.x; e < experts; e += kCountThreads) w.counts()[blockIdx.x * experts + e] = count[e];
}

template <typename T>
__global__ void add_counts_kernel(Layout<T> w, std::int64_t* count) {
  const std::int64_t e = static_cast<std::int64_t>(blockIdx.x) * kReduceThreads + threadIdx.x;
  if (e >= w.slots.num_experts) return;
  std::int64_t total = 0;
  for (std::int64_t c = 0; c < w.num_chunks; ++c) total += w.counts()[c * w.slots.num_experts + e];
  count[e] = total;
}

// Blocks stand in the order (chunk, group of experts, columns). A thread meets no other's sums, so nothing is awaited.
template <Sums S, typename T>
__global__ void sums_kernel(Layout<T> w, const T* grad_out, const Accumulator<T>* mean) {
  using A = Accumulator<T>;
  const ExpertSlots<T>& a = w.slots;
  DynamicShared shared;
  A* sum = shared.take<A>(kSums<S> * kExpertsPerBlock * kColumns) + threadIdx.x;
  for (int i = 0; i < kSums<S> * kExpertsPerBlock; ++i) sum[i * kColumns] = 0;

  const std::int64_t tiles = divide_up(a.dim, kColumns), groups = divide_up(a.num_experts, kExpertsPerBlock);
  const std::int64_t block = blockIdx.x, d = block % tiles * kColumns + threadIdx.x;
  const std::int64_t low = block / tiles % groups * kExpertsPerBlock, chunk = block / tiles / groups;
  if (d >= a.dim) return;
  const std::int64_t begin = chunk * w.per_chunk;
  const std::int64_t end = begin + w.per_chunk < w.num_slots ? begin + w.per_chunk : w.num_slots;
  for (std::int64_t first = begin; first < end; first += kSlotsAtOnce) {
    std::int64_t expert[kSlotsAtOnce];
    A value[kSlotsAtOnce], grad[kSlotsAtOnce];
#pragma unroll
    for (int i = 0; i < kSlotsAtOnce; ++i) {
      const std::int64_t s = first + i, e = s < end ? a.index[s] : -1;
      const bool mine = e >= low && e < low + kExpertsPerBlock && e < a.num_experts;
      expert[i] = mine ? e : -1;
      value[i] = mine ? widened(a.y[s * a.dim + d]) : A{0};
      if constexpr (S == Sums::gradients) {
        grad[i] = mine ? widened(grad_out[s / a.k * a.dim + d]) : A{0};
        if (mine && a.gate != nullptr) grad[i] *= widened(a.gate[s]);
      }
    }
#pragma unroll
    for (int i = 0; i < kSlotsAtOnce; ++i) {
      if (expert[i] < 0) continue;
      A* own = sum + (expert[i] - low) * kColumns;
      if constexpr (S == Sums::values) {
        *own += value[i];
      } else {
        const A centered = value[i] - mean[expert[i] * a.dim + d];
        if constexpr (S == Sums::squares) {
          *own += centered * centered;
        } else {
          *own += grad[i];
          own[kExpertsPerBlock * kColumns] += grad[i] * centered;
        }
      }
    }
  }
  const std::int64_t high = low + kExpertsPerBlock < a.num_experts ? low + kExpertsPerBlock : a.num_experts;
  for (int kind = 0; kind < kSums<S>; ++kind) {
    A* out = w.partial + (chunk * kSums<S> + kind) * w.size() + d;
    for (std::int64_t e = low; e < high; ++e) {
      out[e * a.dim] = sum[(kind * kExpertsPerBlock + e - low) * kColumns];
    }
  }
}

template <Sums S, typename T>
__device__ Accumulator<T> total(const Layout<T>& w, std::int64_t at, int kind) {
  Accumulator<T> sum = 0;
#pragma unroll 8
  for (std::int64_t c = 0; c < w.num_chunks; ++c) sum += w.partial[(c * kSums<S> + kind) * w.size() + at];
  return sum;
}

// An expert with fewer than two slots has no variance: it takes the running statistics.
template <Sums S, typename T>
__global__ void statistic_kernel(Layout<T> w, ExpertNorm<T> n) {
  using A = Accumulator<T>;
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kReduceThreads + threadIdx.x;
  if (at >= w.size()) return;
  const std::int64_t count = n.count[at / w.slots.dim];
  const A mean = total<S>(w, at, 0) / static_cast<A>(count > 1 ? count : 1);
  if constexpr (S == Sums::values) {
    n.mean[at] = count > 1 ? mean : widened(n.running_mean[at]);
  } else {
    n.var[at] = count > 1 ? mean : widened(n.running_var[at]);
    w.scale()[at] = widened(n.weight[at]) / std::sqrt(n.var[at] + static_cast<A>(n.eps));
  }
}

// First row of this warp, and how many rows lie between its rows.
inline __device__ std::int64_t first_row() { return static_cast<std::int64_t>(blockIdx.x) * kWarps + warp_id(); }
inline __device__ std::int64_t row_step() { return static_cast<std::int64_t>(gridDim.x) * kWarps; }

template <typename T>
__global__ void result_kernel(Layout<T> w, ExpertNorm<T> n) {
  using A = Accumulator<T>;
  const ExpertSlots<T>& a = w.slots;
  for (std::int64_t i = first_row(); i < a.num_rows; i += row_step()) {
    for (std::int64_t d = lane_id(); d < a.dim; d += kWarp) {
      A sum = 0;
      for (std::int64_t s = i * a.k; s < (i + 1) * a.k; ++s) {
        const std::int64_t e = a.index[s];
        if (e < 0 || e >= a.num_experts) continue;
        const A centered = widened(a.y[s * a.dim + d]) - n.mean[e * a.dim + d];
        const A normalised = centered * w.scale()[e * a.dim + d] + widened(n.bias[e * a.dim + d]);
        sum += a.gate == nullptr ? normalised : widened(a.gate[s]) * normalised;
      }
      n.out[i * a.dim + d] = narrowed<T>(sum);
    }
  }
}

template <typename T>
__global__ void sum_gradients_kernel(Layout<T> w, ExpertNormGrad<T> n) {
  using A = Accumulator<T>;
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kReduceThreads + threadIdx.x;
  if (at >= w.size()) return;
  const std::int64_t count = n.count[at / w.slots.dim];
  if (at % w.slots.dim == 0) w.num_few()[at / w.slots.dim] = 0;
  const A inverse = A{1} / std::sqrt(n.var[at] + static_cast<A>(n.eps)), scale = widened(n.weight[at]) * inverse;
  const A plain = total<Sums::gradients>(w, at, 0), moment = total<Sums::gradients>(w, at, 1);
  n.grad_bias[at] = narrowed<T>(plain);
  n.grad_weight[at] = narrowed<T>(moment * inverse);
  const A share = count > 1 ? -scale / static_cast<A>(count) : A{0};
  w.scale()[at] = scale;
  w.level()[at] = share * plain;
  w.slope()[at] = share * inverse * inverse * moment;
}

// There is nothing wider than double to compute in.
template <typename T>
__device__ bool is_few(const ExpertNormGrad<T>& n, std::int64_t expert) {
  return !std::is_same_v<T, double> && n.count[expert] > 1 && n.count[expert] <= kFewSlots;
}

template <typename T>
__global__ void few_kernel(Layout<T> w, ExpertNormGrad<T> n) {
  const std::int64_t s = static_cast<std::int64_t>(blockIdx.x) * kCountThreads + threadIdx.x;
  const std::int64_t e = s < w.num_slots ? w.slots.index[s] : -1;
  if (e < 0 || e >= w.slots.num_experts || !is_few(n, e)) return;
  const int place = atomicAdd(w.num_few() + e, 1);
  if (place < kFewSlots) w.few()[e * kFewSlots + place] = s;
}

// Puts the slots of each expert with few in ascending order, in place: an array in registers has no index.
template <typename T>
__global__ void sort_few_kernel(Layout<T> w) {
  const std::int64_t e = static_cast<std::int64_t>(blockIdx.x) * kCountThreads + threadIdx.x;
  if (e >= w.slots.num_experts) return;
  std::int64_t* slot = w.few() + e * kFewSlots;
  if (w.num_few()[e] > kFewSlots) w.num_few()[e] = static_cast<int>(kFewSlots);
  for (int i = 1; i < w.num_few()[e]; ++i) {
    const std::int64_t own = slot[i];
    int place = i;
    for (; place > 0 && slot[place - 1] > own; --place) slot[place] = slot[place - 1];
    slot[place] = own;
  }
}

// The slots of an expert with few, ascending, and their gradients in double.
template <typename T>
struct Few {
  const Layout<T>& w;
  const ExpertNormGrad<T>& n;
  std::int64_t expert;
  const std::int64_t* slot;
  int count;

  __device__ Few(const Layout<T>& w_in, const ExpertNormGrad<T>& n_in, std::int64_t e)
      : w(w_in), n(n_in), expert(e), slot(w.few() + e * kFewSlots), count(w.num_few()[e]) {}

  __device__ double value(std::int64_t s, std::int64_t d) const { return widened(w.slots.y[s * w.slots.dim + d]); }
  __device__ double grad(std::int64_t s, std::int64_t d) const {
    const double gate = w.slots.gate == nullptr ? 1.0 : double{widened(w.slots.gate[s])};
    return gate * widened(n.grad_out[s / w.slots.k * w.slots.dim + d]);
  }
  // Writes column d of the gradient of slot s; that of the first slot, the expert's too.
  __device__ void write(std::int64_t s, std::int64_t d) const {
    using A = Accumulator<T>;
    double mean = 0, level = 0, square = 0, moment = 0;
    for (int i = 0; i < count; ++i) {
      mean += value(slot[i], d) / count;
      level += grad(slot[i], d) / count;
    }
    for (int i = 0; i < count; ++i) {
      const double centered = value(slot[i], d) - mean;
      square += centered * centered / count;
      moment += grad(slot[i], d) * centered / count;
    }
    const std::int64_t at = expert * w.slots.dim + d;
    const double inverse = 1.0 / std::sqrt(square + n.eps), scale = widened(n.weight[at]) * inverse;
    const double own = grad(s, d) - level, slope = inverse * inverse * moment;
    n.grad_y[s * w.slots.dim + d] = narrowed<T>(static_cast<A>(scale * (own - (value(s, d) - mean) * slope)));
    if (s != slot[0]) return;
    n.grad_bias[at] = narrowed<T>(static_cast<A>(count * level));
    n.grad_weight[at] = narrowed<T>(static_cast<A>(count * moment * inverse));
  }
};

template <typename T>
__global__ void grad_kernel(Layout<T> w, ExpertNormGrad<T> n, BadIndex* bad) {
  using A = Accumulator<T>;
  const ExpertSlots<T>& a = w.slots;
  for (std::int64_t s = first_row(); s < w.num_slots; s += row_step()) {
    const std::int64_t e = a.index[s];
    const bool valid = lane_id() == 0 ? check_index(e, a.num_experts, s, bad) : e >= 0 && e < a.num_experts;
    const std::int64_t own = (valid ? e : 0) * a.dim;
    const A gate = a.gate == nullptr ? A{1} : widened(a.gate[s]);
    const bool few = valid && is_few(n, e);
    if (few) {
      const Few<T> slots(w, n, e);
      for (std::int64_t d = lane_id(); d < a.dim; d += kWarp) slots.write(s, d);
    }
    A dot = 0;
    for (std::int64_t d = lane_id(); d < a.dim; d += kWarp) {
      const A raw = widened(n.grad_out[s / a.k * a.dim + d]), scale = w.scale()[own + d];
      const A centered = widened(a.y[s * a.dim + d]) - n.mean[own + d];
      dot += raw * (centered * scale + widened(n.bias[own + d]));
      const A grad = gate * raw * scale + w.level()[own + d] + centered * w.slope()[own + d];
      if (!few) n.grad_y[s * a.dim + d] = narrowed<T>(valid ? grad : A{0});
    }
    if (a.gate == nullptr) continue;
    dot = warp_sum(dot);
    if (lane_id() == 0) n.grad_gate[s] = narrowed<T>(valid ? dot : A{0});
  }
}

template <Sums S, typename T>
void sum(const Layout<T>& w, const T* grad_out, const Accumulator<T>* mean, const Call& call) {
  const std::int64_t tiles = divide_up(w.slots.dim, kColumns);
  launch("expert_norm/sums", sums_kernel<S, T>, w.num_chunks * divide_up(w.slots.num_experts, kExpertsPerBlock) * tiles,
         kColumns, shared_bytes<Accumulator<T>>(kSums<S> * kExpertsPerBlock * kColumns), call.stream, w, grad_out,
         mean);
}

std::int64_t row_blocks(std::int64_t rows) {
  const std::int64_t blocks = divide_up(rows, kWarps);
  return blocks < kMaxRowBlocks ? blocks : kMaxRowBlocks;
}

}  // namespace

template <typename T>
std::int64_t expert_norm_workspace(const ExpertSlots<T>& slots) {
  return Layout<T>(slots).bytes();
}

template <typename T>
void expert_norm(const ExpertNorm<T>& n, const Call& call) {
  check_experts("expert_norm", n.slots.num_experts);
  const Layout<T> w(n.slots, call.workspace);
  const T* no_grad = nullptr;
  const std::int64_t reducers = divide_up(w.size(), kReduceThreads);
  if (w.num_slots > 0) {
    launch("expert_norm/count", count_kernel<T>, w.num_chunks, kCountThreads, shared_bytes<int>(w.slots.num_experts),
           call.stream, w, call.bad_index);
  }
  launch("expert_norm/add_counts", add_counts_kernel<T>, divide_up(w.slots.num_experts, kReduceThreads), kReduceThreads,
         0, call.stream, w, n.count);
  if (w.size() == 0) return;
  if (w.num_slots > 0) sum<Sums::values>(w, no_grad, n.mean, call);
  launch("expert_norm/mean", statistic_kernel<Sums::values, T>, reducers, kReduceThreads, 0, call.stream, w, n);
  if (w.num_slots > 0) sum<Sums::squares>(w, no_grad, n.mean, call);
  launch("expert_norm/var", statistic_kernel<Sums::squares, T>, reducers, kReduceThreads, 0, call.stream, w, n);
  if (w.num_slots == 0) return;
  launch("expert_norm/result", result_kernel<T>, row_blocks(w.slots.num_rows), kWarps * kWarp, 0, call.stream, w, n);
}

template <typename T>
void expert_norm_grad(const ExpertNormGrad<T>& n, const Call& call) {
  check_experts("expert_norm", n.slots.num_experts);
  const Layout<T> w(n.slots, call.workspace);
  if (w.size() > 0) {
    if (w.num_slots > 0) sum<Sums::gradients>(w, n.grad_out, n.mean, call);
    launch("expert_norm/sum_gradients", sum_gradients_kernel<T>, divide_up(w.size(), kReduceThreads), kReduceThreads, 0,
           call.stream, w, n);
  }
  if (w.num_slots == 0) return;
  if (w.size() > 0) {
    launch("expert_norm/few", few_kernel<T>, divide_up(w.num_slots, kCountThreads), kCountThreads, 0, call.stream, w,
           n);
    launch("expert_norm/sort_few", sort_few_kernel<T>, divide_up(w.slots.num_experts, kCountThreads), kCountThreads, 0,
           call.stream, w);
  }
  launch("expert_norm/grad", grad_kernel<T>, row_blocks(w.num_slots), kWarps * kWarp, 0, call.stream, w, n,
         call.bad_index);
}

#define GMOE_INSTANTIATE(T)                                           \
  template std::int64_t expert_norm_workspace(const ExpertSlots<T>&); \
  template void expert_norm(const ExpertNorm<T>&, const Call&);       \
  template void expert_norm_grad(const ExpertNormGrad<T>&, const Call&);
GMOE_INSTANTIATE(float)
GMOE_INSTANTIATE(double)
GMOE_INSTANTIATE(bfloat16)
#undef GMOE_INSTANTIATE

}  // namespace gmoe::core::cuda
