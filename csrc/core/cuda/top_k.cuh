// The k best scores of a row and their softmax, for routers: descending, NaN first, ties to the lower expert.
//
// A warp works on a few rows whose scores stand in shared memory. Every score counts how many of its row rank above it;
// those counts are the places of the sorted order, so nothing is sorted and any k works.
#pragma once

#include "core/cuda/primitives.cuh"

namespace gmoe::core::cuda {

// Scores a warp works on at once, and so its shared memory: score and top have `rows * num_experts` and `rows * k`.
inline constexpr int kRowsPerWarp = 4;

// Warps per block, such that scores of at most kMaxExperts experts fit.
inline int router_warps(std::int64_t num_experts) { return num_experts <= 128 ? 8 : num_experts <= 512 ? 2 : 1; }

template <typename A>
std::size_t router_bytes(std::int64_t num_experts, std::int64_t k, int warps) {
  return shared_bytes<A, A>(warps * kRowsPerWarp * num_experts, warps * kRowsPerWarp * k);
}

// NaN ranks above every number, as in torch.sort.
template <typename A>
__device__ bool ranks_above(A a, A b) {
  return a > b || (a != a && b == b);
}

template <typename A>
__device__ std::int64_t rank_of(const A* score, std::int64_t num_experts, std::int64_t e) {
  const A own = score[e];
  std::int64_t rank = 0;
  for (std::int64_t other = 0; other < e; ++other) rank += ranks_above(own, score[other]) ? 0 : 1;
  for (std::int64_t other = e + 1; other < num_experts; ++other) rank += ranks_above(score[other], own) ? 1 : 0;
  return rank;
}

// Writes gate and index of `count` rows. By a whole warp, whose scores are complete and visible to its lanes.
template <typename T, typename A = Accumulator<T>>
__device__ void write_top_k(const A* score, A* top, int count, std::int64_t num_experts, std::int64_t k, T* gate,
                            std::int64_t* index) {
  for (std::int64_t i = lane_id(); i < count * num_experts; i += kWarp) {
    const std::int64_t row = i / num_experts, e = i % num_experts;
    const std::int64_t rank = rank_of(score + row * num_experts, num_experts, e);
    if (rank < k) {
      top[row * k + rank] = score[i];
      index[row * k + rank] = e;
    }
  }
  __syncwarp();
  for (std::int64_t s = lane_id(); s < count * k; s += kWarp) {
    // The largest comes first, or NaN, which makes the whole row NaN.
    const A* row = top + s / k * k;
    A sum = 0;
    for (std::int64_t r = 0; r < k; ++r) sum += std::exp(row[r] - row[0]);
    gate[s] = narrowed<T>(std::exp(top[s] - row[0]) / sum);
  }
}

}  // namespace gmoe::core::cuda
