#include "ops/edge_aggregate.h"

namespace gmoe::ops {

void check_edge_aggregate(const char* op, const Tensor& x, const Tensor& edge_table, const Tensor& offsets,
                          const Tensor& columns, const Tensor& edge_type, const OptionalTensor& weight) {
  check_dim(op, "x", x, 2);
  check_floating(op, "x", x);
  check_dim(op, "edge_table", edge_table, 2);
  check_same_dtype(op, "edge_table", edge_table, "x", x);
  check_size(op, "edge_table", edge_table, 1, x.size(1), "'x'");
  check_rows(op, offsets, columns);
  check_edge_type(op, edge_type, columns);
  check_weight(op, weight, x, columns);
}

void check_edge_aggregate_grad_y(const char* op, const Tensor& grad_y, const Tensor& x) {
  check_dim(op, "x", x, 2);
  check_dim(op, "grad_y", grad_y, 2);
  check_same_dtype(op, "grad_y", grad_y, "x", x);
  check_size(op, "grad_y", grad_y, 1, x.size(1), "'x'");
}

}  // namespace gmoe::ops

// The transpose of the rows serves the gradients of x and the table alone; edge_aggregate_grad takes it as its rows.
GMOE_SCHEMAS(m) {
  m.def(
      "edge_aggregate(Tensor x, Tensor edge_table, Tensor offsets, Tensor columns, Tensor edge_type, Tensor? weight, "
      "Tensor? transpose_offsets, Tensor? transpose_columns, Tensor? transpose_edge_type, Tensor? transpose_weight) "
      "-> Tensor");
  m.def(
      "edge_aggregate_grad(Tensor grad_y, Tensor x, Tensor edge_table, Tensor offsets, Tensor columns, "
      "Tensor edge_type, Tensor? weight, bool want_x, bool want_table) -> (Tensor grad_x, Tensor grad_edge_table)");
  m.def(
      "edge_aggregate_grad_weight(Tensor grad_y, Tensor x, Tensor edge_table, Tensor offsets, Tensor columns, "
      "Tensor edge_type) -> Tensor");
}
