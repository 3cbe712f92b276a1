// expert_linear of rows that are mostly zeros, kept as compressed rows: y_i = sum_r gate_ir (W_e S_e x_i + b_e) with
// e = index_ir and S_e = diag(scale_e) (RbM, eq. 5), or the k results apart. Gradients are separate functions.
#pragma once

#include <cstdint>

#include "core/cuda/launch.h"
#include "core/isa.h"
#include "core/types.h"

namespace gmoe::core {

// All arrays are dense and row-major. Functions that do not need an array ignore it.
template <typename T>
struct SparseExperts {
  using A = Accumulator<T>;
  const A* value;       // [num_values, values_per_entry] or null: 1
  bool value_per_slot;  // values_per_entry is k: slot (i, r) has a value of its own, as dropout leaves them; else 1
  const T* weight;      // [num_experts, in_dim, out_dim]: an input's weights lie together
  const T* scale;       // [num_experts, in_dim] or null: 1
  const T* bias;        // [num_experts, out_dim] or null
  const std::int64_t* index;  // [num_rows, k]
  const T* gate;              // [num_rows, k], or null: results stay apart
  std::int64_t num_rows, num_values, num_experts, in_dim, out_dim, k;

  GMOE_HOST_DEVICE A value_of(std::int64_t entry, std::int64_t r) const {
    return value == nullptr ? A{1} : value_per_slot ? value[entry * k + r] : value[entry];
  }
};

template <typename T>
struct SparseExpertLinear {
  SparseExperts<T> experts;
  const std::int64_t* offsets;  // [num_rows + 1]
  const std::int32_t* columns;  // [num_values]
  const T* grad_y;              // of the gradient of the gates: [num_rows, out_dim]
  T* out;  // y [num_rows, out_dim], without gate [num_rows, k, out_dim]; or the gates' gradient [num_rows, k]
};

// By columns: entry p of column c is that of row rows[p]. Its value is value[order[p]], or without order value[p].
template <typename T>
struct SparseExpertLinearGrad {
  SparseExperts<T> experts;
  const std::int64_t* offsets;  // [num_columns + 1]
  const std::int32_t* rows;     // [num_values]
  const std::int64_t* order;    // [num_values] or null
  std::int64_t num_columns;     // at most in_dim; the gradient of the other inputs is 0
  const T* grad_y;              // [num_rows, out_dim], without gate [num_rows, k, out_dim]
  T* grad_weight;               // [num_experts, in_dim, out_dim]
  T* grad_scale;                // [num_experts, in_dim] or null
};

GMOE_DECLARE_PER_ISA(template <typename T> void sparse_expert_linear(const SparseExpertLinear<T>& a))
GMOE_DECLARE_PER_ISA(template <typename T> void sparse_expert_linear_grad_gate(const SparseExpertLinear<T>& a))
GMOE_DECLARE_PER_ISA(template <typename T> void sparse_expert_linear_grad_weight(const SparseExpertLinearGrad<T>& a))

template <typename T>
void sparse_expert_linear(const SparseExpertLinear<T>& a) {
  GMOE_CALL_ACTIVE_ISA(sparse_expert_linear(a));
}
template <typename T>
void sparse_expert_linear_grad_gate(const SparseExpertLinear<T>& a) {
  GMOE_CALL_ACTIVE_ISA(sparse_expert_linear_grad_gate(a));
}
template <typename T>
void sparse_expert_linear_grad_weight(const SparseExpertLinearGrad<T>& a) {
  GMOE_CALL_ACTIVE_ISA(sparse_expert_linear_grad_weight(a));
}

}  // namespace gmoe::core

// Arguments point to device memory. A bad index is left out and noted at its position.
namespace gmoe::core::cuda {

template <typename T>
void sparse_expert_linear(const SparseExpertLinear<T>& a, const Call& call);

template <typename T>
void sparse_expert_linear_grad_gate(const SparseExpertLinear<T>& a, const Call& call);

template <typename T>
void sparse_expert_linear_grad_weight(const SparseExpertLinearGrad<T>& a, const Call& call);

}  // namespace gmoe::core::cuda
