// Two launches: sums of chunks of rows (memory_sums.cuh), then their average. Gates of a chunk are taken relative to
// the largest of their expert there, and the chunks' sums are brought to one scale when they are added, as in a softmax
// that is computed piece by piece. Rows come from memory once: for their norm, then from the first-level cache for the
// sums, unless there are more columns than the sums of a block have room for. Floor: the time to read x.
#include "core/memory_update.h"

#include <algorithm>
#include <cstring>

#include "core/cuda/memory_sums.cuh"
#include "core/cuda/norms.cuh"

namespace gmoe::core::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kMostRowsPerStep = 16;
constexpr std::int64_t kMostSlotsPerStep = 512;
constexpr int kAverageWarps = 8;

// Ascending with the value; 0 is below every number.
inline __device__ unsigned long long ordered_bits(double value) {
  unsigned long long bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits >> 63 != 0 ? ~bits : bits | 1ull << 63;
}
inline __device__ double from_ordered_bits(unsigned long long bits) {
  bits = bits >> 63 != 0 ? bits & ~(1ull << 63) : ~bits;
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <typename T>
struct Work {
  MemoryUpdate<T> a;
  MemorySums<Accumulator<T>> sums;
  std::int64_t columns;  // of a tile
  int rows_per_step;
  BadIndex* bad;

  __device__ std::int64_t chunk() const { return blockIdx.x % sums.chunks.count; }
  __device__ std::int64_t begin() const { return chunk() * sums.chunks.rows_per_chunk; }
  __device__ std::int64_t end() const {
    return begin() + sums.chunks.rows_per_chunk < a.num_rows ? begin() + sums.chunks.rows_per_chunk : a.num_rows;
  }
  __device__ std::int64_t first_column() const { return blockIdx.x / sums.chunks.count * columns; }
};

// The largest gate of each expert in the chunk. By a whole block.
template <typename T, typename A>
__device__ void largest_gates(const Work<T>& w, unsigned long long* bits, A* largest) {
  for (std::int64_t e = threadIdx.x; e < w.a.num_experts; e += kThreads) bits[e] = 0;
  __syncthreads();
#pragma unroll 1
  for (std::int64_t s = w.begin() * w.a.k + threadIdx.x; s < w.end() * w.a.k; s += kThreads) {
    const A gate = widened(w.a.gate[s]);
    if (check_index(w.a.index[s], w.a.num_experts, s, w.bad) && gate == gate) {
      atomicMax(bits + w.a.index[s], ordered_bits(gate));
    }
  }
  __syncthreads();
  for (std::int64_t e = threadIdx.x; e < w.a.num_experts; e += kThreads) {
    largest[e] = bits[e] == 0 ? -kInfinity<A> : static_cast<A>(from_ordered_bits(bits[e]));
  }
}

// Slots of `count` rows from `first` on, a warp per row. By a whole block.
template <int V, typename T, typename A>
__device__ void fill_slots(const Work<T>& w, std::int64_t first, int count, const A* largest,
                           const RowSlots<A>& slots) {
  for (int row = warp_id(); row < count; row += kThreads / kWarp) {
    const A norm = w.a.normalize ? std::sqrt(squared_norm<V>(w.a.x + (first + row) * w.a.dim, w.a.dim)) : A{1};
    const A eps = static_cast<A>(w.a.eps);
    const A scale = A{1} / (w.a.normalize && norm < eps ? eps : norm);
#pragma unroll 1
    for (std::int64_t r = lane_id(); r < w.a.k; r += kWarp) {
      const std::int64_t from = (first + row) * w.a.k + r, to = row * w.a.k + r;
      const std::int64_t e = w.a.index[from];
      const bool valid = e >= 0 && e < w.a.num_experts;
      const A share = valid ? std::exp(widened(w.a.gate[from]) - largest[e]) : A{0};
      slots.share[to] = share;
      slots.factor[to] = share * scale;
      slots.expert[to] = valid ? static_cast<int>(e) : -1;
    }
  }
}

template <int V, typename T>
__global__ void __launch_bounds__(kThreads, sizeof(Accumulator<T>) == 8 ? 4 : 6) memory_sums_kernel(Work<T> w) {
  using A = Accumulator<T>;
  const std::int64_t experts = w.a.num_experts, slots_per_step = w.rows_per_step * w.a.k;
  DynamicShared shared;
  unsigned long long* bits = shared.take<unsigned long long>(experts);
  A* largest = shared.take<A>(experts);
  A* total = shared.take<A>(experts);
  A* sum = shared.take<A>(experts * w.columns);
  const RowSlots<A> slots{shared.take<A>(slots_per_step), shared.take<A>(slots_per_step),
                          shared.take<int>(slots_per_step)};
  for (std::int64_t i = threadIdx.x; i < experts * w.columns; i += kThreads) sum[i] = 0;
  for (std::int64_t e = threadIdx.x; e < experts; e += kThreads) total[e] = 0;
  largest_gates(w, bits, largest);
  __syncthreads();
  const std::int64_t from = w.first_column();
  const std::int64_t columns = w.a.dim - from < w.columns ? w.a.dim - from : w.columns;
  for (std::int64_t first = w.begin(); first < w.end(); first += w.rows_per_step) {
    const int count = static_cast<int>(w.end() - first < w.rows_per_step ? w.end() - first : w.rows_per_step);
    fill_slots<V>(w, first, count, largest, slots);
    __syncthreads();
    add_rows<(V > 1 ? 2 : 1)>(w.a.x + first * w.a.dim + from, w.a.dim, count, w.a.k, slots, columns, sum);
    add_shares(slots, count * w.a.k, experts, total);
    __syncthreads();
  }
#pragma unroll 1  // of loops around divisions and conversions copies cost registers that the sums need
  for (std::int64_t i = threadIdx.x; i < experts * columns; i += kThreads) {
    w.sums.numerator(w.chunk(), i / columns)[from + i % columns] = sum[i];
  }
  for (std::int64_t e = threadIdx.x; from == 0 && e < experts; e += kThreads) {
    *w.sums.denominator(w.chunk(), e) = total[e];
    *w.sums.largest(w.chunk(), e) = largest[e];
  }
}

// A block averages 32 columns of an expert: a warp adds a share of the chunks, a lane a column.
template <typename T>
__global__ void __launch_bounds__(kAverageWarps* kWarp) memory_average_kernel(MemoryAverage<T> a) {
  using A = Accumulator<T>;
  GMOE_SHARED_ARRAY(A, part, kAverageWarps * kWarp);
  GMOE_SHARED_ARRAY(A, part_total, kAverageWarps);
  const std::int64_t tiles = divide_up(a.sums.dim, kWarp), chunks = a.sums.chunks.count;
  const std::int64_t e = blockIdx.x / tiles, d = blockIdx.x % tiles * kWarp + lane_id();
  const bool active = d < a.sums.dim;
  A largest = -kInfinity<A>;
  for (std::int64_t c = lane_id(); c < chunks; c += kWarp) largest = std::fmax(largest, *a.sums.largest(c, e));
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    largest = std::fmax(largest, __shfl_xor_sync(kAllLanes, largest, lanes));
  }
  const std::int64_t per_warp = divide_up(chunks, kAverageWarps);
  const std::int64_t end = (warp_id() + 1) * per_warp < chunks ? (warp_id() + 1) * per_warp : chunks;
  A sum = 0, total = 0;
#pragma unroll 4
  for (std::int64_t c = warp_id() * per_warp; c < end; ++c) {
    const A top = *a.sums.largest(c, e);
    const A scale = top == -kInfinity<A> ? A{0} : std::exp(top - largest);
    total += scale * *a.sums.denominator(c, e);
    if (active) sum += scale * a.sums.numerator(c, e)[d];
  }
  part[threadIdx.x] = sum;
  if (lane_id() == 0) part_total[warp_id()] = total;
  __syncthreads();
  if (warp_id() > 0) return;
  sum = total = 0;
  for (int w = 0; w < kAverageWarps; ++w) {
    sum += part[w * kWarp + lane_id()];
    total += part_total[w];
  }
  const T* memory = a.memory + e * a.sums.dim;
  const A keep = static_cast<A>(a.rate) * inverse_norm(squared_norm<1>(memory, a.sums.dim), static_cast<A>(a.eps));
  // A row's share is positive, so only an expert without rows has total 0; NaN stays NaN.
  const A move = total == 0 ? A{0} : static_cast<A>(1 - a.rate) / total;
  if (active) a.out[e * a.sums.dim + d] = narrowed<T>(keep * widened(memory[d]) + move * sum);
}

