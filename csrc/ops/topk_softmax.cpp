#include "ops/topk_softmax.h"

namespace gmoe::ops {

void check_topk_softmax(const Tensor& logits, std::int64_t k) {
  constexpr const char* op = "gmoe::topk_softmax";
  check_dim(op, "logits", logits, 2);
  check_floating(op, "logits", logits);
  check(k >= 1 && k <= logits.size(1), op, ": expected 1 <= k <= ", logits.size(1), " experts, got ", k);
}

void check_topk_softmax_grad_logits(const Tensor& grad_gate, const Tensor& gate, const Tensor& index,
                                    std::int64_t num_experts) {
  constexpr const char* op = "gmoe::topk_softmax_grad_logits";
  check_dim(op, "gate", gate, 2);
  check_floating(op, "gate", gate);
  check_dim(op, "grad_gate", grad_gate, 2);
  check_same_dtype(op, "grad_gate", grad_gate, "gate", gate);
  check_dim(op, "index", index, 2);
  check_int64(op, "index", index);
  for (std::int64_t d = 0; d < 2; ++d) {
    check_size(op, "grad_gate", grad_gate, d, gate.size(d), "'gate'");
    check_size(op, "index", index, d, gate.size(d), "'gate'");
  }
  check(num_experts >= gate.size(1), op, ": expected 'num_experts' >= k = ", gate.size(1), ", got ", num_experts);
}

}  // namespace gmoe::ops

GMOE_SCHEMAS(m) {
  m.def("topk_softmax(Tensor logits, int k) -> (Tensor gate, Tensor index)");
  m.def("topk_softmax_grad_logits(Tensor grad_gate, Tensor gate, Tensor index, int num_experts) -> Tensor");
}
