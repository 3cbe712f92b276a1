#include "core/expert_norm.h"

#include "ops/call.h"

namespace gmoe::ops {
namespace {

void check_per_expert(const char* op, const char* name, const Tensor& t, const Tensor& weight, ScalarType dtype) {
  check_dim(op, name, t, 2);
  check(t.scalar_type() == dtype, op, ": expected '", name, "' of another dtype, to match 'y'");
  check_size(op, name, t, 0, weight.size(0), "'weight'");
  check_size(op, name, t, 1, weight.size(1), "'weight'");
}

void check_slots(const char* op, const Tensor& y, const Tensor& index, const OptionalTensor& gate, const Tensor& weight,
                 const Tensor& bias) {
  check_dim(op, "y", y, 3);
  check_floating(op, "y", y);
  check_shape_like(op, "index", index, y, "'y'");
  check_index_dtype(op, "index", index);
  if (gate) {
    check_shape_like(op, "gate", *gate, y, "'y'");
    check_same_dtype(op, "gate", *gate, "y", y);
  }
  check_dim(op, "weight", weight, 2);
  check_same_dtype(op, "weight", weight, "y", y);
  check_size(op, "weight", weight, 1, y.size(2), "'y'");
  check_per_expert(op, "bias", bias, weight, y.scalar_type());
}

// Dense tensors whose experts may be followed.
struct Slots {
  Tensor y, index;
  OptionalTensor gate;
  std::int64_t num_experts;

  Slots(Call& call, const Tensor& y_in, const Tensor& index_in, const OptionalTensor& gate_in, const Tensor& weight)
      : y(call.read("y", y_in)),
        index(call.read_int64("index", index_in)),
        gate(call.read("gate", gate_in)),
        num_experts(weight.size(0)) {
    call.follow("index", index, num_experts);
  }

