#include "ops/cosine_topk.h"

namespace gmoe::ops {

void check_cosine_topk(const char* op, const Tensor& x, const Tensor& memory, std::int64_t k) {
  check_dim(op, "x", x, 2);
  check_dim(op, "memory", memory, 2);
  check_floating(op, "x", x);
  check_same_dtype(op, "memory", memory, "x", x);
  check_size(op, "memory", memory, 1, x.size(1), "'x'");
  check(k >= 1 && k <= memory.size(0), op, ": expected 1 <= k <= ", memory.size(0), " experts, got ", k);
}

void check_cosine_topk_grad_x(const Tensor& grad_gate, const Tensor& x, const Tensor& memory, const Tensor& index) {
  constexpr const char* op = "gmoe::cosine_topk_grad_x";
  check_dim(op, "index", index, 2);
  check_int64(op, "index", index);
  check_cosine_topk(op, x, memory, index.size(1));
  check_dim(op, "grad_gate", grad_gate, 2);
  check_same_dtype(op, "grad_gate", grad_gate, "x", x);
  check_size(op, "index", index, 0, x.size(0), "'x'");
  check_size(op, "grad_gate", grad_gate, 0, x.size(0), "'x'");
  check_size(op, "grad_gate", grad_gate, 1, index.size(1), "'index'");
}

}  // namespace gmoe::ops

GMOE_SCHEMAS(m) {
  m.def("cosine_topk(Tensor x, Tensor memory, int k, float eps) -> (Tensor gate, Tensor index)");
  m.def("cosine_topk_grad_x(Tensor grad_gate, Tensor x, Tensor memory, Tensor index, float eps) -> Tensor");
}
