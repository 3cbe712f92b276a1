#include "core/noisy_topk.h"

#include "ops/call.h"

namespace gmoe::ops {
namespace {

void check_logits(const char* op, const Tensor& clean, const Tensor& sigma, const Tensor& noise, std::int64_t k) {
  check_dim(op, "clean", clean, 2);
  check_floating(op, "clean", clean);
  check_shape_like(op, "sigma", sigma, clean, "'clean'");
  check_same_dtype(op, "sigma", sigma, "clean", clean);
  check_shape_like(op, "noise", noise, clean, "'clean'");
  check_same_dtype(op, "noise", noise, "clean", clean);
  check_k(op, k, clean.size(1));
}

void check_sums(const char* op, const char* name, const Tensor& t, const Tensor& clean) {
  check_dim(op, name, t, 1);
  check_size(op, name, t, 0, clean.size(1), "'clean'");
  check(t.scalar_type() == accumulator_dtype(clean.scalar_type()), op, ": expected '", name,
        "' of dtype float32, or float64 for float64 logits");
}

// Dense logits that fit each other.
struct Logits {
  Tensor clean, sigma, noise;
  std::int64_t k;

  Logits(const Call& call, const Tensor& clean_in, const Tensor& sigma_in, const Tensor& noise_in, std::int64_t k_in)
      : clean(call.read("clean", clean_in)),
        sigma(call.read("sigma", sigma_in)),
        noise(call.read("noise", noise_in)),
        k(k_in) {}

  template <typename T>
  core::NoisyLogits<T> arguments() const {
    return {.clean = data<T>(clean),
            .sigma = data<T>(sigma),
            .noise = data<T>(noise),
            .num_rows = clean.size(0),
            .num_experts = clean.size(1),
            .k = k};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> noisy_topk(const Tensor& clean, const Tensor& sigma, const Tensor& noise,
                                                      std::int64_t k) {
  constexpr const char* op = "gmoe::noisy_topk";
  check_logits(op, clean, sigma, noise, k);
  Call call(op, clean);
  const Logits logits(call, clean, sigma, noise, k);
  const std::int64_t rows = clean.size(0), experts = clean.size(1);
  Tensor gate = new_like(logits.clean, {rows, k}), index = new_like(logits.clean, {rows, k}, ScalarType::Long);
  Tensor importance = new_like(logits.clean, {experts}, accumulator_dtype(clean.scalar_type()));
  Tensor load = new_like(importance, {experts});
  dispatch_floating(op, clean.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = core::Accumulator<T>;
    const core::NoisyTopk<T> a{.logits = logits.arguments<T>(),
                               .gate = mutable_data<T>(gate),
                               .index = mutable_data<std::int64_t>(index),
                               .importance = mutable_data<A>(importance),
                               .load = mutable_data<A>(load)};
    if constexpr (kOnDevice) {
      core::cuda::noisy_topk(a, call.launch(core::cuda::noisy_topk_workspace<T>(rows, experts)));
    } else {
      core::noisy_topk(a);
    }
  });
  return {gate, index, importance, load};
}

std::tuple<Tensor, Tensor> noisy_topk_grad(const Tensor& grad_gate_in, const Tensor& grad_importance_in,
                                           const Tensor& grad_load_in, const Tensor& clean, const Tensor& sigma,
                                           const Tensor& noise, const Tensor& gate_in, const Tensor& index_in) {
  constexpr const char* op = "gmoe::noisy_topk_grad";
  check_dim(op, "index", index_in, 2);
  check_logits(op, clean, sigma, noise, index_in.size(1));
  check_int64(op, "index", index_in);
  check_size(op, "index", index_in, 0, clean.size(0), "'clean'");
  check_shape_like(op, "gate", gate_in, index_in, "'index'");
  check_same_dtype(op, "gate", gate_in, "clean", clean);
  check_shape_like(op, "grad_gate", grad_gate_in, index_in, "'index'");
  check_same_dtype(op, "grad_gate", grad_gate_in, "clean", clean);
  check_sums(op, "grad_importance", grad_importance_in, clean);
  check_sums(op, "grad_load", grad_load_in, clean);
  Call call(op, clean);
  const Logits logits(call, clean, sigma, noise, index_in.size(1));
  const Tensor gate = call.read("gate", gate_in), index = call.read("index", index_in);
  const Tensor grad_gate = call.read("grad_gate", grad_gate_in), grad_load = call.read("grad_load", grad_load_in);
  const Tensor grad_importance = call.read("grad_importance", grad_importance_in);
  call.follow("index", index, clean.size(1));
  Tensor grad_clean = new_like(logits.clean, {clean.size(0), clean.size(1)});
  Tensor grad_sigma = new_like(logits.clean, {clean.size(0), clean.size(1)});
  dispatch_floating(op, clean.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = core::Accumulator<T>;
    const core::NoisyTopkGrad<T> a{.logits = logits.arguments<T>(),
                                   .gate = data<T>(gate),
                                   .index = data<std::int64_t>(index),
                                   .grad_gate = data<T>(grad_gate),
                                   .grad_importance = data<A>(grad_importance),
                                   .grad_load = data<A>(grad_load),
                                   .grad_clean = mutable_data<T>(grad_clean),
                                   .grad_sigma = mutable_data<T>(grad_sigma)};
    if constexpr (kOnDevice) {
      core::cuda::noisy_topk_grad(a, call.launch());
    } else {
      core::noisy_topk_grad(a);
    }
  });
  return {grad_clean, grad_sigma};
}

}  // namespace
}  // namespace gmoe::ops

GMOE_SCHEMAS(m) {
  m.def(
      "noisy_topk(Tensor clean, Tensor sigma, Tensor noise, int k) -> "
      "(Tensor gate, Tensor index, Tensor importance, Tensor load)");
  m.def(
      "noisy_topk_grad(Tensor grad_gate, Tensor grad_importance, Tensor grad_load, Tensor clean, Tensor sigma, "
      "Tensor noise, Tensor gate, Tensor index) -> (Tensor grad_clean, Tensor grad_sigma)");
}

GMOE_OPERATORS(m) {
  m.impl("noisy_topk", TORCH_BOX(&gmoe::ops::noisy_topk));
  m.impl("noisy_topk_grad", TORCH_BOX(&gmoe::ops::noisy_topk_grad));
}
