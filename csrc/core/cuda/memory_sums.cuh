// Sums behind the moving average of the expert embeddings: for each expert, sum of share * row and sum of share, first
// within chunks of rows, a block each, then over the chunks in their order (memory_update.cu).
//
// A block keeps the sums of its experts in shared memory. A thread owns some columns of all of them, so rows are added
// one after another without atomics and without barriers between them.
#pragma once

#include "core/cuda/primitives.cuh"

namespace gmoe::core::cuda {

inline constexpr std::int64_t kMostChunks = 3 * 132;  // blocks that an H100 holds at once
inline constexpr std::int64_t kLeastRowsPerChunk = 64;
inline constexpr std::int64_t kChunkRowsPerExpert = 4;   // keeps the sums of all chunks smaller than x
inline constexpr std::int64_t kMostSumBytes = 48 << 10;  // of one block

struct MemoryChunks {
  std::int64_t num_rows, rows_per_chunk, count;
};

inline MemoryChunks memory_chunks(std::int64_t num_rows, std::int64_t num_experts) {
  std::int64_t rows = divide_up(num_rows, kMostChunks);
  if (rows < kLeastRowsPerChunk) rows = kLeastRowsPerChunk;
  if (rows < kChunkRowsPerExpert * num_experts) rows = kChunkRowsPerExpert * num_experts;
  return {num_rows, rows, divide_up(num_rows, rows)};
}

// Sums of all chunks, in the workspace. Shares of a chunk are exp(gate - largest), so that any finite gate is safe.
template <typename A>
struct MemorySums {
  MemoryChunks chunks;
  std::int64_t num_experts, dim;
  A* workspace;

  __host__ __device__ std::int64_t rows() const { return chunks.count * num_experts; }
  __device__ A* numerator(std::int64_t chunk, std::int64_t e) const {
    return workspace + (chunk * num_experts + e) * dim;
  }
  __device__ A* denominator(std::int64_t chunk, std::int64_t e) const {
    return workspace + rows() * dim + chunk * num_experts + e;
  }
  // -inf where the chunk has no row of the expert.
  __device__ A* largest(std::int64_t chunk, std::int64_t e) const { return denominator(chunk, e) + rows(); }

  std::int64_t bytes() const { return rows() * (dim + 2) * static_cast<std::int64_t>(sizeof(A)); }
};

// What a few rows add, in shared memory: slot i * k + r is row i's choice r.
template <typename A>
struct RowSlots {
  A* share;
  A* factor;    // share / |row|, or share alone
  int* expert;  // -1: left out
};

// Adds factor * x to the sums of the experts, for columns [0, columns) of rows that lie dim apart. By a whole block.
template <int V, typename T, typename A>
__device__ void add_rows(const T* x, std::int64_t dim, int count, std::int64_t k, const RowSlots<A>& slots,
                         std::int64_t columns, A* sum) {
  constexpr int kRowsInFlight = 4;
  for (std::int64_t d = threadIdx.x * V; d < columns; d += blockDim.x * V) {
    for (int first = 0; first < count; first += kRowsInFlight) {
      Pack<T, V> row[kRowsInFlight];
#pragma unroll
      for (int u = 0; u < kRowsInFlight; ++u) {
        if (first + u < count) row[u] = load<V>(x + (first + u) * dim + d);
      }
#pragma unroll
      for (int u = 0; u < kRowsInFlight; ++u) {
        if (first + u >= count) break;
        for (std::int64_t s = (first + u) * k; s < (first + u + 1) * k; ++s) {
          if (slots.expert[s] < 0) continue;
          A* at = sum + slots.expert[s] * columns + d;
          Pack<A, V> total = load<V>(at);
#pragma unroll
          for (int v = 0; v < V; ++v) total.value[v] += slots.factor[s] * widened(row[u].value[v]);
          store<V>(at, total);
        }
      }
    }
  }
}

// Adds the shares of `count` slots to the totals of their experts. By a whole block.
template <typename A>
__device__ void add_shares(const RowSlots<A>& slots, std::int64_t count, std::int64_t num_experts, A* total) {
  for (std::int64_t e = threadIdx.x; e < num_experts; e += blockDim.x) {
    A sum = total[e];
    for (std::int64_t s = 0; s < count; ++s) sum += slots.expert[s] == e ? slots.share[s] : A{0};
    total[e] = sum;
  }
}

// out = rate * memory / |memory| + (1 - rate) * numerator / denominator, without the second term for an expert that has
// no rows.
template <typename T>
struct MemoryAverage {
  MemorySums<Accumulator<T>> sums;
  const T* memory;
  double rate, eps;
  T* out;
};
template <typename T>
void average_memory(const MemoryAverage<T>& a, Stream stream);

}  // namespace gmoe::core::cuda
