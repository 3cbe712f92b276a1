#include "core/noisy_topk.h"

#include "ops/graph_checks.h"
#include "ops/noisy_topk.h"

namespace gmoe::ops {
namespace {

// Dense logits that fit each other.
struct Logits {
  Tensor clean, sigma, noise;
  std::int64_t k;

  Logits(const char* op, const Tensor& clean_in, const Tensor& sigma_in, const Tensor& noise_in, std::int64_t k_in)
      : k(k_in) {
    check_noisy_topk(op, clean_in, sigma_in, noise_in, k);
    clean = dense(clean_in);
    sigma = dense(sigma_in);
    noise = dense(noise_in);
  }

  template <typename T>
  core::NoisyLogits<T> arguments() const {
    return {data<T>(clean), data<T>(sigma), data<T>(noise), clean.size(0), clean.size(1), k};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> noisy_topk(const Tensor& clean, const Tensor& sigma, const Tensor& noise,
                                                      std::int64_t k) {
  constexpr const char* op = "gmoe::noisy_topk";
  const Logits logits(op, clean, sigma, noise, k);
  const std::int64_t rows = clean.size(0), experts = clean.size(1);
  Tensor gate = new_like(logits.clean, {rows, k}), index = new_like(logits.clean, {rows, k}, ScalarType::Long);
  Tensor importance = new_like(logits.clean, {experts}, accumulator_dtype(clean.scalar_type()));
  Tensor load = new_like(importance, {experts});
  dispatch_floating(op, clean.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = core::Accumulator<T>;
    core::noisy_topk<T>({logits.arguments<T>(), mutable_data<T>(gate), mutable_data<std::int64_t>(index),
                         mutable_data<A>(importance), mutable_data<A>(load)});
  });
  return {gate, index, importance, load};
}

std::tuple<Tensor, Tensor> noisy_topk_grad(const Tensor& grad_gate_in, const Tensor& grad_importance_in,
                                           const Tensor& grad_load_in, const Tensor& clean, const Tensor& sigma,
                                           const Tensor& noise, const Tensor& gate_in, const Tensor& index_in) {
  constexpr const char* op = "gmoe::noisy_topk_grad";
  check_dim(op, "index", index_in, 2);
  const Logits logits(op, clean, sigma, noise, index_in.size(1));
  check_noisy_topk_grad(op, grad_gate_in, grad_importance_in, grad_load_in, clean, gate_in, index_in);
  const Tensor gate = dense(gate_in), index = dense(index_in), grad_gate = dense(grad_gate_in);
  const Tensor grad_importance = dense(grad_importance_in), grad_load = dense(grad_load_in);
  check_indices(op, "index", index, clean.size(1));
  Tensor grad_clean = new_like(logits.clean, {clean.size(0), clean.size(1)});
  Tensor grad_sigma = new_like(logits.clean, {clean.size(0), clean.size(1)});
  dispatch_floating(op, clean.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = core::Accumulator<T>;
    core::noisy_topk_grad<T>({logits.arguments<T>(), data<T>(gate), data<std::int64_t>(index), data<T>(grad_gate),
                              data<A>(grad_importance), data<A>(grad_load), mutable_data<T>(grad_clean),
                              mutable_data<T>(grad_sigma)});
  });
  return {grad_clean, grad_sigma};
}

}  // namespace
}  // namespace gmoe::ops

STABLE_TORCH_LIBRARY_IMPL(gmoe, CPU, m) {
  m.impl("noisy_topk", TORCH_BOX(&gmoe::ops::noisy_topk));
  m.impl("noisy_topk_grad", TORCH_BOX(&gmoe::ops::noisy_topk_grad));
}
