// The forward of expert_linear is a routed product, and its gradients for x and the gate are another: routed_product.h.
#include "core/cpu/expert_linear.h"

#include <vector>

#include "core/cpu/whole_product.h"

namespace gmoe::core::GMOE_ISA {
namespace {

// The row of x that a slot reads, and the row of y that it adds to.
template <typename T>
RowOf source_row(const ExpertLinear<T>& a) {
  return {a.source, a.plan.k};
}
template <typename T>
RowOf result_row(const ExpertLinear<T>& a, bool combined) {
  return {nullptr, combined ? a.plan.k : 1};
}

// The plan's slots, within each expert ascending in the source row, then in the slot: the order that grad_x owns rows
// by.
template <typename T>
std::vector<std::int64_t> order_by_source(const ExpertLinear<T>& a) {
  const std::int64_t num_slots = a.plan.num_slots();
  std::vector<std::int64_t> next(static_cast<std::size_t>(a.num_sources + 1), 0);
  for (std::int64_t s = 0; s < num_slots; ++s) ++next[a.source[s] + 1];
  for (std::int64_t i = 0; i < a.num_sources; ++i) next[i + 1] += next[i];
  std::vector<std::int64_t> by_source(static_cast<std::size_t>(num_slots));
  for (std::int64_t s = 0; s < num_slots; ++s) by_source[next[a.source[s]]++] = s;

  std::vector<std::int64_t> expert(static_cast<std::size_t>(num_slots));
  for (std::int64_t e = 0; e < a.plan.num_experts; ++e) {
    for (std::int64_t i = a.plan.offsets[e]; i < a.plan.offsets[e + 1]; ++i) expert[a.plan.order[i]] = e;
  }
  std::vector<std::int64_t> place(a.plan.offsets, a.plan.offsets + a.plan.num_experts);
  std::vector<std::int64_t> order(static_cast<std::size_t>(num_slots));
  for (const std::int64_t s : by_source) order[place[expert[s]]++] = s;
  return order;
}

// The gradient of the gates where x has no columns: there is no product with which b_e . dy_i could come.
template <typename T>
void add_bias_dots(const ExpertLinear<T>& a, const T* grad_y, Accumulator<T>* value) {
  for (std::int64_t e = 0; e < a.plan.num_experts; ++e) {
    const T* bias = a.bias + e * a.out_dim;
    for (std::int64_t i = a.plan.offsets[e]; i < a.plan.offsets[e + 1]; ++i) {
      const std::int64_t slot = a.plan.order[i];
      const T* grad = grad_y + slot / a.plan.k * a.out_dim;
      for (std::int64_t f = 0; f < a.out_dim; ++f) value[slot] += widen(bias[f]) * widen(grad[f]);
    }
  }
}

}  // namespace

template <typename T>
void expert_linear(const ExpertLinear<T>& a, T* y) {
  RoutedProduct<T> p{};
  p.in = a.x;
  p.in_row = source_row(a);
  p.out_row = result_row(a, a.gate != nullptr);
  p.weight = a.weight;
  p.layout = WeightLayout::columns_by_depth;
  p.bias = a.bias;
  p.gate = a.gate;
  p.offsets = a.plan.offsets;
  p.order = a.plan.order;
  p.num_experts = a.plan.num_experts;
  p.depth = a.in_dim;
  p.columns = a.out_dim;
  p.out_rows = a.gate != nullptr ? a.plan.num_rows : a.plan.num_slots();
  p.out = y;
  run_routed_product(p);
}

// dx_s += gate_ir W_e^T dy_i: the same product with rows in and out exchanged. The gradient of the gates,
// dy_i . (W_e x_s + b_e) = x_s . (W_e^T dy_i) + b_e . dy_i, needs the same W_e^T dy_i, so one pass gives both.
template <typename T>
void expert_linear_grad_x_gate(const ExpertLinear<T>& a, const T* grad_y, T* grad_x, T* grad_gate) {
  using A = Accumulator<T>;
  const std::vector<std::int64_t> order = a.source != nullptr ? order_by_source(a) : std::vector<std::int64_t>{};
  std::vector<A> value(grad_gate != nullptr ? static_cast<std::size_t>(a.plan.num_slots()) : 0, A{0});
  RoutedProduct<T> p{};
  p.in = grad_y;
  p.in_row = result_row(a, a.gate != nullptr || grad_gate != nullptr);
  p.out_row = source_row(a);
  p.weight = a.weight;
  p.layout = WeightLayout::depth_by_columns;
  p.gate = a.gate;
  p.offsets = a.plan.offsets;
  p.order = a.source != nullptr ? order.data() : a.plan.order;
  p.num_experts = a.plan.num_experts;
  p.depth = a.out_dim;
  p.columns = a.in_dim;
  p.out_rows = a.num_sources;
  p.out = grad_x;
  p.against = grad_gate != nullptr ? a.x : nullptr;
  p.in_against = grad_gate != nullptr ? a.bias : nullptr;
  p.slot_value = value.data();
  run_routed_product(p);
  if (a.in_dim == 0 && grad_gate != nullptr && a.bias != nullptr) add_bias_dots(a, grad_y, value.data());
  for (std::size_t s = 0; s < value.size(); ++s) grad_gate[s] = narrow<T>(value[s]);
}

template void expert_linear(const ExpertLinear<float>&, float*);
template void expert_linear(const ExpertLinear<double>&, double*);
template void expert_linear(const ExpertLinear<bfloat16>&, bfloat16*);
template void expert_linear_grad_x_gate(const ExpertLinear<float>&, const float*, float*, float*);
template void expert_linear_grad_x_gate(const ExpertLinear<double>&, const double*, double*, double*);
template void expert_linear_grad_x_gate(const ExpertLinear<bfloat16>&, const bfloat16*, bfloat16*, bfloat16*);

}  // namespace gmoe::core::GMOE_ISA
