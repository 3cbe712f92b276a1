#include "core/routed_edge_mixture.h"

#include "ops/routed_edges.h"

namespace gmoe::ops {
namespace {

void check_matrix(const char* op, const char* name, const OptionalTensor& t, const Tensor& x, std::int64_t rows,
                  const char* because) {
  if (!t) return;
  check_dim(op, name, *t, 2);
  check_same_dtype(op, name, *t, "x", x);
  check_size(op, name, *t, 0, rows, because);
  check_size(op, name, *t, 1, x.size(x.dim() - 1), "'x'");
}

Tensor routed_edge_mixture(const Tensor& x, const Tensor& table, const Tensor& index, const Tensor& gate_in,
                           const OptionalTensor& scale_in, const OptionalTensor& shift_in,
                           const OptionalTensor& onto_in, std::int64_t first_expert, const Tensor& offsets,
                           const Tensor& columns, const Tensor& edge_type, const OptionalTensor& weight) {
  constexpr const char* op = "gmoe::routed_edge_mixture";
  check_routed_edges(op, x, table, index, offsets, columns, edge_type, weight);
  check_shape_like(op, "gate", gate_in, index, "'index'");
  check_same_dtype(op, "gate", gate_in, "x", x);
  check(scale_in.has_value() == shift_in.has_value(), op, ": expected 'scale' and 'shift' together or neither");
  check_matrix(op, "scale", scale_in, x, table.size(0), "'edge_table'");
  check_matrix(op, "shift", shift_in, x, table.size(0), "'edge_table'");
  check_matrix(op, "onto", onto_in, x, index.size(0), "'index'");
  Call call(op, x);
  const RoutedEdges in = read_routed_edges(op, call, x, table, index, first_expert, offsets, columns, edge_type, weight,
                                           false, index.size(0));
  const Tensor gate = call.read("gate", gate_in);
  const OptionalTensor scale = call.read("scale", scale_in), shift = call.read("shift", shift_in);
  const OptionalTensor onto = call.read("onto", onto_in);
  Tensor y = new_like(in.x, {in.num_destinations, in.dim()});
  dispatch_rows(op, in.x, in.columns, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    const core::RoutedEdgeMixture<T, Index> a{.messages = in.messages<T, Index>(),
                                              .gate = data<T>(gate),
                                              .scale = data<T>(scale),
                                              .shift = data<T>(shift),
                                              .onto = data<T>(onto),
                                              .y = mutable_data<T>(y)};
    if constexpr (kOnDevice) {
      core::cuda::routed_edge_mixture(a, call.launch(core::cuda::routed_edge_mixture_workspace(a.messages)));
    } else {
      core::routed_edge_mixture(a);
    }
  });
  return y;
}

}  // namespace
}  // namespace gmoe::ops

GMOE_SCHEMAS(m) {
  m.def(
      "routed_edge_mixture(Tensor x, Tensor edge_table, Tensor index, Tensor gate, Tensor? scale, Tensor? shift, "
      "Tensor? onto, int first_expert, Tensor offsets, Tensor columns, Tensor edge_type, Tensor? weight) -> Tensor");
}

GMOE_OPERATORS(m) { m.impl("routed_edge_mixture", TORCH_BOX(&gmoe::ops::routed_edge_mixture)); }
