#include "core/expert_linear.h"

#include "ops/cuda/call.h"
#include "ops/expert_linear.h"
#include "ops/expert_plan.h"

namespace gmoe::ops {
namespace {

// The routing as the kernels read it; keeps alive what it points to.
struct Routing {
  Tensor offsets, order;
  OptionalTensor gate, source;
  std::int64_t num_sources;
  core::ExpertPlanView plan;

  Routing(const DeviceCall& call, const Tensor& offsets_in, const Tensor& order_in, std::int64_t k,
          const OptionalTensor& gate_in, const OptionalTensor& source_in, std::int64_t num_sources_in)
      : offsets(call.read("offsets", offsets_in)),
        order(call.read("order", order_in)),
        gate(call.read("gate", gate_in)),
        source(source_in ? OptionalTensor(call.read_int64("source", *source_in)) : std::nullopt),
        num_sources(num_sources_in),
        plan{data<std::int64_t>(offsets), data<std::int64_t>(order), offsets.size(0) - 1, order.size(0) / k, k} {}

  template <typename T>
  core::ExpertLinear<T> operands(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                                 std::int64_t out_dim) const {
    return {data<T>(x), data<T>(weight), data<T>(bias), data<T>(gate), plan, data<std::int64_t>(source),
            x.size(0),  x.size(1),       out_dim};
  }
};

core::cuda::Call launch(DeviceCall& call, const Routing& r, std::int64_t workspace_bytes) {
  return call.launch(workspace_bytes, {{"source", r.plan.num_slots(), r.num_sources}},
                     "'order' to name every slot once, ascending within an expert; mend: make the plan with "
                     "expert_plan");
}

Tensor expert_linear(const Tensor& x_in, const Tensor& weight_in, const OptionalTensor& bias_in, const Tensor& offsets,
                     const Tensor& order, std::int64_t k, const OptionalTensor& gate, const OptionalTensor& source,
                     bool tf32) {
  constexpr const char* op = "gmoe::expert_linear";
  const std::int64_t num_rows = check_routed_rows(op, x_in, offsets, order, k, gate, source);
  check_expert_weight(op, x_in, offsets, weight_in, bias_in);
  DeviceCall call(op, x_in);
  const Tensor x = call.read("x", x_in), weight = call.read("weight", weight_in);
  const OptionalTensor bias = call.read("bias", bias_in);
  const Routing routing(call, offsets, order, k, gate, source, x.size(0));
  const std::int64_t out_dim = weight.size(1);
  Tensor y = gate ? new_like(x, {num_rows, out_dim}) : new_like(x, {num_rows, k, out_dim});
  dispatch_floating(op, x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const core::ExpertLinear<T> a = routing.operands<T>(x, weight, bias, out_dim);
    core::cuda::expert_linear<T>(a, mutable_data<T>(y), tf32,
                                 launch(call, routing, core::cuda::expert_linear_workspace(a)));
  });
  return y;
}

// grad_x and grad_gate are made by one function that skips what is not asked for.
struct GradXGate {
  Tensor grad_x, grad_gate;
};

GradXGate grad_x_gate(const char* op, bool wants_x, bool wants_gate, const Tensor& grad_y_in, const Tensor& x_in,
                      const Tensor& weight_in, const OptionalTensor& bias_in, const Tensor& offsets,
                      const Tensor& order, std::int64_t k, const OptionalTensor& gate, const OptionalTensor& source,
                      bool tf32) {
  const std::int64_t num_rows = check_routed_rows(op, x_in, offsets, order, k, gate, source);
  check_expert_weight(op, x_in, offsets, weight_in, bias_in);
  check_grad_y(op, grad_y_in, x_in, num_rows, k, wants_gate || gate.has_value());
  check_size(op, "grad_y", grad_y_in, grad_y_in.dim() - 1, weight_in.size(1), "'weight'");
  DeviceCall call(op, x_in);
  const Tensor grad_y = call.read("grad_y", grad_y_in), x = call.read("x", x_in);
  const Tensor weight = call.read("weight", weight_in);
  const OptionalTensor bias = call.read("bias", bias_in);
  const Routing routing(call, offsets, order, k, gate, source, x.size(0));
  GradXGate out{new_like(x, {wants_x ? x.size(0) : 0, x.size(1)}), new_like(x, {wants_gate ? num_rows : 0, k})};
  dispatch_floating(op, x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const core::ExpertLinear<T> a = routing.operands<T>(x, weight, bias, weight.size(1));
    const std::int64_t bytes = core::cuda::expert_linear_grad_x_gate_workspace(a, wants_x, wants_gate);
    core::cuda::expert_linear_grad_x_gate<T>(a, data<T>(grad_y), wants_x ? mutable_data<T>(out.grad_x) : nullptr,
                                             wants_gate ? mutable_data<T>(out.grad_gate) : nullptr, tf32,
                                             launch(call, routing, bytes));
  });
  return out;
}

