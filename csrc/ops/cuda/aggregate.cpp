#include "core/aggregate.h"

#include "ops/aggregate.h"
#include "ops/cuda/rows.h"

namespace gmoe::ops {
namespace {

Tensor aggregate(const Tensor& x_in, const Tensor& offsets, const Tensor& columns, const OptionalTensor& weight_in,
                 const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&) {
  constexpr const char* op = "gmoe::aggregate";
  check_aggregate(x_in, offsets, columns, weight_in);
  DeviceCall call(op, x_in);
  const Tensor x = call.read("x", x_in);
  const DeviceRows rows = read_rows(op, call, offsets, columns);
  const OptionalTensor weight = call.read("weight", weight_in);
  Tensor y = new_like(x, {rows.num_rows(), x.size(1)});
  dispatch_rows(op, x, rows.columns, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    core::cuda::aggregate<T, Index>(
        {data<T>(x), data<std::int64_t>(rows.offsets), data<Index>(rows.columns), data<core::Accumulator<T>>(weight),
         rows.num_rows(), rows.num_edges(), x.size(1), mutable_data<T>(y)},
        x.size(0),
        call.launch(core::cuda::aggregate_workspace<T>(rows.num_rows(), rows.num_edges(), x.size(1)),
                    {{"columns", rows.num_edges(), x.size(0)}}, kRisingOffsets));
  });
  return y;
}

Tensor aggregate_grad_weight(const Tensor& grad_y_in, const Tensor& x_in, const Tensor& offsets, const Tensor& columns,
                             const OptionalTensor&, const OptionalTensor&, const OptionalTensor&) {
  constexpr const char* op = "gmoe::aggregate_grad_weight";
  check_aggregate_grad_weight(grad_y_in, x_in, offsets, columns);
  DeviceCall call(op, x_in);
  const Tensor grad_y = call.read("grad_y", grad_y_in), x = call.read("x", x_in);
  const DeviceRows rows = read_rows(op, call, offsets, columns);
  Tensor grad_weight = new_like(x, {rows.num_edges()}, accumulator_dtype(x.scalar_type()));
  dispatch_rows(op, x, rows.columns, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    core::cuda::aggregate_grad_weight<T, Index>(
        {data<T>(grad_y), data<T>(x), data<std::int64_t>(rows.offsets), data<Index>(rows.columns), rows.num_rows(),
         rows.num_edges(), x.size(1), mutable_data<core::Accumulator<T>>(grad_weight)},
        x.size(0), call.launch(0, {{"columns", rows.num_edges(), x.size(0)}}, kRisingOffsets));
  });
  return grad_weight;
}

}  // namespace
}  // namespace gmoe::ops

GMOE_DEVICE_LIBRARY(m) {
  m.impl("aggregate", TORCH_BOX(&gmoe::ops::aggregate));
  m.impl("aggregate_grad_weight", TORCH_BOX(&gmoe::ops::aggregate_grad_weight));
}
