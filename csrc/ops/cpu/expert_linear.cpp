#include "core/expert_linear.h"

#include "core/cpu/check_index.h"
#include "ops/expert_linear.h"
#include "ops/expert_plan.h"

namespace gmoe::ops {
namespace {

// The routing as the kernels read it; keeps alive what it points to.
struct Routing {
  Tensor offsets, order;
  OptionalTensor gate, source;
  core::ExpertPlanView plan;
};

Routing read_routing(const char* op, const Tensor& offsets_in, const Tensor& order_in, std::int64_t k,
                     const OptionalTensor& gate, const OptionalTensor& source, std::int64_t num_sources) {
  Routing r{dense(offsets_in), dense(order_in), dense(gate), std::nullopt, {}};
  if (source) {
    r.source = dense_int64(*source);
    check_indices(op, "source", *r.source, num_sources);
  }
  r.plan = {data<std::int64_t>(r.offsets), data<std::int64_t>(r.order), r.offsets.size(0) - 1, r.order.size(0) / k, k};
  const core::PlanFault fault = core::find_plan_fault(r.plan);
  if (fault.kind == core::PlanFault::range) {
    throw_bad_index(op, "order", fault.position, r.plan.order[fault.position], r.plan.num_slots());
  }
  check(fault.kind != core::PlanFault::offsets, op, ": expected 'offsets' to ascend from 0 to the number of slots ",
        r.plan.num_slots(), ", not so at position ", fault.position, "; mend: make the plan with expert_plan");
  check(fault.kind != core::PlanFault::order, op,
        ": expected 'order' to name every slot once, ascending within an expert, not so at position ", fault.position,
        "; mend: make the plan with expert_plan");
  return r;
}

template <typename T>
core::ExpertLinear<T> operands(const Routing& r, const Tensor& x, const OptionalTensor& weight,
                               const OptionalTensor& bias, std::int64_t out_dim) {
  return {data<T>(x), data<T>(weight), data<T>(bias), data<T>(r.gate), r.plan, data<std::int64_t>(r.source),
          x.size(0),  x.size(1),       out_dim};
}

Tensor expert_linear(const Tensor& x_in, const Tensor& weight_in, const OptionalTensor& bias_in, const Tensor& offsets,
                     const Tensor& order, std::int64_t k, const OptionalTensor& gate, const OptionalTensor& source,
                     bool /*tf32*/) {
  constexpr const char* op = "gmoe::expert_linear";
  const std::int64_t num_rows = check_routed_rows(op, x_in, offsets, order, k, gate, source);
  check_expert_weight(op, x_in, offsets, weight_in, bias_in);
  const Tensor x = dense(x_in), weight = dense(weight_in);
  const OptionalTensor bias = dense(bias_in);
  const Routing routing = read_routing(op, offsets, order, k, gate, source, x.size(0));
  const std::int64_t out_dim = weight.size(1);
  Tensor y = gate ? new_like(x, {num_rows, out_dim}) : new_like(x, {num_rows, k, out_dim});
  dispatch_floating(op, x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    core::expert_linear<T>(operands<T>(routing, x, weight, bias, out_dim), mutable_data<T>(y));
  });
  return y;
}

// grad_x and grad_gate are made by one function that skips what is not asked for.
struct GradXGate {
  Tensor grad_x, grad_gate;
};

GradXGate grad_x_gate(const char* op, bool wants_x, bool wants_gate, const Tensor& grad_y_in, const Tensor& x_in,
                      const Tensor& weight_in, const OptionalTensor& bias_in, const Tensor& offsets,
                      const Tensor& order, std::int64_t k, const OptionalTensor& gate, const OptionalTensor& source) {
  const std::int64_t num_rows = check_routed_rows(op, x_in, offsets, order, k, gate, source);
  check_expert_weight(op, x_in, offsets, weight_in, bias_in);
  check_grad_y(op, grad_y_in, x_in, num_rows, k, wants_gate || gate.has_value());
  check_size(op, "grad_y", grad_y_in, grad_y_in.dim() - 1, weight_in.size(1), "'weight'");
  const Tensor grad_y = dense(grad_y_in), x = dense(x_in), weight = dense(weight_in);
  const OptionalTensor bias = dense(bias_in);
  const Routing routing = read_routing(op, offsets, order, k, gate, source, x.size(0));
  GradXGate out{new_like(x, {wants_x ? x.size(0) : 0, x.size(1)}), new_like(x, {wants_gate ? num_rows : 0, k})};
  dispatch_floating(op, x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    core::expert_linear_grad_x_gate<T>(operands<T>(routing, x, weight, bias, weight.size(1)), data<T>(grad_y),
                                       wants_x ? mutable_data<T>(out.grad_x) : nullptr,
                                       wants_gate ? mutable_data<T>(out.grad_gate) : nullptr);
  });
  return out;
}

