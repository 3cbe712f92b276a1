#include "ops/noisy_topk.h"

#include "ops/graph_checks.h"

namespace gmoe::ops {
namespace {

void check_logits(const char* op, const char* name, const Tensor& t, const Tensor& clean) {
  check_dim(op, name, t, 2);
  check_same_dtype(op, name, t, "clean", clean);
  check_size(op, name, t, 0, clean.size(0), "'clean'");
  check_size(op, name, t, 1, clean.size(1), "'clean'");
}

void check_slots(const char* op, const char* name, const Tensor& t, const Tensor& index) {
  check_dim(op, name, t, 2);
  check_size(op, name, t, 0, index.size(0), "'index'");
  check_size(op, name, t, 1, index.size(1), "'index'");
}

void check_sums(const char* op, const char* name, const Tensor& t, const Tensor& clean) {
  check_dim(op, name, t, 1);
  check_size(op, name, t, 0, clean.size(1), "'clean'");
  check(t.scalar_type() == accumulator_dtype(clean.scalar_type()), op, ": expected '", name,
        "' of dtype float32, or float64 for float64 logits");
}

}  // namespace

void check_noisy_topk(const char* op, const Tensor& clean, const Tensor& sigma, const Tensor& noise, std::int64_t k) {
  check_dim(op, "clean", clean, 2);
  check_floating(op, "clean", clean);
  check_logits(op, "sigma", sigma, clean);
  check_logits(op, "noise", noise, clean);
  check(k >= 1 && k <= clean.size(1), op, ": expected 1 <= k <= ", clean.size(1), " experts, got ", k);
}

void check_noisy_topk_grad(const char* op, const Tensor& grad_gate, const Tensor& grad_importance,
                           const Tensor& grad_load, const Tensor& clean, const Tensor& gate, const Tensor& index) {
  check_dim(op, "index", index, 2);
  check_int64(op, "index", index);
  check_size(op, "index", index, 0, clean.size(0), "'clean'");
  check_slots(op, "gate", gate, index);
  check_same_dtype(op, "gate", gate, "clean", clean);
  check_slots(op, "grad_gate", grad_gate, index);
  check_same_dtype(op, "grad_gate", grad_gate, "clean", clean);
  check_sums(op, "grad_importance", grad_importance, clean);
  check_sums(op, "grad_load", grad_load, clean);
}

}  // namespace gmoe::ops

GMOE_SCHEMAS(m) {
  m.def(
      "noisy_topk(Tensor clean, Tensor sigma, Tensor noise, int k) -> "
      "(Tensor gate, Tensor index, Tensor importance, Tensor load)");
  m.def(
      "noisy_topk_grad(Tensor grad_gate, Tensor grad_importance, Tensor grad_load, Tensor clean, Tensor sigma, "
      "Tensor noise, Tensor gate, Tensor index) -> (Tensor grad_clean, Tensor grad_sigma)");
}
