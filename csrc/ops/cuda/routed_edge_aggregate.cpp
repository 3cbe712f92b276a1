#include "core/routed_edge_aggregate.h"

#include "ops/cuda/routed_edges.h"

namespace gmoe::ops {
namespace {

Tensor routed_edge_aggregate(const Tensor& x, const Tensor& table, const Tensor& index, std::int64_t first_expert,
                             const Tensor& offsets, const Tensor& columns, const Tensor& edge_type,
                             const OptionalTensor& weight, const OptionalTensor&, const OptionalTensor&,
                             const OptionalTensor&, const OptionalTensor&) {
  constexpr const char* op = "gmoe::routed_edge_aggregate";
  check_routed_edge_aggregate(op, x, table, index, offsets, columns, edge_type, weight);
  DeviceCall call(op, x);
  const EdgesOnDevice in(op, call, x, table, index, first_expert, offsets, columns, edge_type, weight, false);
  Tensor y = new_like(in.x, {in.index.size(0), in.index.size(1), in.dim()});
  dispatch_rows(op, in.x, in.columns, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    const core::EdgeMessages<T, Index> messages = in.messages<T, Index>();
    core::cuda::routed_edge_aggregate<T, Index>({messages, mutable_data<T>(y)},
                                                in.launch(call, core::cuda::routed_edge_aggregate_workspace(messages)));
  });
  return y;
}

std::tuple<Tensor, Tensor> routed_edge_aggregate_grad(const Tensor& grad_y_in, const Tensor& x, const Tensor& table,
                                                      const Tensor& index, std::int64_t first_expert,
                                                      const Tensor& offsets, const Tensor& columns,
                                                      const Tensor& edge_type, const OptionalTensor& weight,
                                                      bool want_x, bool want_table) {
  constexpr const char* op = "gmoe::routed_edge_aggregate_grad";
  check_routed_edge_aggregate(op, x, table, index, offsets, columns, edge_type, weight);
  check_routed_edge_aggregate_grad_y(op, grad_y_in, x, index);
  DeviceCall call(op, x);
  const EdgesOnDevice in(op, call, x, table, index, first_expert, offsets, columns, edge_type, weight, true);
  const Tensor grad_y = call.read("grad_y", grad_y_in);
  const std::int64_t num_rows = want_x ? in.num_sources() : 0;
  Tensor grad_x =
      in.shared() ? new_like(in.x, {num_rows, in.dim()}) : new_like(in.x, {in.x.size(0), num_rows, in.dim()});
  Tensor grad_table = new_like(in.x, {in.table.size(0), want_table ? in.table.size(1) : 0, in.dim()});
  dispatch_rows(op, in.x, in.columns, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    const core::EdgeMessages<T, Index> messages = in.messages<T, Index>();
    core::cuda::routed_edge_aggregate_grad<T, Index>(
        {messages, data<T>(grad_y), want_x ? mutable_data<T>(grad_x) : nullptr,
         want_table ? mutable_data<T>(grad_table) : nullptr},
        in.launch(call, core::cuda::routed_edge_aggregate_grad_workspace(messages)));
  });
  return {grad_x, grad_table};
}

Tensor routed_edge_aggregate_grad_weight(const Tensor& grad_y_in, const Tensor& x, const Tensor& table,
                                         const Tensor& index, std::int64_t first_expert, const Tensor& offsets,
                                         const Tensor& columns, const Tensor& edge_type) {
  constexpr const char* op = "gmoe::routed_edge_aggregate_grad_weight";
  check_routed_edge_aggregate(op, x, table, index, offsets, columns, edge_type, std::nullopt);
  check_routed_edge_aggregate_grad_y(op, grad_y_in, x, index);
  DeviceCall call(op, x);
  const EdgesOnDevice in(op, call, x, table, index, first_expert, offsets, columns, edge_type, std::nullopt, false);
  const Tensor grad_y = call.read("grad_y", grad_y_in);
  Tensor grad_weight = new_like(in.x, {in.columns.size(0)}, accumulator_dtype(x.scalar_type()));
  dispatch_rows(op, in.x, in.columns, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    core::cuda::routed_edge_aggregate_grad_weight<T, Index>(
        {in.messages<T, Index>(), data<T>(grad_y), mutable_data<core::Accumulator<T>>(grad_weight)},
        in.launch(call, 0));
  });
  return grad_weight;
}

}  // namespace
}  // namespace gmoe::ops

GMOE_DEVICE_LIBRARY(m) {
  m.impl("routed_edge_aggregate", TORCH_BOX(&gmoe::ops::routed_edge_aggregate));
  m.impl("routed_edge_aggregate_grad", TORCH_BOX(&gmoe::ops::routed_edge_aggregate_grad));
  m.impl("routed_edge_aggregate_grad_weight", TORCH_BOX(&gmoe::ops::routed_edge_aggregate_grad_weight));
}
