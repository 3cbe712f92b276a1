// One linear layer per expert, applied to the rows routed to it: y_i = sum_r gate_ir (W_e x_s + b_e) with e = index_ir
// and s = source_ir (GMoE, eq. 2; RbM, eq. 1), or the k results apart. Gradients are separate functions.
#pragma once

#include <cstdint>

#include "core/cuda/launch.h"
#include "core/expert_plan.h"
#include "core/isa.h"
#include "core/types.h"

namespace gmoe::core {

// All arrays are dense and row-major. Functions that do not need an array ignore it.
template <typename T>
struct ExpertLinear {
  const T* x;                  // [num_sources, in_dim]
  const T* weight;             // [num_experts, out_dim, in_dim]
  const T* bias;               // [num_experts, out_dim] or null
  const T* gate;               // [num_rows, k], or null: results stay apart
  ExpertPlanView plan;         // checked by the caller: find_plan_fault
  const std::int64_t* source;  // [num_rows, k], checked by the caller, or null: slot (i, r) reads row i
  std::int64_t num_sources, in_dim, out_dim;
};

// y and grad_y are [num_rows, out_dim] with a gate, else [num_rows, k, out_dim].
GMOE_DECLARE_PER_ISA(template <typename T> void expert_linear(const ExpertLinear<T>& a, T* y))
// grad_x [num_sources, in_dim] and grad_gate [num_rows, k], either may be null. With grad_gate, grad_y is
// [num_rows, out_dim] and a.gate matters to grad_x alone.
GMOE_DECLARE_PER_ISA(template <typename T>
                     void expert_linear_grad_x_gate(const ExpertLinear<T>& a, const T* grad_y, T* grad_x, T* grad_gate))
GMOE_DECLARE_PER_ISA(template <typename T>
                     void expert_linear_grad_weight(const ExpertLinear<T>& a, const T* grad_y, T* grad_weight))
GMOE_DECLARE_PER_ISA(template <typename T>
                     void expert_linear_grad_bias(const ExpertLinear<T>& a, const T* grad_y, T* grad_bias))

template <typename T>
void expert_linear(const ExpertLinear<T>& a, T* y) {
  GMOE_CALL_ACTIVE_ISA(expert_linear(a, y));
}
template <typename T>
void expert_linear_grad_x_gate(const ExpertLinear<T>& a, const T* grad_y, T* grad_x, T* grad_gate) {
  GMOE_CALL_ACTIVE_ISA(expert_linear_grad_x_gate(a, grad_y, grad_x, grad_gate));
}
template <typename T>
void expert_linear_grad_weight(const ExpertLinear<T>& a, const T* grad_y, T* grad_weight) {
  GMOE_CALL_ACTIVE_ISA(expert_linear_grad_weight(a, grad_y, grad_weight));
}
template <typename T>
void expert_linear_grad_bias(const ExpertLinear<T>& a, const T* grad_y, T* grad_bias) {
  GMOE_CALL_ACTIVE_ISA(expert_linear_grad_bias(a, grad_y, grad_bias));
}

}  // namespace gmoe::core

// Arguments point to device memory. A bad source is left out and noted at its position. A plan that does not name every
// slot once is noted at the number of slots, and missing slots are left out; the gradients of weight and bias do not
// notice slots that are missing or named twice.
//
// With tf32, products of floats run on matrix instructions, with factors rounded to 10 bits of fraction; it does not
// affect other types.
namespace gmoe::core::cuda {

inline constexpr std::int64_t kMaxChoices = 1024;  // experts per row

// Bytes of workspace; depends on the sizes and on which pointers are null.
template <typename T>
std::int64_t expert_linear_workspace(const ExpertLinear<T>& a);

template <typename T>
void expert_linear(const ExpertLinear<T>& a, T* y, bool tf32, const Call& call);

template <typename T>
std::int64_t expert_linear_grad_x_gate_workspace(const ExpertLinear<T>& a, bool grad_x, bool grad_gate);

template <typename T>
void expert_linear_grad_x_gate(const ExpertLinear<T>& a, const T* grad_y, T* grad_x, T* grad_gate, bool tf32,
                               const Call& call);

template <typename T>
std::int64_t expert_linear_grad_weight_workspace(const ExpertLinear<T>& a);

template <typename T>
void expert_linear_grad_weight(const ExpertLinear<T>& a, const T* grad_y, T* grad_weight, bool tf32, const Call& call);

template <typename T>
std::int64_t expert_linear_grad_bias_workspace(const ExpertLinear<T>& a);

template <typename T>
void expert_linear_grad_bias(const ExpertLinear<T>& a, const T* grad_y, T* grad_bias, const Call& call);

}  // namespace gmoe::core::cuda
