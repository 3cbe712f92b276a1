#include "core/cosine_topk.h"

#include "ops/cosine_topk.h"

namespace gmoe::ops {
namespace {

std::tuple<Tensor, Tensor> cosine_topk(const Tensor& x_in, const Tensor& memory_in, std::int64_t k, double eps) {
  constexpr const char* op = "gmoe::cosine_topk";
  check_cosine_topk(op, x_in, memory_in, k);
  const Tensor x = dense(x_in), memory = dense(memory_in);
  Tensor gate = new_like(x, {x.size(0), k});
  Tensor index = new_like(x, {x.size(0), k}, ScalarType::Long);
  dispatch_floating(op, x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    core::cosine_topk<T>({data<T>(x), data<T>(memory), x.size(0), x.size(1), memory.size(0), k, eps,
                          mutable_data<T>(gate), mutable_data<std::int64_t>(index)});
  });
  return {gate, index};
}

Tensor cosine_topk_grad_x(const Tensor& grad_gate_in, const Tensor& x_in, const Tensor& memory_in,
                          const Tensor& index_in, double eps) {
  constexpr const char* op = "gmoe::cosine_topk_grad_x";
  check_cosine_topk_grad_x(grad_gate_in, x_in, memory_in, index_in);
  const Tensor grad_gate = dense(grad_gate_in), x = dense(x_in), memory = dense(memory_in), index = dense(index_in);
  check_indices(op, "index", index, memory.size(0));
  Tensor grad_x = new_like(x, {x.size(0), x.size(1)});
  dispatch_floating(op, x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    core::cosine_topk_grad_x<T>({data<T>(grad_gate), data<T>(x), data<T>(memory), data<std::int64_t>(index), x.size(0),
                                 x.size(1), memory.size(0), index.size(1), eps, mutable_data<T>(grad_x)});
  });
  return grad_x;
}

}  // namespace
}  // namespace gmoe::ops

STABLE_TORCH_LIBRARY_IMPL(gmoe, CPU, m) {
  m.impl("cosine_topk", TORCH_BOX(&gmoe::ops::cosine_topk));
  m.impl("cosine_topk_grad_x", TORCH_BOX(&gmoe::ops::cosine_topk_grad_x));
}
