#include "core/sparse_expert_linear.h"

#include "ops/call.h"

namespace gmoe::ops {
namespace {

// weight [E, D, F], scale [E, D], bias [E, F], index and gate [N, k], value [V] or [V, k] fit each other.
void check_experts(const char* op, const OptionalTensor& value, std::int64_t num_values, const Tensor& weight,
                   const OptionalTensor& scale, const OptionalTensor& bias, const Tensor& index,
                   const OptionalTensor& gate) {
  check_dim(op, "weight", weight, 3);
  check_floating(op, "weight", weight);
  check_dim(op, "index", index, 2);
  check_index_dtype(op, "index", index);
  if (scale) {
    check_shape_like(op, "scale", *scale, weight, "'weight'");
    check_same_dtype(op, "scale", *scale, "weight", weight);
  }
  if (bias) {
    check_dim(op, "bias", *bias, 2);
    check_size(op, "bias", *bias, 0, weight.size(0), "'weight'");
    check_size(op, "bias", *bias, 1, weight.size(2), "'weight'");
    check_same_dtype(op, "bias", *bias, "weight", weight);
  }
  if (gate) {
    check_shape_like(op, "gate", *gate, index, "'index'");
    check_same_dtype(op, "gate", *gate, "weight", weight);
  }
  if (!value) return;
  check(value->dim() == 1 || value->dim() == 2, op, ": expected 'value' of shape [V] or [V, k], got ", shape(*value));
  check_size(op, "value", *value, 0, num_values, "the entries of the rows");
  if (value->dim() == 2) check_size(op, "value", *value, 1, index.size(1), "'index'");
  check(value->scalar_type() == accumulator_dtype(weight.scalar_type()), op,
        ": expected 'value' of dtype float32, or float64 for float64 weights");
}

void check_grad_y(const char* op, const Tensor& grad_y, const Tensor& weight, const Tensor& index, bool combined) {
  check_dim(op, "grad_y", grad_y, combined ? 2 : 3);
  check_same_dtype(op, "grad_y", grad_y, "weight", weight);
  check_size(op, "grad_y", grad_y, 0, index.size(0), "'index'");
  if (!combined) check_size(op, "grad_y", grad_y, 1, index.size(1), "'index'");
  check_size(op, "grad_y", grad_y, grad_y.dim() - 1, weight.size(2), "'weight'");
}

// The experts as the kernels read them; keeps alive what it points to. Indices are followed after those of the rows.
struct Experts {
  OptionalTensor value;
  Tensor weight;
  OptionalTensor scale, bias;
  Tensor index;
  OptionalTensor gate;

  Experts(Call& call, const OptionalTensor& value_in, const Tensor& weight_in, const OptionalTensor& scale_in,
          const OptionalTensor& bias_in, const Tensor& index_in, const OptionalTensor& gate_in)
      : value(call.read("value", value_in)),
        weight(call.read("weight", weight_in)),
        scale(call.read("scale", scale_in)),
        bias(call.read("bias", bias_in)),
        index(call.read_int64("index", index_in)),
        gate(call.read("gate", gate_in)) {
    call.follow("index", index, weight.size(0));
  }