template <int V, typename T>
void add_up(Work<T> w, Stream stream) {
  using A = Accumulator<T>;
  const std::int64_t experts = w.a.num_experts, width = V > 1 ? 2 : 1;
  const std::int64_t room = kMostSumBytes / (experts * static_cast<std::int64_t>(sizeof(A)));
  w.columns = std::min(w.a.dim, std::max(room / width, std::int64_t{1}) * width);
  w.rows_per_step = static_cast<int>(std::clamp<std::int64_t>(kMostSlotsPerStep / w.a.k, 1, kMostRowsPerStep));
  const std::int64_t slots = w.rows_per_step * w.a.k;
  launch("memory_update/sums", memory_sums_kernel<V, T>, w.sums.chunks.count * divide_up(w.a.dim, w.columns), kThreads,
         shared_bytes<unsigned long long, A, A, A, A, A, int>(experts, experts, experts, experts * w.columns, slots,
                                                              slots, slots),
         stream, w);
}

}  // namespace

template <typename T>
void average_memory(const MemoryAverage<T>& a, Stream stream) {
  if (a.sums.num_experts * a.sums.dim == 0) return;
  launch("memory_update/average", memory_average_kernel<T>, a.sums.num_experts * divide_up(a.sums.dim, kWarp),
         kAverageWarps * kWarp, 0, stream, a);
}