Tensor expert_linear_grad_x(const Tensor& grad_y, const Tensor& x, const Tensor& weight, const Tensor& offsets,
                            const Tensor& order, std::int64_t k, const OptionalTensor& gate,
                            const OptionalTensor& source, bool /*tf32*/) {
  constexpr const char* op = "gmoe::expert_linear_grad_x";
  return grad_x_gate(op, true, false, grad_y, x, weight, std::nullopt, offsets, order, k, gate, source).grad_x;
}

Tensor expert_linear_grad_gate(const Tensor& grad_y, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                               const Tensor& offsets, const Tensor& order, std::int64_t k, const OptionalTensor& source,
                               bool /*tf32*/) {
  constexpr const char* op = "gmoe::expert_linear_grad_gate";
  return grad_x_gate(op, false, true, grad_y, x, weight, bias, offsets, order, k, std::nullopt, source).grad_gate;
}

std::tuple<Tensor, Tensor> expert_linear_grad_x_gate(const Tensor& grad_y, const Tensor& x, const Tensor& weight,
                                                     const OptionalTensor& bias, const Tensor& offsets,
                                                     const Tensor& order, std::int64_t k, const Tensor& gate,
                                                     const OptionalTensor& source, bool /*tf32*/) {
  constexpr const char* op = "gmoe::expert_linear_grad_x_gate";
  const GradXGate out = grad_x_gate(op, true, true, grad_y, x, weight, bias, offsets, order, k, gate, source);
  return {out.grad_x, out.grad_gate};
}

Tensor expert_linear_grad_weight(const Tensor& grad_y_in, const Tensor& x_in, const Tensor& offsets,
                                 const Tensor& order, std::int64_t k, const OptionalTensor& gate,
                                 const OptionalTensor& source, bool /*tf32*/) {
  constexpr const char* op = "gmoe::expert_linear_grad_weight";
  const std::int64_t num_rows = check_routed_rows(op, x_in, offsets, order, k, gate, source);
  check_grad_y(op, grad_y_in, x_in, num_rows, k, gate.has_value());
  const Tensor grad_y = dense(grad_y_in), x = dense(x_in);
  const Routing routing = read_routing(op, offsets, order, k, gate, source, x.size(0));
  const std::int64_t out_dim = grad_y.size(grad_y.dim() - 1);
  Tensor grad_weight = new_like(x, {routing.plan.num_experts, out_dim, x.size(1)});
  dispatch_floating(op, x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    core::expert_linear_grad_weight<T>(operands<T>(routing, x, std::nullopt, std::nullopt, out_dim), data<T>(grad_y),
                                       mutable_data<T>(grad_weight));
  });
  return grad_weight;
}

Tensor expert_linear_grad_bias(const Tensor& grad_y_in, const Tensor& offsets, const Tensor& order, std::int64_t k,
                               const OptionalTensor& gate) {
  constexpr const char* op = "gmoe::expert_linear_grad_bias";
  check_floating(op, "grad_y", grad_y_in);
  check_plan(op, offsets, order, k);
  check_grad_y(op, grad_y_in, grad_y_in, order.size(0) / k, k, gate.has_value());
  const Tensor grad_y = dense(grad_y_in);
  const std::int64_t out_dim = grad_y.size(grad_y.dim() - 1);
  // The rows that were read do not matter here; an x of the right shape keeps the checks in one place.
  const Tensor no_x = new_like(grad_y, {order.size(0) / k, 0});
  check_routed_rows(op, no_x, offsets, order, k, gate, std::nullopt);
  const Routing routing = read_routing(op, offsets, order, k, gate, std::nullopt, 0);
  Tensor grad_bias = new_like(grad_y, {routing.plan.num_experts, out_dim});
  dispatch_floating(op, grad_y.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    core::expert_linear_grad_bias<T>(operands<T>(routing, no_x, std::nullopt, std::nullopt, out_dim), data<T>(grad_y),
                                     mutable_data<T>(grad_bias));
  });
  return grad_bias;
}

}  // namespace
}  // namespace gmoe::ops

STABLE_TORCH_LIBRARY_IMPL(gmoe, CPU, m) {
  m.impl("expert_linear", TORCH_BOX(&gmoe::ops::expert_linear));
  m.impl("expert_linear_grad_x", TORCH_BOX(&gmoe::ops::expert_linear_grad_x));
  m.impl("expert_linear_grad_weight", TORCH_BOX(&gmoe::ops::expert_linear_grad_weight));
  m.impl("expert_linear_grad_bias", TORCH_BOX(&gmoe::ops::expert_linear_grad_bias));
  m.impl("expert_linear_grad_gate", TORCH_BOX(&gmoe::ops::expert_linear_grad_gate));
  m.impl("expert_linear_grad_x_gate", TORCH_BOX(&gmoe::ops::expert_linear_grad_x_gate));
}
