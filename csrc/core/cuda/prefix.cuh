// Prefix sums: over the threads of a block, and of the lengths of rows, which become their offsets.
#pragma once

#include "core/cuda/primitives.cuh"

namespace gmoe::core::cuda {

// Sum of `value` over the threads before this one, and over all; warp_total holds a value for each warp. By a whole
// block, which may use warp_total again at once.
inline __device__ std::int64_t sum_before(std::int64_t value, std::int64_t* warp_total, std::int64_t* block_total) {
  const std::int64_t sum = warp_prefix_sum(value);
  if (lane_id() == kWarp - 1) warp_total[warp_id()] = sum;
  __syncthreads();
  std::int64_t before = 0, total = 0;
  for (int w = 0; w < warps_per_block(); ++w) {
    before += w < warp_id() ? warp_total[w] : 0;
    total += warp_total[w];
  }
  __syncthreads();
  *block_total = total;
  return before + sum - value;
}

inline constexpr int kPrefixThreads = 256;
inline constexpr std::int64_t kPrefixChunk = 8 * kPrefixThreads;  // of a block

// chunk_sum[c] = sum of the values of chunk c.
template <typename N>
__global__ void chunk_sums_kernel(const N* value, std::int64_t n, N* chunk_sum) {
  GMOE_SHARED_ARRAY(std::int64_t, warp_total, kPrefixThreads / kWarp);
  const std::int64_t first = blockIdx.x * kPrefixChunk, last = first + kPrefixChunk < n ? first + kPrefixChunk : n;
  std::int64_t own = 0, total;
  for (std::int64_t i = first + threadIdx.x; i < last; i += kPrefixThreads) own += value[i];
  sum_before(own, warp_total, &total);
  if (threadIdx.x == 0) chunk_sum[blockIdx.x] = total;
}

// Each value becomes the sum up to and with it; values of chunk c go on from `before[c]`, or from 0.
template <typename N>
__global__ void prefix_sums_kernel(N* value, std::int64_t n, std::int64_t chunk, const N* before) {
  GMOE_SHARED_ARRAY(std::int64_t, warp_total, kPrefixThreads / kWarp);
  const std::int64_t begin = blockIdx.x * chunk, end = begin + chunk < n ? begin + chunk : n;
  std::int64_t carried = before != nullptr && blockIdx.x > 0 ? before[blockIdx.x - 1] : 0;
  for (std::int64_t first = begin; first < end; first += kPrefixThreads) {
    const std::int64_t i = first + threadIdx.x, own = i < end ? value[i] : 0;
    std::int64_t total;
    const std::int64_t sum = carried + sum_before(own, warp_total, &total) + own;
    if (i < end) value[i] = sum;
    carried += total;
  }
}

inline std::int64_t offsets_workspace(std::int64_t num_rows) {
  return divide_up(num_rows, kPrefixChunk) * static_cast<std::int64_t>(sizeof(std::int64_t));
}

// offsets[i + 1] holds the length of row i and becomes its end; offsets[0] becomes 0.
inline void lengths_to_offsets(std::int64_t* offsets, std::int64_t num_rows, void* workspace, Stream stream) {
  fill_zero(offsets, sizeof(std::int64_t), stream);
  const std::int64_t chunks = divide_up(num_rows, kPrefixChunk);
  if (chunks == 0) return;
  auto* chunk_sum = static_cast<std::int64_t*>(workspace);
  launch("offsets/chunk_sums", chunk_sums_kernel<std::int64_t>, chunks, kPrefixThreads, 0, stream, offsets + 1,
         num_rows, chunk_sum);
  launch("offsets/chunks", prefix_sums_kernel<std::int64_t>, 1, kPrefixThreads, 0, stream, chunk_sum, chunks, chunks,
         nullptr);
  launch("offsets", prefix_sums_kernel<std::int64_t>, chunks, kPrefixThreads, 0, stream, offsets + 1, num_rows,
         kPrefixChunk, chunk_sum);
}

}  // namespace gmoe::core::cuda
