// Cosines of a few rows with all experts, by a warp. Dot products of 4 rows with 8 experts stand in registers as 32
// sums per lane; each expert's values are used for 4 rows once loaded, and x comes from memory once, 16 bytes a lane.
// One transposing reduction then gives lane l the dot product of row l / 8 with expert l % 8.
#pragma once

#include "core/cuda/norms.cuh"
#include "core/cuda/top_k.cuh"

namespace gmoe::core::cuda {

inline constexpr int kExpertsPerPass = kWarp / kRowsPerWarp;

// scale[e] = 1 / max(|memory_e|, eps), by a whole block; visible after its next barrier.
template <int V, typename T, typename A = Accumulator<T>>
__device__ void inverse_norms(const T* memory, std::int64_t num_experts, std::int64_t dim, A eps, A* scale) {
  for (std::int64_t e = warp_id(); e < num_experts; e += warps_per_block()) {
    const A sum = squared_norm<V>(memory + e * dim, dim);
    if (lane_id() == 0) scale[e] = inverse_norm(sum, eps);
  }
}

// score[row, e] for `count` <= kRowsPerWarp rows from x on, and row_scale[row] = 1 / max(|x_row|, eps) where not null.
// By a whole warp; visible to its lanes after a __syncwarp.
template <int V, typename T, typename A = Accumulator<T>>
__device__ void cosines(const CosineTopk<T>& a, const T* x, int count, const A* expert_scale, A* score, A* row_scale) {
  const int lane = lane_id();
  const A eps = static_cast<A>(a.eps);
  A scale[kRowsPerWarp];
  for (std::int64_t first = 0; first < a.num_experts; first += kExpertsPerPass) {
    A dot[kWarp] = {};
    A square[kRowsPerWarp] = {};
    for (std::int64_t d = lane * V; d < a.dim; d += kWarp * V) {
      A value[kRowsPerWarp][V];
#pragma unroll
      for (int row = 0; row < kRowsPerWarp; ++row) {
        // Rows past the end are the last one again.
        const Pack<T, V> pack = load<V>(x + (row < count ? row : count - 1) * a.dim + d);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          value[row][v] = widened(pack.value[v]);
          square[row] += value[row][v] * value[row][v];
        }
      }
#pragma unroll
      for (int b = 0; b < kExpertsPerPass; ++b) {
        const std::int64_t e = first + b < a.num_experts ? first + b : a.num_experts - 1;
        const Pack<T, V> pack = load<V>(a.memory + e * a.dim + d);
#pragma unroll
        for (int row = 0; row < kRowsPerWarp; ++row) {
#pragma unroll
          for (int v = 0; v < V; ++v) dot[row * kExpertsPerPass + b] += value[row][v] * widened(pack.value[v]);
        }
      }
    }
    if (first == 0) {
#pragma unroll
      for (int row = 0; row < kRowsPerWarp; ++row) scale[row] = inverse_norm(warp_sum(square[row]), eps);
    }
    const A sum = warp_sum_32(dot);
    const int row = lane / kExpertsPerPass;
    const std::int64_t e = first + lane % kExpertsPerPass;
    A own = scale[0];
#pragma unroll
    for (int r = 1; r < kRowsPerWarp; ++r) own = row == r ? scale[r] : own;
    if (row < count && e < a.num_experts) score[row * a.num_experts + e] = sum * own * expert_scale[e];
    if (row_scale != nullptr && first == 0 && row < count && lane % kExpertsPerPass == 0) row_scale[row] = own;
  }
}

}  // namespace gmoe::core::cuda