template <typename T>
std::int64_t memory_update_workspace(std::int64_t num_rows, std::int64_t dim, std::int64_t num_experts) {
  return MemorySums<Accumulator<T>>{memory_chunks(num_rows, num_experts), num_experts, dim, nullptr}.bytes();
}

template <typename T>
void memory_update(const MemoryUpdate<T>& a, const Call& call) {
  using A = Accumulator<T>;
  check_experts("memory_update", a.num_experts);
  const std::int64_t rows = a.num_experts * a.k > 0 ? a.num_rows : 0;
  const MemorySums<A> sums{memory_chunks(rows, a.num_experts), a.num_experts, a.dim, static_cast<A*>(call.workspace)};
  const Work<T> w{a, sums, 0, 0, call.bad_index};
  if (rows * a.dim > 0) {
    fits_packs<kPack<T>>(a.dim, a.x) ? add_up<kPack<T>>(w, call.stream) : add_up<1>(w, call.stream);
  }
  average_memory<T>({sums, a.memory, a.rate, a.eps, a.out}, call.stream);
}

#define GMOE_INSTANTIATE(T)                                                                   \
  template void average_memory(const MemoryAverage<T>&, Stream);                              \
  template std::int64_t memory_update_workspace<T>(std::int64_t, std::int64_t, std::int64_t); \
  template void memory_update(const MemoryUpdate<T>&, const Call&);
GMOE_INSTANTIATE(float)
GMOE_INSTANTIATE(double)
GMOE_INSTANTIATE(bfloat16)
#undef GMOE_INSTANTIATE

}  // namespace gmoe::core::cuda
