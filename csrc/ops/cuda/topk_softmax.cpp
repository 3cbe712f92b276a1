#include "core/topk_softmax.h"

#include "ops/cuda/call.h"
#include "ops/topk_softmax.h"

namespace gmoe::ops {
namespace {

std::tuple<Tensor, Tensor> topk_softmax(const Tensor& logits_in, std::int64_t k) {
  constexpr const char* op = "gmoe::topk_softmax";
  check_topk_softmax(logits_in, k);
  DeviceCall call(op, logits_in);
  const Tensor logits = call.read("logits", logits_in);
  Tensor gate = new_like(logits, {logits.size(0), k});
  Tensor index = new_like(logits, {logits.size(0), k}, ScalarType::Long);
  dispatch_floating(op, logits.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    core::cuda::topk_softmax<T>(
        {data<T>(logits), logits.size(0), logits.size(1), k, mutable_data<T>(gate), mutable_data<std::int64_t>(index)},
        call.launch());
  });
  return {gate, index};
}

Tensor topk_softmax_grad_logits(const Tensor& grad_gate_in, const Tensor& gate_in, const Tensor& index_in,
                                std::int64_t num_experts) {
  constexpr const char* op = "gmoe::topk_softmax_grad_logits";
  check_topk_softmax_grad_logits(grad_gate_in, gate_in, index_in, num_experts);
  DeviceCall call(op, gate_in);
  const Tensor grad_gate = call.read("grad_gate", grad_gate_in), gate = call.read("gate", gate_in);
  const Tensor index = call.read("index", index_in);
  Tensor grad_logits = new_like(gate, {gate.size(0), num_experts});
  dispatch_floating(op, gate.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    core::cuda::topk_softmax_grad_logits<T>({data<T>(grad_gate), data<T>(gate), data<std::int64_t>(index), gate.size(0),
                                             num_experts, gate.size(1), mutable_data<T>(grad_logits)},
                                            call.launch(0, {{"index", index.numel(), num_experts}}));
  });
  return grad_logits;
}

}  // namespace
}  // namespace gmoe::ops

GMOE_DEVICE_LIBRARY(m) {
  m.impl("topk_softmax", TORCH_BOX(&gmoe::ops::topk_softmax));
  m.impl("topk_softmax_grad_logits", TORCH_BOX(&gmoe::ops::topk_softmax_grad_logits));
}
