#include "ops/expert_norm.h"

namespace gmoe::ops {

void check_per_expert(const char* op, const char* name, const Tensor& t, const Tensor& weight, ScalarType dtype) {
  check_dim(op, name, t, 2);
  check(t.scalar_type() == dtype, op, ": expected '", name, "' of another dtype, to match 'y'");
  check_size(op, name, t, 0, weight.size(0), "'weight'");
  check_size(op, name, t, 1, weight.size(1), "'weight'");
}

void check_expert_norm(const char* op, const Tensor& y, const Tensor& index, const OptionalTensor& gate,
                       const Tensor& weight, const Tensor& bias) {
  check_dim(op, "y", y, 3);
  check_floating(op, "y", y);
  check_dim(op, "index", index, 2);
  check_index_dtype(op, "index", index);
  check_size(op, "index", index, 0, y.size(0), "'y'");
  check_size(op, "index", index, 1, y.size(1), "'y'");
  if (gate.has_value()) {
    check_dim(op, "gate", *gate, 2);
    check_same_dtype(op, "gate", *gate, "y", y);
    check_size(op, "gate", *gate, 0, y.size(0), "'y'");
    check_size(op, "gate", *gate, 1, y.size(1), "'y'");
  }
  check_dim(op, "weight", weight, 2);
  check_same_dtype(op, "weight", weight, "y", y);
  check_size(op, "weight", weight, 1, y.size(2), "'y'");
  check_per_expert(op, "bias", bias, weight, y.scalar_type());
}

void check_expert_norm_grad(const char* op, const Tensor& grad_out, const Tensor& y, const OptionalTensor& gate,
                            const Tensor& weight, const Tensor& count) {
  check_same_dtype(op, "grad_out", grad_out, "y", y);
  check_dim(op, "grad_out", grad_out, gate.has_value() ? 2 : 3);
  check_size(op, "grad_out", grad_out, 0, y.size(0), "'y'");
  if (!gate.has_value()) check_size(op, "grad_out", grad_out, 1, y.size(1), "'y'");
  check_size(op, "grad_out", grad_out, grad_out.dim() - 1, y.size(2), "'y'");
  check_dim(op, "count", count, 1);
  check_int64(op, "count", count);
  check_size(op, "count", count, 0, weight.size(0), "'weight'");
}

}  // namespace gmoe::ops

GMOE_SCHEMAS(m) {
  m.def(
      "expert_norm(Tensor y, Tensor index, Tensor weight, Tensor bias, Tensor running_mean, Tensor running_var, "
      "Tensor? gate, float eps) -> (Tensor out, Tensor mean, Tensor var, Tensor count)");
  m.def(
      "expert_norm_grad(Tensor grad_out, Tensor y, Tensor index, Tensor weight, Tensor bias, Tensor mean, Tensor var, "
      "Tensor count, Tensor? gate, float eps) -> (Tensor grad_y, Tensor grad_weight, Tensor grad_bias, "
      "Tensor grad_gate)");
}
