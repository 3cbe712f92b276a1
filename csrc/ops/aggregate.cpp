#include "core/aggregate.h"

#include "ops/call.h"

namespace gmoe::ops {
namespace {

Tensor aggregate(const Tensor& x_in, const Tensor& offsets_in, const Tensor& columns_in,
                 const OptionalTensor& weight_in, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                 const OptionalTensor&) {
  constexpr const char* op = "gmoe::aggregate";
  check_dim(op, "x", x_in, 2);
  check_floating(op, "x", x_in);
  check_rows(op, offsets_in, columns_in);
  check_weight(op, weight_in, x_in, columns_in);
  Call call(op, x_in);
  const Tensor x = call.read("x", x_in);
  const Tensor offsets = call.read("offsets", offsets_in), columns = call.read("columns", columns_in);
  const OptionalTensor weight = call.read("weight", weight_in);
  call.follow_rows(offsets, columns, x.size(0));
  Tensor y = new_like(x, {offsets.size(0) - 1, x.size(1)});
  dispatch_rows(op, x, columns, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    const core::Aggregate<T, Index> a{.x = data<T>(x),
                                      .offsets = data<std::int64_t>(offsets),
                                      .columns = data<Index>(columns),
                                      .weight = data<core::Accumulator<T>>(weight),
                                      .num_rows = offsets.size(0) - 1,
                                      .num_edges = columns.size(0),
                                      .dim = x.size(1),
                                      .y = mutable_data<T>(y)};
    if constexpr (kOnDevice) {
      const std::int64_t bytes = core::cuda::aggregate_workspace<T>(a.num_rows, a.num_edges, a.dim);
      core::cuda::aggregate(a, x.size(0), call.launch(bytes));
    } else {
      core::aggregate(a, x.size(0));
    }
  });
  return y;
}

Tensor aggregate_grad_weight(const Tensor& grad_y_in, const Tensor& x_in, const Tensor& offsets_in,
                             const Tensor& columns_in, const OptionalTensor&, const OptionalTensor&,
                             const OptionalTensor&) {
  constexpr const char* op = "gmoe::aggregate_grad_weight";
  check_dim(op, "x", x_in, 2);
  check_floating(op, "x", x_in);
  check_rows(op, offsets_in, columns_in);
  check_dim(op, "grad_y", grad_y_in, 2);
  check_same_dtype(op, "grad_y", grad_y_in, "x", x_in);
  check_size(op, "grad_y", grad_y_in, 0, offsets_in.size(0) - 1, "'offsets'");
  check_size(op, "grad_y", grad_y_in, 1, x_in.size(1), "'x'");
  Call call(op, x_in);
  const Tensor grad_y = call.read("grad_y", grad_y_in), x = call.read("x", x_in);
  const Tensor offsets = call.read("offsets", offsets_in), columns = call.read("columns", columns_in);
  call.follow_rows(offsets, columns, x.size(0));
  Tensor grad_weight = new_like(x, {columns.size(0)}, accumulator_dtype(x.scalar_type()));
  dispatch_rows(op, x, columns, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    const core::AggregateGradWeight<T, Index> a{.grad_y = data<T>(grad_y),
                                                .x = data<T>(x),
                                                .offsets = data<std::int64_t>(offsets),
                                                .columns = data<Index>(columns),
                                                .num_rows = offsets.size(0) - 1,
                                                .num_edges = columns.size(0),
                                                .dim = x.size(1),
                                                .grad_weight = mutable_data<core::Accumulator<T>>(grad_weight)};
    if constexpr (kOnDevice) {
      core::cuda::aggregate_grad_weight(a, x.size(0), call.launch());
    } else {
      core::aggregate_grad_weight(a);
    }
  });
  return grad_weight;
}

}  // namespace
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

GMOE_OPERATORS(m) {
  m.impl("aggregate", TORCH_BOX(&gmoe::ops::aggregate));
  m.impl("aggregate_grad_weight", TORCH_BOX(&gmoe::ops::aggregate_grad_weight));
}
