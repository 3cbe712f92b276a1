// A warp takes a few rows: their logits are one piece of memory, which its lanes read together; see top_k.cuh for the
// choice. Floor: the time to read the logits and write gates and indices.
#include "core/topk_softmax.h"

#include "core/cuda/top_k.cuh"

namespace gmoe::core::cuda {
namespace {

constexpr int kGradThreads = 256;

template <typename T>
__global__ void topk_softmax_kernel(TopkSoftmax<T> a) {
  using A = Accumulator<T>;
  DynamicShared shared;
  A* score = shared.take<A>(warps_per_block() * kRowsPerWarp * a.num_experts);
  A* top = shared.take<A>(warps_per_block() * kRowsPerWarp * a.k);
  score += warp_id() * kRowsPerWarp * a.num_experts;
  top += warp_id() * kRowsPerWarp * a.k;
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * warps_per_block() + warp_id()) * kRowsPerWarp;
  if (first >= a.num_rows) return;
  const int count = static_cast<int>(a.num_rows - first < kRowsPerWarp ? a.num_rows - first : kRowsPerWarp);
  for (std::int64_t i = lane_id(); i < count * a.num_experts; i += kWarp) {
    score[i] = widened(a.logits[first * a.num_experts + i]);
  }
  __syncwarp();
  write_top_k<T>(score, top, count, a.num_experts, a.k, a.gate + first * a.k, a.index + first * a.k);
}

// dlogit_r = g_r (dg_r - sum_s g_s dg_s) for the chosen experts, exact zeros elsewhere. Gates that were rounded to
// bfloat16 do not add up to 1; without the division the difference would carry that error of the whole dg. A lane takes
// an output, so that stores are whole lines; the k slots of its row are in the first-level cache.
template <typename T>
__global__ void topk_softmax_grad_logits_kernel(TopkSoftmaxGradLogits<T> a, BadIndex* bad) {
  using A = Accumulator<T>;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= a.num_rows * a.num_experts) return;
  const std::int64_t row = i / a.num_experts, e = i % a.num_experts;
  A mean = 0, sum = 0, gate = 0, grad = 0;
  bool chosen = false;
  for (std::int64_t s = row * a.k; s < (row + 1) * a.k; ++s) {
    const A g = widened(a.gate[s]), dg = widened(a.grad_gate[s]);
    mean += g * dg;
    sum += g;
    if (a.index[s] == e) {
      chosen = true;
      gate = g;
      grad = dg;
    }
    if (e == 0) check_index(a.index[s], a.num_experts, s, bad);
  }
  if constexpr (std::is_same_v<T, bfloat16>) mean /= sum;
  a.grad_logits[i] = narrowed<T>(chosen ? gate * (grad - mean) : A{0});
}

}  // namespace

template <typename T>
void topk_softmax(const TopkSoftmax<T>& a, const Call& call) {
  check_experts("topk_softmax", a.num_experts);
  if (a.num_rows == 0) return;
  const int warps = router_warps(a.num_experts);
  launch("topk_softmax", topk_softmax_kernel<T>, divide_up(a.num_rows, warps * kRowsPerWarp), warps * kWarp,
         router_bytes<Accumulator<T>>(a.num_experts, a.k, warps), call.stream, a);
}

template <typename T>
void topk_softmax_grad_logits(const TopkSoftmaxGradLogits<T>& a, const Call& call) {
  if (a.num_rows * a.num_experts == 0) return;
  launch("topk_softmax_grad_logits", topk_softmax_grad_logits_kernel<T>,
         divide_up(a.num_rows * a.num_experts, kGradThreads), kGradThreads, 0, call.stream, a, call.bad_index);
}

template void topk_softmax(const TopkSoftmax<float>&, const Call&);
template void topk_softmax(const TopkSoftmax<double>&, const Call&);
template void topk_softmax(const TopkSoftmax<bfloat16>&, const Call&);
template void topk_softmax_grad_logits(const TopkSoftmaxGradLogits<float>&, const Call&);
template void topk_softmax_grad_logits(const TopkSoftmaxGradLogits<double>&, const Call&);
template void topk_softmax_grad_logits(const TopkSoftmaxGradLogits<bfloat16>&, const Call&);

}  // namespace gmoe::core::cuda
