// Rows are independent; each is read once and its k best are kept sorted by insertion, which is faster than a heap for
// the few experts of a router. Floor: the time to read the logits.
#include "core/topk_softmax.h"

#include <cmath>
#include <type_traits>
#include <vector>

#include "core/cpu/top_k.h"
#include "core/parallel.h"

namespace gmoe::core::GMOE_ISA {
namespace {

// In place, descending values: the first is the largest, or NaN, which makes the whole row NaN.
template <typename A>
void softmax_descending(A* value, std::int64_t k) {
  const A largest = value[0];
  A sum = 0;
  for (std::int64_t r = 0; r < k; ++r) sum += value[r] = std::exp(value[r] - largest);
  for (std::int64_t r = 0; r < k; ++r) value[r] /= sum;
}

}  // namespace

template <typename T>
void topk_softmax(const TopkSoftmax<T>& a) {
  using A = Accumulator<T>;
  parallel_for(a.num_rows, grain_rows(a.num_experts * 4), [&](std::int64_t begin, std::int64_t end) {
    std::vector<A> work(static_cast<std::size_t>(a.num_experts + a.k));
    A* logits = work.data();
    A* top = logits + a.num_experts;
    for (std::int64_t i = begin; i < end; ++i) {
      for (std::int64_t e = 0; e < a.num_experts; ++e) logits[e] = widen(a.logits[i * a.num_experts + e]);
      select_top(logits, a.num_experts, a.k, top, a.index + i * a.k);
      softmax_descending(top, a.k);
      for (std::int64_t r = 0; r < a.k; ++r) a.gate[i * a.k + r] = narrow<T>(top[r]);
    }
  });
}

// dlogit_r = g_r (dg_r - sum_s g_s dg_s) for the chosen experts, exact zeros elsewhere. Gates that were rounded to
// bfloat16 do not add up to 1; without the division the difference would carry that error of the whole dg.
template <typename T>
void topk_softmax_grad_logits(const TopkSoftmaxGradLogits<T>& a) {
  using A = Accumulator<T>;
  parallel_for(a.num_rows, grain_rows(a.num_experts + 4 * a.k), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const T* gate = a.gate + i * a.k;
      const T* grad_gate = a.grad_gate + i * a.k;
      T* out = a.grad_logits + i * a.num_experts;
      A mean = 0, sum = 0;
      for (std::int64_t r = 0; r < a.k; ++r) {
        mean += widen(gate[r]) * widen(grad_gate[r]);
        sum += widen(gate[r]);
      }
      if constexpr (std::is_same_v<T, bfloat16>) mean /= sum;
      for (std::int64_t e = 0; e < a.num_experts; ++e) out[e] = narrow<T>(A{0});
      for (std::int64_t r = 0; r < a.k; ++r) {
        out[a.index[i * a.k + r]] = narrow<T>(widen(gate[r]) * (widen(grad_gate[r]) - mean));
      }
    }
  });
}

template void topk_softmax(const TopkSoftmax<float>&);
template void topk_softmax(const TopkSoftmax<double>&);
template void topk_softmax(const TopkSoftmax<bfloat16>&);
template void topk_softmax_grad_logits(const TopkSoftmaxGradLogits<float>&);
template void topk_softmax_grad_logits(const TopkSoftmaxGradLogits<double>&);
template void topk_softmax_grad_logits(const TopkSoftmaxGradLogits<bfloat16>&);

}  // namespace gmoe::core::GMOE_ISA
