#include "core/aggregate.h"

#include "ops/aggregate.h"

namespace gmoe::ops {
namespace {

Tensor aggregate(const Tensor& x_in, const Tensor& offsets_in, const Tensor& columns_in,
                 const OptionalTensor& weight_in, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                 const OptionalTensor&) {
  constexpr const char* op = "gmoe::aggregate";
  check_aggregate(x_in, offsets_in, columns_in, weight_in);
  const Tensor x = dense(x_in), offsets = dense(offsets_in), columns = dense(columns_in);
  const OptionalTensor weight = dense(weight_in);
  check_row_values(op, offsets, columns, x.size(0));
  const std::int64_t num_rows = offsets.size(0) - 1;
  Tensor y = new_like(x, {num_rows, x.size(1)});
  dispatch_rows(op, x, columns, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    core::aggregate<T, Index>(
        {data<T>(x), data<std::int64_t>(offsets), data<Index>(columns), data<core::Accumulator<T>>(weight), num_rows,
         columns.size(0), x.size(1), mutable_data<T>(y)},
        x.size(0));
  });
  return y;
}

Tensor aggregate_grad_weight(const Tensor& grad_y_in, const Tensor& x_in, const Tensor& offsets_in,
                             const Tensor& columns_in, const OptionalTensor&, const OptionalTensor&,
                             const OptionalTensor&) {
  constexpr const char* op = "gmoe::aggregate_grad_weight";
  check_aggregate_grad_weight(grad_y_in, x_in, offsets_in, columns_in);
  const Tensor grad_y = dense(grad_y_in), x = dense(x_in), offsets = dense(offsets_in), columns = dense(columns_in);
  check_row_values(op, offsets, columns, x.size(0));
  Tensor grad_weight = new_like(x, {columns.size(0)}, accumulator_dtype(x.scalar_type()));
  dispatch_rows(op, x, columns, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    core::aggregate_grad_weight<T, Index>({data<T>(grad_y), data<T>(x), data<std::int64_t>(offsets),
                                           data<Index>(columns), offsets.size(0) - 1, columns.size(0), x.size(1),
                                           mutable_data<core::Accumulator<T>>(grad_weight)});
  });
  return grad_weight;
}

}  // namespace
}  // namespace gmoe::ops

STABLE_TORCH_LIBRARY_IMPL(gmoe, CPU, m) {
  m.impl("aggregate", TORCH_BOX(&gmoe::ops::aggregate));
  m.impl("aggregate_grad_weight", TORCH_BOX(&gmoe::ops::aggregate_grad_weight));
}
