#include "core/topk_softmax.h"

#include "ops/topk_softmax.h"

namespace gmoe::ops {
namespace {

std::tuple<Tensor, Tensor> topk_softmax(const Tensor& logits_in, std::int64_t k) {
  check_topk_softmax(logits_in, k);
  const Tensor logits = dense(logits_in);
  Tensor gate = new_like(logits, {logits.size(0), k});
  Tensor index = new_like(logits, {logits.size(0), k}, ScalarType::Long);
  dispatch_floating("gmoe::topk_softmax", logits.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    core::topk_softmax<T>(
        {data<T>(logits), logits.size(0), logits.size(1), k, mutable_data<T>(gate), mutable_data<std::int64_t>(index)});
  });
  return {gate, index};
}

Tensor topk_softmax_grad_logits(const Tensor& grad_gate_in, const Tensor& gate_in, const Tensor& index_in,
                                std::int64_t num_experts) {
  constexpr const char* op = "gmoe::topk_softmax_grad_logits";
  check_topk_softmax_grad_logits(grad_gate_in, gate_in, index_in, num_experts);
  const Tensor grad_gate = dense(grad_gate_in), gate = dense(gate_in), index = dense(index_in);
  check_indices(op, "index", index, num_experts);
  Tensor grad_logits = new_like(gate, {gate.size(0), num_experts});
  dispatch_floating(op, gate.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    core::topk_softmax_grad_logits<T>({data<T>(grad_gate), data<T>(gate), data<std::int64_t>(index), gate.size(0),
                                       num_experts, gate.size(1), mutable_data<T>(grad_logits)});
  });
  return grad_logits;
}

}  // namespace
}  // namespace gmoe::ops

STABLE_TORCH_LIBRARY_IMPL(gmoe, CPU, m) {
  m.impl("topk_softmax", TORCH_BOX(&gmoe::ops::topk_softmax));
  m.impl("topk_softmax_grad_logits", TORCH_BOX(&gmoe::ops::topk_softmax_grad_logits));
}
