#include "core/expert_linear.h"

#include "ops/call.h"

namespace gmoe::ops {
namespace {

void check_slots(const char* op, const char* name, const Tensor& t, std::int64_t num_rows, std::int64_t k) {
  check_dim(op, name, t, 2);
  check_size(op, name, t, 0, num_rows, "the plan");
  check_size(op, name, t, 1, k, "the plan");
}

// x [R, Din], plan, gate [N, k] and source [N, k] fit each other. Returns N.
std::int64_t check_routed_rows(const char* op, const Tensor& x, const Tensor& offsets, const Tensor& order,
                               std::int64_t k, const OptionalTensor& gate, const OptionalTensor& source) {
  check_dim(op, "x", x, 2);
  check_floating(op, "x", x);
  check_plan(op, offsets, order, k);
  const std::int64_t num_rows = order.size(0) / k;
  if (gate) {
    check_slots(op, "gate", *gate, num_rows, k);
    check_same_dtype(op, "gate", *gate, "x", x);
  }
  if (source) {
    check_slots(op, "source", *source, num_rows, k);
    check_index_dtype(op, "source", *source);
  } else {
    check_size(op, "x", x, 0, num_rows, "the plan, or 'source' to be given");
  }
  return num_rows;
}

// weight [E, Dout, Din] and bias [E, Dout] fit x and the plan.
void check_expert_weight(const char* op, const Tensor& x, const Tensor& offsets, const Tensor& weight,
                         const OptionalTensor& bias) {
  check_dim(op, "weight", weight, 3);
  check_same_dtype(op, "weight", weight, "x", x);
  check_size(op, "weight", weight, 0, offsets.size(0) - 1, "the plan");
  check_size(op, "x", x, 1, weight.size(2), "'weight'");
  if (!bias) return;
  check_shape_like(op, "bias", *bias, weight, "'weight'");
  check_same_dtype(op, "bias", *bias, "x", x);
}

// grad_y is [N, Dout], or [N, k, Dout] where results stay apart.
void check_grad_y(const char* op, const Tensor& grad_y, const Tensor& x, std::int64_t num_rows, std::int64_t k,
                  bool combined) {
  check_dim(op, "grad_y", grad_y, combined ? 2 : 3);
  check_same_dtype(op, "grad_y", grad_y, "x", x);
  check_size(op, "grad_y", grad_y, 0, num_rows, "the plan");
  if (!combined) check_size(op, "grad_y", grad_y, 1, k, "the plan");
}

// The routing as the kernels read it; keeps alive what it points to.
struct Routing {
  Tensor offsets, order;
  OptionalTensor gate, source;
  core::ExpertPlanView plan;

  Routing(Call& call, const Tensor& offsets_in, const Tensor& order_in, std::int64_t k, const OptionalTensor& gate_in,
          const OptionalTensor& source_in, std::int64_t num_sources)
      : offsets(call.read("offsets", offsets_in)),
        order(call.read("order", order_in)),
        gate(call.read("gate", gate_in)),
        source(call.read_int64("source", source_in)),
        plan{.offsets = data<std::int64_t>(offsets),
             .order = data<std::int64_t>(order),
             .num_experts = offsets.size(0) - 1,
             .num_rows = order.size(0) / k,
             .k = k} {
    call.follow("source", source, num_sources);
    call.follow_plan(plan);
  }

