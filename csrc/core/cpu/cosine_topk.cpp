// Each row is read once from memory, in blocks whose lanes are rows; see cosine.h. The embeddings are normalised
// once per call. Floor: the time to read x.
#include "core/cosine_topk.h"

#include <cmath>
#include <vector>

#include "core/cpu/cosine.h"
#include "core/parallel.h"

namespace gmoe::core::GMOE_ISA {
template <typename T>
void cosine_topk(const CosineTopk<T>& a) {
  using A = Accumulator<T>;
  const A eps = static_cast<A>(a.eps);
  const Workspace<A> unit = unit_rows(a.memory, a.num_experts, a.dim, eps);
  parallel_for(a.num_rows, grain_rows(a.dim * (a.num_experts + 1)), [&](std::int64_t begin, std::int64_t end) {
    CosineBlock<T> block(unit.data(), a.num_experts, a.dim, a.k, eps);
    for (std::int64_t i = begin; i < end; i += block.kRows) block.route(a, i, end);
  });
}

// dcos_r = g_r (dg_r - sum_s g_s dg_s);  dx = (sum_r dcos_r (q_r - cos_r x^)) / |x|, without the x^ term where the norm
// was clamped. The cosines and gates are recomputed: they cost one read of a row that is needed anyway.
template <typename T>
void cosine_topk_grad_x(const CosineTopkGradX<T>& a) {
  using A = Accumulator<T>;
  const A eps = static_cast<A>(a.eps);
  const Workspace<A> unit = unit_rows(a.memory, a.num_experts, a.dim, eps);
  parallel_for(a.num_rows, grain_rows(2 * a.dim * (a.k + 1)), [&](std::int64_t begin, std::int64_t end) {
    std::vector<A> work(static_cast<std::size_t>(2 * a.k + a.dim));
    A* cosine = work.data();
    A* gate = cosine + a.k;
    A* sum = gate + a.k;
    for (std::int64_t i = begin; i < end; ++i) {
      const T* x = a.x + i * a.dim;
      const std::int64_t* index = a.index + i * a.k;
      const A norm = std::sqrt(squared_norm(x, a.dim));
      const bool clamped = norm < eps;
      const A scale = A{1} / (clamped ? eps : norm);
      for (std::int64_t r = 0; r < a.k; ++r) {
        const A* row = unit.data() + index[r] * a.dim;
        dot<1>(x, &row, a.dim, cosine + r);
        gate[r] = cosine[r] *= scale;
      }
      softmax_bounded(gate, a.k);
      A mean = 0;
      for (std::int64_t r = 0; r < a.k; ++r) mean += gate[r] * widen(a.grad_gate[i * a.k + r]);
      A along_x = 0;
      for (std::int64_t d = 0; d < a.dim; ++d) sum[d] = 0;
      for (std::int64_t r = 0; r < a.k; ++r) {
        const A grad_cosine = gate[r] * (widen(a.grad_gate[i * a.k + r]) - mean) * scale;
        along_x += grad_cosine * cosine[r];
        const A* row = unit.data() + index[r] * a.dim;
        for (std::int64_t d = 0; d < a.dim; ++d) sum[d] += grad_cosine * row[d];
      }
      const A shrink = clamped ? A{0} : along_x * scale;
      for (std::int64_t d = 0; d < a.dim; ++d) a.grad_x[i * a.dim + d] = narrow<T>(sum[d] - shrink * widen(x[d]));
    }
  });
}

template void cosine_topk(const CosineTopk<float>&);
template void cosine_topk(const CosineTopk<double>&);
template void cosine_topk(const CosineTopk<bfloat16>&);
template void cosine_topk_grad_x(const CosineTopkGradX<float>&);
template void cosine_topk_grad_x(const CosineTopkGradX<double>&);
template void cosine_topk_grad_x(const CosineTopkGradX<bfloat16>&);

}  // namespace gmoe::core::GMOE_ISA
