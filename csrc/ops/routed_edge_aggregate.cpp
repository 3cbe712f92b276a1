#include "core/routed_edge_aggregate.h"

#include "ops/routed_edges.h"

namespace gmoe::ops {
namespace {

void check_grad_y(const char* op, const Tensor& grad_y, const Tensor& x, const OptionalTensor& index) {
  check_dim(op, "grad_y", grad_y, 3);
  check_same_dtype(op, "grad_y", grad_y, "x", x);
  if (index) {
    check_dim(op, "index", *index, 2);
    check_size(op, "grad_y", grad_y, 0, index->size(0), "'index'");
    check_size(op, "grad_y", grad_y, 1, index->size(1), "'index'");
  } else {
    check_size(op, "grad_y", grad_y, 1, 1, "the one slot of each row");
  }
  check_size(op, "grad_y", grad_y, 2, x.size(x.dim() - 1), "'x'");
}

Tensor routed_edge_aggregate(const Tensor& x, const Tensor& table, const OptionalTensor& index,
                             std::int64_t first_expert, const Tensor& offsets, const Tensor& columns,
                             const Tensor& edge_type, const OptionalTensor& weight, const OptionalTensor&,
                             const OptionalTensor&, const OptionalTensor&, const OptionalTensor&) {
  const char* op = index ? "gmoe::routed_edge_aggregate" : "gmoe::edge_aggregate";
  check_routed_edges(op, x, table, index, offsets, columns, edge_type, weight);
  Call call(op, x);
  const RoutedEdges in = read_routed_edges(op, call, x, table, index, first_expert, offsets, columns, edge_type, weight,
                                           false, offsets.size(0) - 1);
  Tensor y = new_like(in.x, {in.num_destinations, in.k, in.dim()});
  dispatch_rows(op, in.x, in.columns, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    const core::RoutedEdgeAggregate<T, Index> a{.messages = in.messages<T, Index>(), .y = mutable_data<T>(y)};
    if constexpr (kOnDevice) {
      core::cuda::routed_edge_aggregate(a, call.launch(core::cuda::routed_edge_aggregate_workspace(a.messages)));
    } else {
      core::routed_edge_aggregate(a);
    }
  });
  return y;
}

std::tuple<Tensor, Tensor> routed_edge_aggregate_grad(const Tensor& grad_y_in, const Tensor& x, const Tensor& table,
                                                      const OptionalTensor& index, std::int64_t first_expert,
                                                      const Tensor& offsets, const Tensor& columns,
                                                      const Tensor& edge_type, const OptionalTensor& weight,
                                                      bool want_x, bool want_table) {
  const char* op = index ? "gmoe::routed_edge_aggregate_grad" : "gmoe::edge_aggregate_grad";
  check_routed_edges(op, x, table, index, offsets, columns, edge_type, weight);
  check_grad_y(op, grad_y_in, x, index);
  Call call(op, x);
  const RoutedEdges in = read_routed_edges(op, call, x, table, index, first_expert, offsets, columns, edge_type, weight,
                                           true, grad_y_in.size(0));
  const Tensor grad_y = call.read("grad_y", grad_y_in);
  const std::int64_t num_rows = want_x ? in.num_sources() : 0;
  Tensor grad_x =
      in.shared() ? new_like(in.x, {num_rows, in.dim()}) : new_like(in.x, {in.x.size(0), num_rows, in.dim()});
  Tensor grad_table = new_like(in.x, {in.table.size(0), want_table ? in.table.size(1) : 0, in.dim()});
  if (!want_x && !want_table) return {grad_x, grad_table};
  dispatch_rows(op, in.x, in.columns, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    const core::RoutedEdgeAggregateGrad<T, Index> a{.messages = in.messages<T, Index>(),
                                                    .grad_y = data<T>(grad_y),
                                                    .grad_x = want_x ? mutable_data<T>(grad_x) : nullptr,
                                                    .grad_table = want_table ? mutable_data<T>(grad_table) : nullptr};
    if constexpr (kOnDevice) {
      const std::int64_t bytes = core::cuda::routed_edge_aggregate_grad_workspace(a.messages);
      core::cuda::routed_edge_aggregate_grad(a, call.launch(bytes));
    } else {
      core::routed_edge_aggregate_grad(a);
    }
  });
  return {grad_x, grad_table};
}

Tensor routed_edge_aggregate_grad_weight(const Tensor& grad_y_in, const Tensor& x, const Tensor& table,
                                         const OptionalTensor& index, std::int64_t first_expert, const Tensor& offsets,
                                         const Tensor& columns, const Tensor& edge_type) {
  const char* op = index ? "gmoe::routed_edge_aggregate_grad_weight" : "gmoe::edge_aggregate_grad_weight";
  check_routed_edges(op, x, table, index, offsets, columns, edge_type, std::nullopt);
  check_grad_y(op, grad_y_in, x, index);
  Call call(op, x);
  const RoutedEdges in = read_routed_edges(op, call, x, table, index, first_expert, offsets, columns, edge_type,
                                           std::nullopt, false, grad_y_in.size(0));
  const Tensor grad_y = call.read("grad_y", grad_y_in);
  Tensor grad_weight = new_like(in.x, {in.num_edges()}, accumulator_dtype(x.scalar_type()));
  dispatch_rows(op, in.x, in.columns, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    const core::RoutedEdgeAggregateGradWeight<T, Index> a{
        .messages = in.messages<T, Index>(),
        .grad_y = data<T>(grad_y),
        .grad_weight = mutable_data<core::Accumulator<T>>(grad_weight)};
    if constexpr (kOnDevice) {
      core::cuda::routed_edge_aggregate_grad_weight(a, call.launch());
    } else {
      core::routed_edge_aggregate_grad_weight(a);
    }
  });
  return grad_weight;
}

}  // namespace
}  // namespace gmoe::ops

// The transpose of the rows serves the gradients of x and the table alone; routed_edge_aggregate_grad takes it as its
// rows. Without an index all rows go to the one expert of the table: edge_aggregate.
GMOE_SCHEMAS(m) {
  m.def(
      "routed_edge_aggregate(Tensor x, Tensor edge_table, Tensor? index, int first_expert, Tensor offsets, "
      "Tensor columns, Tensor edge_type, Tensor? weight, Tensor? transpose_offsets, Tensor? transpose_columns, "
      "Tensor? transpose_edge_type, Tensor? transpose_weight) -> Tensor");
  m.def(
      "routed_edge_aggregate_grad(Tensor grad_y, Tensor x, Tensor edge_table, Tensor? index, int first_expert, "
      "Tensor offsets, Tensor columns, Tensor edge_type, Tensor? weight, bool want_x, bool want_table) "
      "-> (Tensor grad_x, Tensor grad_edge_table)");
  m.def(
      "routed_edge_aggregate_grad_weight(Tensor grad_y, Tensor x, Tensor edge_table, Tensor? index, int first_expert, "
      "Tensor offsets, Tensor columns, Tensor edge_type) -> Tensor");
}

GMOE_OPERATORS(m) {
  m.impl("routed_edge_aggregate", TORCH_BOX(&gmoe::ops::routed_edge_aggregate));
  m.impl("routed_edge_aggregate_grad", TORCH_BOX(&gmoe::ops::routed_edge_aggregate_grad));
  m.impl("routed_edge_aggregate_grad_weight", TORCH_BOX(&gmoe::ops::routed_edge_aggregate_grad_weight));
}