  template <typename T>
  core::ExpertLinear<T> arguments(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                                  std::int64_t out_dim) const {
    return {.x = data<T>(x),
            .weight = data<T>(weight),
            .bias = data<T>(bias),
            .gate = data<T>(gate),
            .plan = plan,
            .source = data<std::int64_t>(source),
            .num_sources = x.size(0),
            .in_dim = x.size(1),
            .out_dim = out_dim};
  }
};

Tensor expert_linear(const Tensor& x_in, const Tensor& weight_in, const OptionalTensor& bias_in, const Tensor& offsets,
                     const Tensor& order, std::int64_t k, const OptionalTensor& gate, const OptionalTensor& source,
                     [[maybe_unused]] bool tf32) {
  constexpr const char* op = "gmoe::expert_linear";
  const std::int64_t num_rows = check_routed_rows(op, x_in, offsets, order, k, gate, source);
  check_expert_weight(op, x_in, offsets, weight_in, bias_in);
  Call call(op, x_in);
  const Tensor x = call.read("x", x_in), weight = call.read("weight", weight_in);
  const OptionalTensor bias = call.read("bias", bias_in);
  const Routing routing(call, offsets, order, k, gate, source, x.size(0));
  const std::int64_t out_dim = weight.size(1);
  Tensor y = gate ? new_like(x, {num_rows, out_dim}) : new_like(x, {num_rows, k, out_dim});
  dispatch_floating(op, x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const core::ExpertLinear<T> a = routing.arguments<T>(x, weight, bias, out_dim);
    if constexpr (kOnDevice) {
      core::cuda::expert_linear(a, mutable_data<T>(y), tf32, call.launch(core::cuda::expert_linear_workspace(a)));
    } else {
      core::expert_linear(a, mutable_data<T>(y));
    }
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
                      [[maybe_unused]] bool tf32) {
  const std::int64_t num_rows = check_routed_rows(op, x_in, offsets, order, k, gate, source);
  check_expert_weight(op, x_in, offsets, weight_in, bias_in);
  check_grad_y(op, grad_y_in, x_in, num_rows, k, wants_gate || gate.has_value());
  check_size(op, "grad_y", grad_y_in, grad_y_in.dim() - 1, weight_in.size(1), "'weight'");
  Call call(op, x_in);
  const Tensor grad_y = call.read("grad_y", grad_y_in), x = call.read("x", x_in);
  const Tensor weight = call.read("weight", weight_in);
  const OptionalTensor bias = call.read("bias", bias_in);
  const Routing routing(call, offsets, order, k, gate, source, x.size(0));
  GradXGate out{.grad_x = new_like(x, {wants_x ? x.size(0) : 0, x.size(1)}),
                .grad_gate = new_like(x, {wants_gate ? num_rows : 0, k})};
  dispatch_floating(op, x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const core::ExpertLinear<T> a = routing.arguments<T>(x, weight, bias, weight.size(1));
    T* grad_x = wants_x ? mutable_data<T>(out.grad_x) : nullptr;
    T* grad_gate = wants_gate ? mutable_data<T>(out.grad_gate) : nullptr;
    if constexpr (kOnDevice) {
      const std::int64_t bytes = core::cuda::expert_linear_grad_x_gate_workspace(a, wants_x, wants_gate);
      core::cuda::expert_linear_grad_x_gate(a, data<T>(grad_y), grad_x, grad_gate, tf32, call.launch(bytes));
    } else {
      core::expert_linear_grad_x_gate(a, data<T>(grad_y), grad_x, grad_gate);
    }
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
                                 const OptionalTensor& source, [[maybe_unused]] bool tf32) {
  constexpr const char* op = "gmoe::expert_linear_grad_weight";
  const std::int64_t num_rows = check_routed_rows(op, x_in, offsets, order, k, gate, source);
  check_grad_y(op, grad_y_in, x_in, num_rows, k, gate.has_value());
  Call call(op, x_in);
  const Tensor grad_y = call.read("grad_y", grad_y_in), x = call.read("x", x_in);
  const Routing routing(call, offsets, order, k, gate, source, x.size(0));
  const std::int64_t out_dim = grad_y.size(grad_y.dim() - 1);
  Tensor grad_weight = new_like(x, {routing.plan.num_experts, out_dim, x.size(1)});
  dispatch_floating(op, x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const core::ExpertLinear<T> a = routing.arguments<T>(x, std::nullopt, std::nullopt, out_dim);
    if constexpr (kOnDevice) {
      core::cuda::expert_linear_grad_weight(a, data<T>(grad_y), mutable_data<T>(grad_weight), tf32,
                                            call.launch(core::cuda::expert_linear_grad_weight_workspace(a)));
    } else {
      core::expert_linear_grad_weight(a, data<T>(grad_y), mutable_data<T>(grad_weight));
    }
  });
  return grad_weight;
}

Tensor expert_linear_grad_bias(const Tensor& grad_y_in, const Tensor& offsets, const Tensor& order, std::int64_t k,
                               const OptionalTensor& gate) {
  constexpr const char* op = "gmoe::expert_linear_grad_bias";
  check_floating(op, "grad_y", grad_y_in);
  check_plan(op, offsets, order, k);
  check_grad_y(op, grad_y_in, grad_y_in, order.size(0) / k, k, gate.has_value());
  Call call(op, grad_y_in);
  const Tensor grad_y = call.read("grad_y", grad_y_in);
  const std::int64_t out_dim = grad_y.size(grad_y.dim() - 1);
  // The rows that were read do not matter here; an x of the right shape keeps the checks in one place.
  const Tensor no_x = new_like(grad_y, {order.size(0) / k, 0});
  check_routed_rows(op, no_x, offsets, order, k, gate, std::nullopt);
  const Routing routing(call, offsets, order, k, gate, std::nullopt, 0);
  Tensor grad_bias = new_like(grad_y, {routing.plan.num_experts, out_dim});
  dispatch_floating(op, grad_y.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const core::ExpertLinear<T> a = routing.arguments<T>(no_x, std::nullopt, std::nullopt, out_dim);
    if constexpr (kOnDevice) {
      core::cuda::expert_linear_grad_bias(a, data<T>(grad_y), mutable_data<T>(grad_bias),
                                          call.launch(core::cuda::expert_linear_grad_bias_workspace(a)));
    } else {
      core::expert_linear_grad_bias(a, data<T>(grad_y), mutable_data<T>(grad_bias));
    }
  });
  return grad_bias;
}

}  // namespace
}  // namespace gmoe::ops

