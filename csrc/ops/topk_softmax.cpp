#include "core/topk_softmax.h"

#include "ops/call.h"

namespace gmoe::ops {
namespace {

std::tuple<Tensor, Tensor> topk_softmax(const Tensor& logits_in, std::int64_t k) {
  constexpr const char* op = "gmoe::topk_softmax";
  check_dim(op, "logits", logits_in, 2);
  check_floating(op, "logits", logits_in);
  check_k(op, k, logits_in.size(1));
  Call call(op, logits_in);
  const Tensor logits = call.read("logits", logits_in);
  Tensor gate = new_like(logits, {logits.size(0), k});
  Tensor index = new_like(logits, {logits.size(0), k}, ScalarType::Long);
  dispatch_floating(op, logits.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const core::TopkSoftmax<T> a{.logits = data<T>(logits),
                                 .num_rows = logits.size(0),
                                 .num_experts = logits.size(1),
                                 .k = k,
                                 .gate = mutable_data<T>(gate),
                                 .index = mutable_data<std::int64_t>(index)};
    if constexpr (kOnDevice) {
      core::cuda::topk_softmax(a, call.launch());
    } else {
      core::topk_softmax(a);
    }
  });
  return {gate, index};
}

Tensor topk_softmax_grad_logits(const Tensor& grad_gate_in, const Tensor& gate_in, const Tensor& index_in,
                                std::int64_t num_experts) {
  constexpr const char* op = "gmoe::topk_softmax_grad_logits";
  check_dim(op, "gate", gate_in, 2);
  check_floating(op, "gate", gate_in);
  check_shape_like(op, "grad_gate", grad_gate_in, gate_in, "'gate'");
  check_same_dtype(op, "grad_gate", grad_gate_in, "gate", gate_in);
  check_shape_like(op, "index", index_in, gate_in, "'gate'");
  check_int64(op, "index", index_in);
  check(num_experts >= gate_in.size(1), op, ": expected 'num_experts' >= k = ", gate_in.size(1), ", got ", num_experts);
  Call call(op, gate_in);
  const Tensor grad_gate = call.read("grad_gate", grad_gate_in), gate = call.read("gate", gate_in);
  const Tensor index = call.read("index", index_in);
  call.follow("index", index, num_experts);
  Tensor grad_logits = new_like(gate, {gate.size(0), num_experts});
  dispatch_floating(op, gate.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const core::TopkSoftmaxGradLogits<T> a{.grad_gate = data<T>(grad_gate),
                                           .gate = data<T>(gate),
                                           .index = data<std::int64_t>(index),
                                           .num_rows = gate.size(0),
                                           .num_experts = num_experts,
                                           .k = gate.size(1),
                                           .grad_logits = mutable_data<T>(grad_logits)};
    if constexpr (kOnDevice) {
      core::cuda::topk_softmax_grad_logits(a, call.launch());
    } else {
      core::topk_softmax_grad_logits(a);
    }
  });
  return grad_logits;
}

}  // namespace
}  // namespace gmoe::ops

GMOE_SCHEMAS(m) {
  m.def("topk_softmax(Tensor logits, int k) -> (Tensor gate, Tensor index)");
  m.def("topk_softmax_grad_logits(Tensor grad_gate, Tensor gate, Tensor index, int num_experts) -> Tensor");
}

GMOE_OPERATORS(m) {
  m.impl("topk_softmax", TORCH_BOX(&gmoe::ops::topk_softmax));
  m.impl("topk_softmax_grad_logits", TORCH_BOX(&gmoe::ops::topk_softmax_grad_logits));
}