  template <typename T>
  core::SparseExperts<T> arguments(std::int64_t num_values) const {
    return {.value = data<core::Accumulator<T>>(value),
            .value_per_slot = value && value->dim() == 2,
            .weight = data<T>(weight),
            .scale = data<T>(scale),
            .bias = data<T>(bias),
            .index = data<std::int64_t>(index),
            .gate = data<T>(gate),
            .num_rows = index.size(0),
            .num_values = num_values,
            .num_experts = weight.size(0),
            .in_dim = weight.size(1),
            .out_dim = weight.size(2),
            .k = index.size(1)};
  }
};

// On the CPU the first index would be out of range; a kernel on a device cannot leave all rows out.
void check_has_experts(const char* op, const Tensor& weight, const Tensor& index) {
  check(!kOnDevice || weight.size(0) > 0 || index.numel() == 0, op,
        ": expected 'weight' to have a matrix for each 'index', got ", shape(weight));
}

// f(SparseExpertLinear) of rows [N] and their experts; the result goes to `out`.
template <typename F>
void with_rows(const char* op, const OptionalTensor& value, const Tensor& offsets_in, const Tensor& columns_in,
               const Tensor& weight, const OptionalTensor& scale, const OptionalTensor& bias, const Tensor& index,
               const OptionalTensor& gate, const OptionalTensor& grad_y_in, Tensor& out, const F& f) {
  Call call(op, weight);
  const Tensor offsets = call.read("offsets", offsets_in), columns = call.read("columns", columns_in);
  call.follow_rows(offsets, columns, weight.size(1));
  const Experts experts(call, value, weight, scale, bias, index, gate);
  const OptionalTensor grad_y = call.read("grad_y", grad_y_in);
  dispatch_floating(op, weight.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    f(core::SparseExpertLinear<T>{.experts = experts.arguments<T>(columns.size(0)),
                                  .offsets = data<std::int64_t>(offsets),
                                  .columns = data<std::int32_t>(columns),
                                  .grad_y = data<T>(grad_y),
                                  .out = mutable_data<T>(out)},
      call);
  });
}

// Of FeatureRows, whose columns and rows are int32.
void check_int32_rows(const char* op, const Tensor& offsets, const char* name, const Tensor& columns) {
  check_rows(op, offsets, columns);
  check(columns.scalar_type() == ScalarType::Int, op, ": expected '", name, "' of dtype int32");
}

void check_sparse_rows(const char* op, const OptionalTensor& value, const Tensor& offsets, const Tensor& columns,
                       const Tensor& weight, const OptionalTensor& scale, const OptionalTensor& bias,
                       const Tensor& index, const OptionalTensor& gate) {
  check_int32_rows(op, offsets, "columns", columns);
  check_experts(op, value, columns.size(0), weight, scale, bias, index, gate);
  check_size(op, "index", index, 0, offsets.size(0) - 1, "the rows of 'x'");
  check_has_experts(op, weight, index);
}

Tensor sparse_expert_linear(const OptionalTensor& value, const Tensor& offsets, const Tensor& columns,
                            const Tensor& weight, const OptionalTensor& scale, const OptionalTensor& bias,
                            const Tensor& index, const OptionalTensor& gate, const OptionalTensor&,
                            const OptionalTensor&, const OptionalTensor&, const OptionalTensor&) {
  constexpr const char* op = "gmoe::sparse_expert_linear";
  check_sparse_rows(op, value, offsets, columns, weight, scale, bias, index, gate);
  const std::int64_t num_rows = index.size(0), out_dim = weight.size(2);
  Tensor y = gate ? new_like(weight, {num_rows, out_dim}) : new_like(weight, {num_rows, index.size(1), out_dim});
  with_rows(op, value, offsets, columns, weight, scale, bias, index, gate, std::nullopt, y,
            [](const auto& a, [[maybe_unused]] auto& call) {
              if constexpr (kOnDevice) {
                core::cuda::sparse_expert_linear(a, call.launch());
              } else {
                core::sparse_expert_linear(a);
              }
            });
  return y;
}

Tensor sparse_expert_linear_grad_gate(const Tensor& grad_y, const OptionalTensor& value, const Tensor& offsets,
                                      const Tensor& columns, const Tensor& weight, const OptionalTensor& scale,
                                      const OptionalTensor& bias, const Tensor& index) {
  constexpr const char* op = "gmoe::sparse_expert_linear_grad_gate";
  check_sparse_rows(op, value, offsets, columns, weight, scale, bias, index, std::nullopt);
  check_grad_y(op, grad_y, weight, index, true);
  Tensor grad_gate = new_like(weight, {index.size(0), index.size(1)});
  with_rows(op, value, offsets, columns, weight, scale, bias, index, std::nullopt, grad_y, grad_gate,
            [](const auto& a, [[maybe_unused]] auto& call) {
              if constexpr (kOnDevice) {
                core::cuda::sparse_expert_linear_grad_gate(a, call.launch());
              } else {
                core::sparse_expert_linear_grad_gate(a);
              }
            });
  return grad_gate;
}

std::tuple<Tensor, Tensor> sparse_expert_linear_grad_weight(const Tensor& grad_y_in, const OptionalTensor& value,
                                                            const Tensor& offsets_in, const Tensor& rows_in,
                                                            const OptionalTensor& order_in, const Tensor& weight,
                                                            const OptionalTensor& scale, const Tensor& index,
                                                            const OptionalTensor& gate) {
  constexpr const char* op = "gmoe::sparse_expert_linear_grad_weight";
  check_int32_rows(op, offsets_in, "rows", rows_in);
  if (order_in) check_edges(op, "order", *order_in, rows_in);
  check_experts(op, value, rows_in.size(0), weight, scale, std::nullopt, index, gate);
  check(offsets_in.size(0) - 1 <= weight.size(1), op, ": expected 'offsets' of at most the inputs of 'weight', ",
        weight.size(1), " + 1, got ", shape(offsets_in));
  check_has_experts(op, weight, index);
  check_grad_y(op, grad_y_in, weight, index, gate.has_value());
  Call call(op, weight);
  const Tensor offsets = call.read("offsets", offsets_in), rows = call.read("rows", rows_in);
  const OptionalTensor order = call.read_int64("order", order_in);
  const Tensor grad_y = call.read("grad_y", grad_y_in);
  call.follow_rows(offsets, rows, index.size(0));
  call.follow("order", order, rows.size(0));
  const Experts experts(call, value, weight, scale, std::nullopt, index, gate);
  Tensor grad_weight = new_like(weight, {weight.size(0), weight.size(1), weight.size(2)});
  Tensor grad_scale = new_like(weight, {scale ? weight.size(0) : 0, weight.size(1)});
  dispatch_floating(op, weight.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const core::SparseExpertLinearGrad<T> a{.experts = experts.arguments<T>(rows.size(0)),
                                            .offsets = data<std::int64_t>(offsets),
                                            .rows = data<std::int32_t>(rows),
                                            .order = data<std::int64_t>(order),
                                            .num_columns = offsets.size(0) - 1,
                                            .grad_y = data<T>(grad_y),
                                            .grad_weight = mutable_data<T>(grad_weight),
                                            .grad_scale = scale ? mutable_data<T>(grad_scale) : nullptr};
    if constexpr (kOnDevice) {
      core::cuda::sparse_expert_linear_grad_weight(a, call.launch());
    } else {
      core::sparse_expert_linear_grad_weight(a);
    }
  });
  return {grad_weight, grad_scale};
}

}  // namespace
}  // namespace gmoe::ops

