#include "ops/routed_edge_mixture.h"

namespace gmoe::ops {
namespace {

void check_matrix(const char* name, const OptionalTensor& t, const Tensor& x, std::int64_t rows, const char* because) {
  constexpr const char* op = "gmoe::routed_edge_mixture";
  if (!t.has_value()) return;
  check_dim(op, name, *t, 2);
  check_same_dtype(op, name, *t, "x", x);
  check_size(op, name, *t, 0, rows, because);
  check_size(op, name, *t, 1, x.size(x.dim() - 1), "'x'");
}

}  // namespace

void check_routed_edge_mixture(const Tensor& x, const Tensor& edge_table, const Tensor& index, const Tensor& gate,
                               const OptionalTensor& scale, const OptionalTensor& shift, const OptionalTensor& onto) {
  constexpr const char* op = "gmoe::routed_edge_mixture";
  check_dim(op, "gate", gate, 2);
  check_same_dtype(op, "gate", gate, "x", x);
  check_size(op, "gate", gate, 0, index.size(0), "'index'");
  check_size(op, "gate", gate, 1, index.size(1), "'index'");
  check(scale.has_value() == shift.has_value(), op, ": expected 'scale' and 'shift' together or neither");
  check_matrix("scale", scale, x, edge_table.size(0), "'edge_table'");
  check_matrix("shift", shift, x, edge_table.size(0), "'edge_table'");
  check_matrix("onto", onto, x, index.size(0), "'index'");
}

}  // namespace gmoe::ops

GMOE_SCHEMAS(m) {
  m.def(
      "routed_edge_mixture(Tensor x, Tensor edge_table, Tensor index, Tensor gate, Tensor? scale, Tensor? shift, "
      "Tensor? onto, int first_expert, Tensor offsets, Tensor columns, Tensor edge_type, Tensor? weight) -> Tensor");
}
