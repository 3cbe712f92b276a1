#include "core/edge_aggregate.h"

#include "ops/edge_aggregate.h"

namespace gmoe::ops {
namespace {

// Dense tensors whose indices are known to be in range.
struct Inputs {
  Tensor x, table, offsets, columns, edge_type;
  OptionalTensor weight;
  std::int64_t num_sources, num_destinations;

  template <typename T, typename Index>
  core::EdgeAggregate<T, Index> arguments() const {
    return {data<T>(x),
            data<T>(table),
            data<std::int64_t>(offsets),
            data<Index>(columns),
            data<Index>(edge_type),
            data<core::Accumulator<T>>(weight),
            num_sources,
            num_destinations,
            columns.size(0),
            table.size(0),
            x.size(1)};
  }
};

// num_columns bounds the columns: sources in the forward pass, destinations in the gradient of x and table.
Inputs checked(const char* op, const Tensor& x, const Tensor& table, const Tensor& offsets, const Tensor& columns,
               const Tensor& edge_type, const OptionalTensor& weight, std::int64_t num_columns,
               std::int64_t num_destinations) {
  check_edge_aggregate(op, x, table, offsets, columns, edge_type, weight);
  Inputs in{dense(x),         dense(table),  dense(offsets), dense(columns),
            dense(edge_type), dense(weight), x.size(0),      num_destinations};
  check_row_values(op, in.offsets, in.columns, num_columns);
  check_indices(op, "edge_type", in.edge_type, table.size(0));
  return in;
}

Tensor edge_aggregate(const Tensor& x, const Tensor& table, const Tensor& offsets, const Tensor& columns,
                      const Tensor& edge_type, const OptionalTensor& weight, const OptionalTensor&,
                      const OptionalTensor&, const OptionalTensor&, const OptionalTensor&) {
  constexpr const char* op = "gmoe::edge_aggregate";
  check_dim(op, "x", x, 2);
  check_dim(op, "offsets", offsets, 1);
  const Inputs in = checked(op, x, table, offsets, columns, edge_type, weight, x.size(0), offsets.size(0) - 1);
  Tensor y = new_like(in.x, {in.num_destinations, in.x.size(1)});
  dispatch_rows(op, in.x, in.columns, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    core::edge_aggregate(in.arguments<T, Index>(), mutable_data<T>(y));
  });
  return y;
}

std::tuple<Tensor, Tensor> edge_aggregate_grad(const Tensor& grad_y_in, const Tensor& x, const Tensor& table,
                                               const Tensor& offsets, const Tensor& columns, const Tensor& edge_type,
                                               const OptionalTensor& weight, bool want_x, bool want_table) {
  constexpr const char* op = "gmoe::edge_aggregate_grad";
  check_edge_aggregate_grad_y(op, grad_y_in, x);
  const Tensor grad_y = dense(grad_y_in);
  const Inputs in = checked(op, x, table, offsets, columns, edge_type, weight, grad_y.size(0), grad_y.size(0));
  check_size(op, "offsets", in.offsets, 0, in.num_sources + 1, "'x'");
  const std::int64_t dim = in.x.size(1);
  Tensor grad_x = new_like(in.x, {want_x ? in.num_sources : 0, dim});
  Tensor grad_table = new_like(in.x, {want_table ? in.table.size(0) : 0, dim});
  dispatch_rows(op, in.x, in.columns, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    core::edge_aggregate_grad(in.arguments<T, Index>(), data<T>(grad_y), want_x ? mutable_data<T>(grad_x) : nullptr,
                              want_table ? mutable_data<T>(grad_table) : nullptr);
  });
  return {grad_x, grad_table};
}

Tensor edge_aggregate_grad_weight(const Tensor& grad_y_in, const Tensor& x, const Tensor& table, const Tensor& offsets,
                                  const Tensor& columns, const Tensor& edge_type) {
  constexpr const char* op = "gmoe::edge_aggregate_grad_weight";
  check_edge_aggregate_grad_y(op, grad_y_in, x);
  const Tensor grad_y = dense(grad_y_in);
  const Inputs in = checked(op, x, table, offsets, columns, edge_type, std::nullopt, x.size(0), grad_y.size(0));
  check_size(op, "grad_y", grad_y, 0, in.offsets.size(0) - 1, "'offsets'");
  Tensor grad_weight = new_like(in.x, {in.columns.size(0)}, accumulator_dtype(x.scalar_type()));
  dispatch_rows(op, in.x, in.columns, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    core::edge_aggregate_grad_weight(in.arguments<T, Index>(), data<T>(grad_y),
                                     mutable_data<core::Accumulator<T>>(grad_weight));
  });
  return grad_weight;
}

}  // namespace
}  // namespace gmoe::ops

STABLE_TORCH_LIBRARY_IMPL(gmoe, CPU, m) {
  m.impl("edge_aggregate", TORCH_BOX(&gmoe::ops::edge_aggregate));
  m.impl("edge_aggregate_grad", TORCH_BOX(&gmoe::ops::edge_aggregate_grad));
  m.impl("edge_aggregate_grad_weight", TORCH_BOX(&gmoe::ops::edge_aggregate_grad_weight));
}