// tf32: on CUDA, products of float32 from factors rounded to 10 bits of fraction. The CPU ignores it.
GMOE_SCHEMAS(m) {
  m.def(
      "expert_linear(Tensor x, Tensor weight, Tensor? bias, Tensor offsets, Tensor order, int k, Tensor? gate, "
      "Tensor? source, bool tf32=False) -> Tensor");
  m.def(
      "expert_linear_grad_x(Tensor grad_y, Tensor x, Tensor weight, Tensor offsets, Tensor order, int k, "
      "Tensor? gate, Tensor? source, bool tf32=False) -> Tensor");
  m.def(
      "expert_linear_grad_weight(Tensor grad_y, Tensor x, Tensor offsets, Tensor order, int k, Tensor? gate, "
      "Tensor? source, bool tf32=False) -> Tensor");
  m.def("expert_linear_grad_bias(Tensor grad_y, Tensor offsets, Tensor order, int k, Tensor? gate) -> Tensor");
  m.def(
      "expert_linear_grad_gate(Tensor grad_y, Tensor x, Tensor weight, Tensor? bias, Tensor offsets, Tensor order, "
      "int k, Tensor? source, bool tf32=False) -> Tensor");
  m.def(
      "expert_linear_grad_x_gate(Tensor grad_y, Tensor x, Tensor weight, Tensor? bias, Tensor offsets, Tensor order, "
      "int k, Tensor gate, Tensor? source, bool tf32=False) -> (Tensor grad_x, Tensor grad_gate)");
}

GMOE_OPERATORS(m) {
  m.impl("expert_linear", TORCH_BOX(&gmoe::ops::expert_linear));
  m.impl("expert_linear_grad_x", TORCH_BOX(&gmoe::ops::expert_linear_grad_x));
  m.impl("expert_linear_grad_weight", TORCH_BOX(&gmoe::ops::expert_linear_grad_weight));
  m.impl("expert_linear_grad_bias", TORCH_BOX(&gmoe::ops::expert_linear_grad_bias));
  m.impl("expert_linear_grad_gate", TORCH_BOX(&gmoe::ops::expert_linear_grad_gate));
  m.impl("expert_linear_grad_x_gate", TORCH_BOX(&gmoe::ops::expert_linear_grad_x_gate));
}