  template <typename T>
  core::ExpertSlots<T> arguments() const {
    return {.y = data<T>(y),
            .index = data<std::int64_t>(index),
            .gate = data<T>(gate),
            .num_rows = y.size(0),
            .k = y.size(1),
            .dim = y.size(2),
            .num_experts = num_experts};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> expert_norm(const Tensor& y_in, const Tensor& index_in,
                                                       const Tensor& weight_in, const Tensor& bias_in,
                                                       const Tensor& mean_in, const Tensor& var_in,
                                                       const OptionalTensor& gate_in, double eps) {
  constexpr const char* op = "gmoe::expert_norm";
  check_slots(op, y_in, index_in, gate_in, weight_in, bias_in);
  check_per_expert(op, "running_mean", mean_in, weight_in, y_in.scalar_type());
  check_per_expert(op, "running_var", var_in, weight_in, y_in.scalar_type());
  Call call(op, y_in);
  const Slots slots(call, y_in, index_in, gate_in, weight_in);
  const Tensor weight = call.read("weight", weight_in), bias = call.read("bias", bias_in);
  const Tensor running_mean = call.read("running_mean", mean_in), running_var = call.read("running_var", var_in);
  const std::int64_t rows = slots.y.size(0), k = slots.y.size(1), dim = slots.y.size(2), experts = slots.num_experts;
  const ScalarType wide = accumulator_dtype(slots.y.scalar_type());
  Tensor out = slots.gate ? new_like(slots.y, {rows, dim}) : new_like(slots.y, {rows, k, dim});
  Tensor mean = new_like(weight, {experts, dim}, wide), var = new_like(mean, {experts, dim});
  Tensor count = new_like(weight, {experts}, ScalarType::Long);
  dispatch_floating(op, slots.y.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = core::Accumulator<T>;
    const core::ExpertNorm<T> a{.slots = slots.arguments<T>(),
                                .weight = data<T>(weight),
                                .bias = data<T>(bias),
                                .running_mean = data<T>(running_mean),
                                .running_var = data<T>(running_var),
                                .eps = eps,
                                .out = mutable_data<T>(out),
                                .mean = mutable_data<A>(mean),
                                .var = mutable_data<A>(var),
                                .count = mutable_data<std::int64_t>(count)};
    if constexpr (kOnDevice) {
      core::cuda::expert_norm(a, call.launch(core::cuda::expert_norm_workspace(a.slots)));
    } else {
      core::expert_norm(a);
    }
  });
  return {out, mean, var, count};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> expert_norm_grad(const Tensor& grad_out_in, const Tensor& y_in,
                                                            const Tensor& index_in, const Tensor& weight_in,
                                                            const Tensor& bias_in, const Tensor& mean_in,
                                                            const Tensor& var_in, const Tensor& count_in,
                                                            const OptionalTensor& gate_in, double eps) {
  constexpr const char* op = "gmoe::expert_norm_grad";
  check_slots(op, y_in, index_in, gate_in, weight_in, bias_in);
  check_same_dtype(op, "grad_out", grad_out_in, "y", y_in);
  check_dim(op, "grad_out", grad_out_in, gate_in ? 2 : 3);
  check_size(op, "grad_out", grad_out_in, 0, y_in.size(0), "'y'");
  if (!gate_in) check_size(op, "grad_out", grad_out_in, 1, y_in.size(1), "'y'");
  check_size(op, "grad_out", grad_out_in, grad_out_in.dim() - 1, y_in.size(2), "'y'");
  check_dim(op, "count", count_in, 1);
  check_int64(op, "count", count_in);
  check_size(op, "count", count_in, 0, weight_in.size(0), "'weight'");
  check_per_expert(op, "mean", mean_in, weight_in, accumulator_dtype(y_in.scalar_type()));
  check_per_expert(op, "var", var_in, weight_in, accumulator_dtype(y_in.scalar_type()));
  Call call(op, y_in);
  const Slots slots(call, y_in, index_in, gate_in, weight_in);
  const Tensor grad_out = call.read("grad_out", grad_out_in), count = call.read("count", count_in);
  const Tensor weight = call.read("weight", weight_in), bias = call.read("bias", bias_in);
  const Tensor mean = call.read("mean", mean_in), var = call.read("var", var_in);
  const std::int64_t rows = slots.y.size(0), k = slots.y.size(1), dim = slots.y.size(2), experts = slots.num_experts;
  Tensor grad_y = new_like(slots.y, {rows, k, dim});
  Tensor grad_weight = new_like(slots.y, {experts, dim}), grad_bias = new_like(slots.y, {experts, dim});
  Tensor grad_gate = new_like(slots.y, {slots.gate ? rows : 0, k});
  dispatch_floating(op, slots.y.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = core::Accumulator<T>;
    const core::ExpertNormGrad<T> a{.slots = slots.arguments<T>(),
                                    .grad_out = data<T>(grad_out),
                                    .weight = data<T>(weight),
                                    .bias = data<T>(bias),
                                    .mean = data<A>(mean),
                                    .var = data<A>(var),
                                    .count = data<std::int64_t>(count),
                                    .eps = eps,
                                    .grad_y = mutable_data<T>(grad_y),
                                    .grad_weight = mutable_data<T>(grad_weight),
                                    .grad_bias = mutable_data<T>(grad_bias),
                                    .grad_gate = mutable_data<T>(grad_gate)};
    if constexpr (kOnDevice) {
      core::cuda::expert_norm_grad(a, call.launch(core::cuda::expert_norm_workspace(a.slots)));
    } else {
      core::expert_norm_grad(a);
    }
  });
  return {grad_y, grad_weight, grad_bias, grad_gate};
}

}  // namespace
}  // namespace gmoe::ops

GMOE_SCHEMAS(m) {
  m.def(
      "expert_norm(Tensor y, Tensor index, Tensor weight, Tensor bias, Tensor running_mean, Tensor running_var, "
      "Tensor? gate, float eps) -> (Tensor out, Tensor mean, Tensor var, Tensor count)");
  m.def(
      "expert_norm_grad(Tensor grad_out, Tensor y, Tensor index, Tensor weight, Tensor bias, Tensor mean, Tensor var, "
      "Tensor count, Tensor? gate, float eps) -> (Tensor grad_y, Tensor grad_weight, Tensor grad_bias, "
      "Tensor grad_gate)");
}

GMOE_OPERATORS(m) {
  m.impl("expert_norm", TORCH_BOX(&gmoe::ops::expert_norm));
  m.impl("expert_norm_grad", TORCH_BOX(&gmoe::ops::expert_norm_grad));
}
