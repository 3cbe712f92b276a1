#include "ops/aggregate.h"

namespace gmoe::ops {

void check_aggregate(const Tensor& x, const Tensor& offsets, const Tensor& columns, const OptionalTensor& weight) {
  constexpr const char* op = "gmoe::aggregate";
  check_dim(op, "x", x, 2);
  check_floating(op, "x", x);
  check_rows(op, offsets, columns);
  check_weight(op, weight, x, columns);
}

void check_aggregate_grad_weight(const Tensor& grad_y, const Tensor& x, const Tensor& offsets, const Tensor& columns) {
  constexpr const char* op = "gmoe::aggregate_grad_weight";
  check_dim(op, "x", x, 2);
  check_floating(op, "x", x);
  check_rows(op, offsets, columns);
  check_dim(op, "grad_y", grad_y, 2);
  check_same_dtype(op, "grad_y", grad_y, "x", x);
  check_size(op, "grad_y", grad_y, 0, offsets.size(0) - 1, "'offsets'");
  check_size(op, "grad_y", grad_y, 1, x.size(1), "'x'");
}

}  // namespace gmoe::ops

// The transpose of the rows serves the gradients alone: it is handed through to the backward pass.
GMOE_SCHEMAS(m) {
  m.def(
      "aggregate(Tensor x, Tensor offsets, Tensor columns, Tensor? weight, Tensor? transpose_offsets, "
      "Tensor? transpose_columns, Tensor? transpose_weight, Tensor? transpose_order) -> Tensor");
  m.def(
      "aggregate_grad_weight(Tensor grad_y, Tensor x, Tensor offsets, Tensor columns, Tensor? transpose_offsets, "
      "Tensor? transpose_columns, Tensor? transpose_order) -> Tensor");
}
