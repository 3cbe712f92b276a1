#include "core/edge_aggregate.h"

#include "ops/cuda/rows.h"
#include "ops/edge_aggregate.h"

namespace gmoe::ops {
namespace {

// Dense tensors on the device of a call.
struct Inputs {
  Tensor x, table;
  DeviceRows rows;
  Tensor edge_type;
  OptionalTensor weight;
  std::int64_t num_columns, num_destinations;

  template <typename T, typename Index>
  core::EdgeAggregate<T, Index> arguments() const {
    return {data<T>(x),
            data<T>(table),
            data<std::int64_t>(rows.offsets),
            data<Index>(rows.columns),
            data<Index>(edge_type),
            data<core::Accumulator<T>>(weight),
            x.size(0),
            num_destinations,
            rows.num_edges(),
            table.size(0),
            x.size(1)};
  }
  core::cuda::Call launch(DeviceCall& call, std::int64_t workspace_bytes) const {
    const std::int64_t n = rows.num_edges();
    return call.launch(workspace_bytes, {{"columns", n, num_columns}, {"edge_type", n, table.size(0)}}, kRisingOffsets);
  }
};

// num_columns bounds the columns: sources in the forward pass, destinations in the gradient of x and table.
Inputs read_inputs(const char* op, const DeviceCall& call, const Tensor& x, const Tensor& table, const Tensor& offsets,
                   const Tensor& columns, const Tensor& edge_type, const OptionalTensor& weight,
                   std::int64_t num_columns, std::int64_t num_destinations) {
  return {call.read("x", x),
          call.read("edge_table", table),
          read_rows(op, call, offsets, columns),
          call.read("edge_type", edge_type),
          call.read("weight", weight),
          num_columns,
          num_destinations};
}

Tensor edge_aggregate(const Tensor& x, const Tensor& table, const Tensor& offsets, const Tensor& columns,
                      const Tensor& edge_type, const OptionalTensor& weight, const OptionalTensor&,
                      const OptionalTensor&, const OptionalTensor&, const OptionalTensor&) {
  constexpr const char* op = "gmoe::edge_aggregate";
  check_edge_aggregate(op, x, table, offsets, columns, edge_type, weight);
  DeviceCall call(op, x);
  const Inputs in =
      read_inputs(op, call, x, table, offsets, columns, edge_type, weight, x.size(0), offsets.size(0) - 1);
  Tensor y = new_like(in.x, {in.num_destinations, in.x.size(1)});
  dispatch_rows(op, in.x, in.rows.columns, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    const auto a = in.arguments<T, Index>();
    core::cuda::edge_aggregate(a, mutable_data<T>(y), in.launch(call, core::cuda::edge_aggregate_workspace(a)));
  });
  return y;
}

std::tuple<Tensor, Tensor> edge_aggregate_grad(const Tensor& grad_y_in, const Tensor& x, const Tensor& table,
                                               const Tensor& offsets, const Tensor& columns, const Tensor& edge_type,
                                               const OptionalTensor& weight, bool want_x, bool want_table) {
  constexpr const char* op = "gmoe::edge_aggregate_grad";
  check_edge_aggregate_grad_y(op, grad_y_in, x);
  check_edge_aggregate(op, x, table, offsets, columns, edge_type, weight);
  check_size(op, "offsets", offsets, 0, x.size(0) + 1, "'x'");
  DeviceCall call(op, x);
  const Tensor grad_y = call.read("grad_y", grad_y_in);
  const Inputs in =
      read_inputs(op, call, x, table, offsets, columns, edge_type, weight, grad_y.size(0), grad_y.size(0));
  const std::int64_t dim = in.x.size(1);
  Tensor grad_x = new_like(in.x, {want_x ? in.x.size(0) : 0, dim});
  Tensor grad_table = new_like(in.x, {want_table ? in.table.size(0) : 0, dim});
  dispatch_rows(op, in.x, in.rows.columns, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    const auto a = in.arguments<T, Index>();
    core::cuda::edge_aggregate_grad(a, data<T>(grad_y), want_x ? mutable_data<T>(grad_x) : nullptr,
                                    want_table ? mutable_data<T>(grad_table) : nullptr,
                                    in.launch(call, core::cuda::edge_aggregate_grad_workspace(a)));
  });
  return {grad_x, grad_table};
}

Tensor edge_aggregate_grad_weight(const Tensor& grad_y_in, const Tensor& x, const Tensor& table, const Tensor& offsets,
                                  const Tensor& columns, const Tensor& edge_type) {
  constexpr const char* op = "gmoe::edge_aggregate_grad_weight";
  check_edge_aggregate_grad_y(op, grad_y_in, x);
  check_edge_aggregate(op, x, table, offsets, columns, edge_type, std::nullopt);
  check_size(op, "grad_y", grad_y_in, 0, offsets.size(0) - 1, "'offsets'");
  DeviceCall call(op, x);
  const Tensor grad_y = call.read("grad_y", grad_y_in);
  const Inputs in =
      read_inputs(op, call, x, table, offsets, columns, edge_type, std::nullopt, x.size(0), grad_y.size(0));
  Tensor grad_weight = new_like(in.x, {in.rows.num_edges()}, accumulator_dtype(x.scalar_type()));
  dispatch_rows(op, in.x, in.rows.columns, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    core::cuda::edge_aggregate_grad_weight(in.arguments<T, Index>(), data<T>(grad_y),
                                           mutable_data<core::Accumulator<T>>(grad_weight), in.launch(call, 0));
  });
  return grad_weight;
}

}  // namespace
}  // namespace gmoe::ops

GMOE_DEVICE_LIBRARY(m) {
  m.impl("edge_aggregate", TORCH_BOX(&gmoe::ops::edge_aggregate));
  m.impl("edge_aggregate_grad", TORCH_BOX(&gmoe::ops::edge_aggregate_grad));
  m.impl("edge_aggregate_grad_weight", TORCH_BOX(&gmoe::ops::edge_aggregate_grad_weight));
}
