#include "core/expert_norm.h"

#include "ops/expert_norm.h"
#include "ops/graph_checks.h"

namespace gmoe::ops {
namespace {

// Dense tensors whose experts are known to be in range.
struct Slots {
  Tensor y, index;
  OptionalTensor gate;
  std::int64_t num_experts;

  template <typename T>
  core::ExpertSlots<T> arguments() const {
    return {data<T>(y), data<std::int64_t>(index), data<T>(gate), y.size(0), y.size(1), y.size(2), num_experts};
  }
};

Slots checked(const char* op, const Tensor& y, const Tensor& index, const OptionalTensor& gate, const Tensor& weight,
              const Tensor& bias) {
  check_expert_norm(op, y, index, gate, weight, bias);
  Slots slots{dense(y), dense_int64(index), dense(gate), weight.size(0)};
  check_indices(op, "index", slots.index, slots.num_experts);
  return slots;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> expert_norm(const Tensor& y_in, const Tensor& index_in,
                                                       const Tensor& weight_in, const Tensor& bias_in,
                                                       const Tensor& mean_in, const Tensor& var_in,
                                                       const OptionalTensor& gate_in, double eps) {
  constexpr const char* op = "gmoe::expert_norm";
  const Slots slots = checked(op, y_in, index_in, gate_in, weight_in, bias_in);
  check_per_expert(op, "running_mean", mean_in, weight_in, y_in.scalar_type());
  check_per_expert(op, "running_var", var_in, weight_in, y_in.scalar_type());
  const Tensor weight = dense(weight_in), bias = dense(bias_in);
  const Tensor running_mean = dense(mean_in), running_var = dense(var_in);
  const std::int64_t rows = slots.y.size(0), k = slots.y.size(1), dim = slots.y.size(2);
  const ScalarType wide = accumulator_dtype(slots.y.scalar_type());
  Tensor out = slots.gate.has_value() ? new_like(slots.y, {rows, dim}) : new_like(slots.y, {rows, k, dim});
  Tensor mean = new_like(weight, {slots.num_experts, dim}, wide), var = new_like(mean, {slots.num_experts, dim});
  Tensor count = new_like(weight, {slots.num_experts}, ScalarType::Long);
  dispatch_floating(op, slots.y.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = core::Accumulator<T>;
    core::expert_norm<T>({slots.arguments<T>(), data<T>(weight), data<T>(bias), data<T>(running_mean),
                          data<T>(running_var), eps, mutable_data<T>(out), mutable_data<A>(mean), mutable_data<A>(var),
                          mutable_data<std::int64_t>(count)});
  });
  return {out, mean, var, count};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> expert_norm_grad(const Tensor& grad_out_in, const Tensor& y_in,
                                                            const Tensor& index_in, const Tensor& weight_in,
                                                            const Tensor& bias_in, const Tensor& mean_in,
                                                            const Tensor& var_in, const Tensor& count_in,
                                                            const OptionalTensor& gate_in, double eps) {
  constexpr const char* op = "gmoe::expert_norm_grad";
  const Slots slots = checked(op, y_in, index_in, gate_in, weight_in, bias_in);
  check_expert_norm_grad(op, grad_out_in, slots.y, slots.gate, weight_in, count_in);
  check_per_expert(op, "mean", mean_in, weight_in, accumulator_dtype(y_in.scalar_type()));
  check_per_expert(op, "var", var_in, weight_in, accumulator_dtype(y_in.scalar_type()));
  const Tensor grad_out = dense(grad_out_in), weight = dense(weight_in), bias = dense(bias_in);
  const Tensor mean = dense(mean_in), var = dense(var_in), count = dense(count_in);
  const std::int64_t rows = slots.y.size(0), k = slots.y.size(1), dim = slots.y.size(2);
  Tensor grad_y = new_like(slots.y, {rows, k, dim});
  Tensor grad_weight = new_like(slots.y, {slots.num_experts, dim}),
         grad_bias = new_like(grad_weight, {slots.num_experts, dim});
  Tensor grad_gate = new_like(slots.y, {slots.gate.has_value() ? rows : 0, k});
  dispatch_floating(op, slots.y.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = core::Accumulator<T>;
    core::expert_norm_grad<T>({slots.arguments<T>(), data<T>(grad_out), data<T>(weight), data<T>(bias), data<A>(mean),
                               data<A>(var), data<std::int64_t>(count), eps, mutable_data<T>(grad_y),
                               mutable_data<T>(grad_weight), mutable_data<T>(grad_bias), mutable_data<T>(grad_gate)});
  });
  return {grad_y, grad_weight, grad_bias, grad_gate};
}

}  // namespace
}  // namespace gmoe::ops

STABLE_TORCH_LIBRARY_IMPL(gmoe, CPU, m) {
  m.impl("expert_norm", TORCH_BOX(&gmoe::ops::expert_norm));
  m.impl("expert_norm_grad", TORCH_BOX(&gmoe::ops::expert_norm_grad));
}