Tensor expert_linear_grad_x(const Tensor& grad_y, const Tensor& x, const Tensor& weight, const Tensor& offsets,
                            const Tensor& order, std::int64_t k, const OptionalTensor& gate,
                            const OptionalTensor& source, bool tf32) {
  constexpr const char* op = "gmoe::expert_linear_grad_x";
  return grad_x_gate(op, true, false, grad_y, x, weight, std::nullopt, offsets, order, k, gate, source, tf32).grad_x;
}

Tensor expert_linear_grad_gate(const Tensor& grad_y, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                               const Tensor& offsets, const Tensor& order, std::int64_t k, const OptionalTensor& source,
                               bool tf32) {
  constexpr const char* op = "gmoe::expert_linear_grad_gate";
  return grad_x_gate(op, false, true, grad_y, x, weight, bias, offsets, order, k, std::nullopt, source, tf32).grad_gate;
}

std::tuple<Tensor, Tensor> expert_linear_grad_x_gate(const Tensor& grad_y, const Tensor& x, const Tensor& weight,
                                                     const OptionalTensor& bias, const Tensor& offsets,
                                                     const Tensor& order, std::int64_t k, const Tensor& gate,
                                                     const OptionalTensor& source, bool tf32) {
  constexpr const char* op = "gmoe::expert_linear_grad_x_gate";
  const GradXGate out = grad_x_gate(op, true, true, grad_y, x, weight, bias, offsets, order, k, gate, source, tf32);
  return {out.grad_x, out.grad_gate};
}

Tensor expert_linear_grad_weight(const Tensor& grad_y_in, const Tensor& x_in, const Tensor& offsets,
                                 const Tensor& order, std::int64_t k, const OptionalTensor& gate,
                                 const OptionalTensor& source, bool tf32) {
  constexpr const char* op = "gmoe::expert_linear_grad_weight";
  const std::int64_t num_rows = check_routed_rows(op, x_in, offsets, order, k, gate, source);
  check_grad_y(op, grad_y_in, x_in, num_rows, k, gate.has_value());
  DeviceCall call(op, x_in);
  const Tensor grad_y = call.read("grad_y", grad_y_in), x = call.read("x", x_in);
  const Routing routing(call, offsets, order, k, gate, source, x.size(0));
  const std::int64_t out_dim = grad_y.size(grad_y.dim() - 1);
  Tensor grad_weight = new_like(x, {routing.plan.num_experts, out_dim, x.size(1)});
  dispatch_floating(op, x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const core::ExpertLinear<T> a = routing.operands<T>(x, std::nullopt, std::nullopt, out_dim);
    core::cuda::expert_linear_grad_weight<T>(a, data<T>(grad_y), mutable_data<T>(grad_weight), tf32,
                                             launch(call, routing, core::cuda::expert_linear_grad_weight_workspace(a)));
  });
  return grad_weight;
}

Tensor expert_linear_grad_bias(const Tensor& grad_y_in, const Tensor& offsets, const Tensor& order, std::int64_t k,
                               const OptionalTensor& gate) {
  constexpr const char* op = "gmoe::expert_linear_grad_bias";
  check_floating(op, "grad_y", grad_y_in);
  check_plan(op, offsets, order, k);
  check_grad_y(op, grad_y_in, grad_y_in, order.size(0) / k, k, gate.has_value());
  DeviceCall call(op, grad_y_in);
  const Tensor grad_y = call.read("grad_y", grad_y_in);
  const std::int64_t out_dim = grad_y.size(grad_y.dim() - 1);
  // The rows that were read do not matter here; an x of the right shape keeps the checks in one place.
  const Tensor no_x = new_like(grad_y, {order.size(0) / k, 0});
  check_routed_rows(op, no_x, offsets, order, k, gate, std::nullopt);
  const Routing routing(call, offsets, order, k, gate, std::nullopt, 0);
  Tensor grad_bias = new_like(grad_y, {routing.plan.num_experts, out_dim});
  dispatch_floating(op, grad_y.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const core::ExpertLinear<T> a = routing.operands<T>(no_x, std::nullopt, std::nullopt, out_dim);
    core::cuda::expert_linear_grad_bias<T>(a, data<T>(grad_y), mutable_data<T>(grad_bias),
                                           launch(call, routing, core::cuda::expert_linear_grad_bias_workspace(a)));
  });
  return grad_bias;
}

}  // namespace
}  // namespace gmoe::ops

GMOE_DEVICE_LIBRARY(m) {
  m.impl("expert_linear", TORCH_BOX(&gmoe::ops::expert_linear));
  m.impl("expert_linear_grad_x", TORCH_BOX(&gmoe::ops::expert_linear_grad_x));
  m.impl("expert_linear_grad_weight", TORCH_BOX(&gmoe::ops::expert_linear_grad_weight));
  m.impl("expert_linear_grad_bias", TORCH_BOX(&gmoe::ops::expert_linear_grad_bias));
  m.impl("expert_linear_grad_gate", TORCH_BOX(&gmoe::ops::expert_linear_grad_gate));
  m.impl("expert_linear_grad_x_gate", TORCH_BOX(&gmoe::ops::expert_linear_grad_x_gate));
}