// The transpose of the rows serves the gradients of weight and scale alone: it is handed through to the backward pass.
GMOE_SCHEMAS(m) {
  m.def(
      "sparse_expert_linear(Tensor? value, Tensor offsets, Tensor columns, Tensor weight, Tensor? scale, Tensor? bias, "
      "Tensor index, Tensor? gate, Tensor? transpose_offsets, Tensor? transpose_rows, Tensor? transpose_order, "
      "Tensor? transpose_value) -> Tensor");
  m.def(
      "sparse_expert_linear_grad_gate(Tensor grad_y, Tensor? value, Tensor offsets, Tensor columns, Tensor weight, "
      "Tensor? scale, Tensor? bias, Tensor index) -> Tensor");
  m.def(
      "sparse_expert_linear_grad_weight(Tensor grad_y, Tensor? value, Tensor offsets, Tensor rows, Tensor? order, "
      "Tensor weight, Tensor? scale, Tensor index, Tensor? gate) -> (Tensor grad_weight, Tensor grad_scale)");
}

GMOE_OPERATORS(m) {
  m.impl("sparse_expert_linear", TORCH_BOX(&gmoe::ops::sparse_expert_linear));
  m.impl("sparse_expert_linear_grad_gate", TORCH_BOX(&gmoe::ops::sparse_expert_linear_grad_gate));
  m.impl("sparse_expert_linear_grad_weight", TORCH_BOX(&gmoe::ops::sparse_expert_linear_grad_weight));
}
