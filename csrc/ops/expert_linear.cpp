#include "ops/expert_linear.h"

#include "ops/expert_plan.h"

namespace gmoe::ops {
namespace {

void check_slots(const char* op, const char* name, const Tensor& t, std::int64_t num_rows, std::int64_t k) {
  check_dim(op, name, t, 2);
  check_size(op, name, t, 0, num_rows, "the plan");
  check_size(op, name, t, 1, k, "the plan");
}

}  // namespace

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

void check_expert_weight(const char* op, const Tensor& x, const Tensor& offsets, const Tensor& weight,
                         const OptionalTensor& bias) {
  check_dim(op, "weight", weight, 3);
  check_same_dtype(op, "weight", weight, "x", x);
  check_size(op, "weight", weight, 0, offsets.size(0) - 1, "the plan");
  check_size(op, "x", x, 1, weight.size(2), "'weight'");
  if (!bias) return;
  check_dim(op, "bias", *bias, 2);
  check_same_dtype(op, "bias", *bias, "x", x);
  check_size(op, "bias", *bias, 0, weight.size(0), "'weight'");
  check_size(op, "bias", *bias, 1, weight.size(1), "'weight'");
}

void check_grad_y(const char* op, const Tensor& grad_y, const Tensor& x, std::int64_t num_rows, std::int64_t k,
                  bool combined) {
  check_dim(op, "grad_y", grad_y, combined ? 2 : 3);
  check_same_dtype(op, "grad_y", grad_y, "x", x);
  check_size(op, "grad_y", grad_y, 0, num_rows, "the plan");
  if (!combined) check_size(op, "grad_y", grad_y, 1, k, "the plan");
}

}  // namespace gmoe::ops

// tf32: on CUDA, products of float32 from factors rounded to 10 bits of fraction.
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
