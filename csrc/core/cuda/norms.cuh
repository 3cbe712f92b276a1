// Norms of rows, a warp each.
#pragma once

#include "core/cuda/primitives.cuh"

namespace gmoe::core::cuda {

template <typename A>
__device__ A inverse_norm(A squared_norm, A eps) {
  const A norm = std::sqrt(squared_norm);
  return A{1} / (norm < eps ? eps : norm);
}

template <int V, typename T, typename A = Accumulator<T>>
__device__ A squared_norm(const T* row, std::int64_t dim) {
  A sum = 0;
  for (std::int64_t d = lane_id() * V; d < dim; d += kWarp * V) {
    const Pack<T, V> pack = load<V>(row + d);
#pragma unroll
    for (int v = 0; v < V; ++v) sum += widened(pack.value[v]) * widened(pack.value[v]);
  }
  return warp_sum(sum);
}

}  // namespace gmoe::core::cuda
