// A warp routes 4 rows at a time, see cosine.cuh; the embeddings are read through the first-level cache, their norms
// are taken once per block. Floor: the time to read x.
#include "core/cosine_topk.h"

#include <algorithm>

#include "core/cuda/cosine.cuh"

namespace gmoe::core::cuda {
namespace {

constexpr std::int64_t kMaxBlocks = 3 * 132;  // what an H100 holds at once; blocks go on with further rows
constexpr int kMaxRouteWarps = 4;
constexpr int kGradWarps = 8;
constexpr int kChosenPerPass = 4;

// 3 blocks of 4 warps on a multiprocessor have 168 registers a thread, which the 32 sums and what feeds them need.
template <int V, typename T>
__global__ void __launch_bounds__(kMaxRouteWarps* kWarp, sizeof(Accumulator<T>) == 8 ? 2 : 3)
    cosine_topk_kernel(CosineTopk<T> a) {
  using A = Accumulator<T>;
  DynamicShared shared;
  A* score = shared.take<A>(warps_per_block() * kRowsPerWarp * a.num_experts);
  A* top = shared.take<A>(warps_per_block() * kRowsPerWarp * a.k);
  A* expert_scale = shared.take<A>(a.num_experts);
  score += warp_id() * kRowsPerWarp * a.num_experts;
  top += warp_id() * kRowsPerWarp * a.k;
  inverse_norms<V>(a.memory, a.num_experts, a.dim, static_cast<A>(a.eps), expert_scale);
  __syncthreads();
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * warps_per_block() * kRowsPerWarp;
  std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * warps_per_block() + warp_id()) * kRowsPerWarp;
  for (; first < a.num_rows; first += step) {
    const int count = static_cast<int>(a.num_rows - first < kRowsPerWarp ? a.num_rows - first : kRowsPerWarp);
    cosines<V>(a, a.x + first * a.dim, count, expert_scale, score, static_cast<A*>(nullptr));
    __syncwarp();
    write_top_k<T>(score, top, count, a.num_experts, a.k, a.gate + first * a.k, a.index + first * a.k);
  }
}

// What the gradient keeps of a chosen expert, in shared memory.
template <typename A>
struct Chosen {
  A cosine, gradient;  // gradient of the cosine over |x|
  A scale;             // 1 / max(|q|, eps), or 0 where the index is bad
};

// Dots with, and squared norms of, the chosen experts of a row, a few in one pass over the row.
template <int V, typename T, typename A>
__device__ void chosen_cosines(const CosineTopkGradX<T>& a, const T* x, const std::int64_t* index, A x_scale,
                               Chosen<A>* chosen) {
  for (std::int64_t first = 0; first < a.k; first += kChosenPerPass) {
    A dot[kChosenPerPass] = {}, square[kChosenPerPass] = {};
    const T* row[kChosenPerPass];
    bool valid[kChosenPerPass];
#pragma unroll
    for (int c = 0; c < kChosenPerPass; ++c) {
      const std::int64_t e = index[first + c < a.k ? first + c : a.k - 1];
      valid[c] = e >= 0 && e < a.num_experts;
      row[c] = a.memory + (valid[c] ? e : 0) * a.dim;
    }
    for (std::int64_t d = lane_id() * V; d < a.dim; d += kWarp * V) {
      const Pack<T, V> own = load<V>(x + d);
#pragma unroll
      for (int c = 0; c < kChosenPerPass; ++c) {
        const Pack<T, V> pack = load<V>(row[c] + d);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          dot[c] += widened(own.value[v]) * widened(pack.value[v]);
          square[c] += widened(pack.value[v]) * widened(pack.value[v]);
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kChosenPerPass; ++c) {
      const A scale = inverse_norm(warp_sum(square[c]), static_cast<A>(a.eps));
      const A cosine = warp_sum(dot[c]) * x_scale * scale;
      if (lane_id() == c && first + c < a.k) chosen[first + c] = {valid[c] ? cosine : A{0}, 0, valid[c] ? scale : A{0}};
    }
  }
}

// dcos_r = g_r (dg_r - sum_s g_s dg_s);  dx = (sum_r dcos_r (q_r - cos_r x^)) / |x|, without the x^ term where the norm
// was clamped. Cosines and gates are recomputed: they cost one read of a row that is needed anyway. A warp per row.
template <int V, typename T>
__global__ void cosine_topk_grad_x_kernel(CosineTopkGradX<T> a, BadIndex* bad) {
  using A = Accumulator<T>;
  DynamicShared shared;
  Chosen<A>* chosen = shared.take<Chosen<A>>(kGradWarps * a.k) + warp_id() * a.k;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kGradWarps + warp_id();
  if (i >= a.num_rows) return;
  const int lane = lane_id();
  const T* x = a.x + i * a.dim;
  const std::int64_t* index = a.index + i * a.k;
  const T* grad_gate = a.grad_gate + i * a.k;
  const A square = squared_norm<V>(x, a.dim);
  const A scale = inverse_norm(square, static_cast<A>(a.eps));
  const bool clamped = std::sqrt(square) < static_cast<A>(a.eps);
  chosen_cosines<V>(a, x, index, scale, chosen);
  __syncwarp();
  // Every lane makes the same sums in the same order.
  A sum = 0, mean = 0, along_x = 0;
  for (std::int64_t r = 0; r < a.k; ++r) sum += std::exp(chosen[r].cosine);
  for (std::int64_t r = 0; r < a.k; ++r) mean += std::exp(chosen[r].cosine) / sum * widened(grad_gate[r]);
  for (std::int64_t r = lane; r < a.k; r += kWarp) {
    if (!check_index(index[r], a.num_experts, i * a.k + r, bad)) continue;
    chosen[r].gradient = std::exp(chosen[r].cosine) / sum * (widened(grad_gate[r]) - mean) * scale;
  }
  __syncwarp();
  for (std::int64_t r = 0; r < a.k; ++r) along_x += chosen[r].gradient * chosen[r].cosine;
  const A shrink = clamped ? A{0} : along_x * scale;
  for (std::int64_t d = lane * V; d < a.dim; d += kWarp * V) {
    A out[V] = {};
    for (std::int64_t r = 0; r < a.k; ++r) {
      if (chosen[r].scale == 0) continue;
      const Pack<T, V> pack = load<V>(a.memory + index[r] * a.dim + d);
#pragma unroll
      for (int v = 0; v < V; ++v) out[v] += chosen[r].gradient * (chosen[r].scale * widened(pack.value[v]));
    }
    const Pack<T, V> own = load<V>(x + d);
    Pack<T, V> result;
#pragma unroll
    for (int v = 0; v < V; ++v) result.value[v] = narrowed<T>(out[v] - shrink * widened(own.value[v]));
    store<V>(a.grad_x + i * a.dim + d, result);
  }
}

template <int V, typename T>
void route(const CosineTopk<T>& a, const Call& call) {
  using A = Accumulator<T>;
  const int warps = std::min(kMaxRouteWarps, router_warps(a.num_experts));
  const std::int64_t needed = divide_up(a.num_rows, warps * kRowsPerWarp);
  launch("cosine_topk", cosine_topk_kernel<V, T>, needed < kMaxBlocks ? needed : kMaxBlocks, warps * kWarp,
         router_bytes<A>(a.num_experts, a.k, warps) + shared_bytes<A>(a.num_experts), call.stream, a);
}

template <int V, typename T>
void grad_x(const CosineTopkGradX<T>& a, const Call& call) {
  launch("cosine_topk_grad_x", cosine_topk_grad_x_kernel<V, T>, divide_up(a.num_rows, kGradWarps), kGradWarps * kWarp,
         shared_bytes<Chosen<Accumulator<T>>>(kGradWarps * a.k), call.stream, a, call.bad_index);
}

}  // namespace

template <typename T>
void cosine_topk(const CosineTopk<T>& a, const Call& call) {
  check_experts("cosine_topk", a.num_experts);
  if (a.num_rows == 0) return;
  if (fits_packs<kPack<T>>(a.dim, a.x, a.memory)) return route<kPack<T>>(a, call);
  route<1>(a, call);
}

template <typename T>
void cosine_topk_grad_x(const CosineTopkGradX<T>& a, const Call& call) {
  check_experts("cosine_topk", a.num_experts);
  if (a.num_rows == 0) return;
  if (fits_packs<kPack<T>>(a.dim, a.x, a.memory, a.grad_x)) return grad_x<kPack<T>>(a, call);
  grad_x<1>(a, call);
}

template void cosine_topk(const CosineTopk<float>&, const Call&);
template void cosine_topk(const CosineTopk<double>&, const Call&);
template void cosine_topk(const CosineTopk<bfloat16>&, const Call&);
template void cosine_topk_grad_x(const CosineTopkGradX<float>&, const Call&);
template void cosine_topk_grad_x(const CosineTopkGradX<double>&, const Call&);
template void cosine_topk_grad_x(const CosineTopkGradX<bfloat16>&, const Call&);

}  // namespace gmoe::core::cuda
