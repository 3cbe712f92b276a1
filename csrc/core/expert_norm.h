// Batch normalisation of routed rows: each expert's slots have statistics of their own.
#pragma once

#include <cstdint>

#include "core/cuda/launch.h"
#include "core/isa.h"
#include "core/types.h"

namespace gmoe::core {

// Up to here an expert's gradient is computed in double: most of it cancels, of two slots all but eps / (var + eps).
inline constexpr std::int64_t kFewSlots = 8;

// The results of num_rows * k slots and the expert of each. All arrays are dense and row-major.
template <typename T>
struct ExpertSlots {
  const T* y;                 // [num_rows, k, dim]
  const std::int64_t* index;  // [num_rows, k], checked by the caller
  const T* gate;              // [num_rows, k], or null: slots stay apart
  std::int64_t num_rows, k, dim, num_experts;
};

template <typename T>
struct ExpertNorm {
  ExpertSlots<T> slots;
  const T *weight, *bias, *running_mean, *running_var;  // [num_experts, dim]
  double eps;                                           // added to the variance
  T* out;                                               // [num_rows, dim] out with gates, else [num_rows, k, dim]
  Accumulator<T>*mean, *var;                            // [num_experts, dim] out: what the rows were normalised by
  std::int64_t* count;                                  // [num_experts] out: slots
};

template <typename T>
struct ExpertNormGrad {
  ExpertSlots<T> slots;
  const T* grad_out;                // as out
  const T *weight, *bias;           // [num_experts, dim]
  const Accumulator<T>*mean, *var;  // [num_experts, dim], as they came out
  const std::int64_t* count;        // [num_experts]
  double eps;
  T* grad_y;                   // [num_rows, k, dim] out
  T *grad_weight, *grad_bias;  // [num_experts, dim] out
  T* grad_gate;                // [num_rows, k] out, or null where slots stay apart
};

GMOE_DECLARE_PER_ISA(template <typename T> void expert_norm(const ExpertNorm<T>& a))
GMOE_DECLARE_PER_ISA(template <typename T> void expert_norm_grad(const ExpertNormGrad<T>& a))

template <typename T>
void expert_norm(const ExpertNorm<T>& a) {
  GMOE_CALL_ACTIVE_ISA(expert_norm(a));
}
template <typename T>
void expert_norm_grad(const ExpertNormGrad<T>& a) {
  GMOE_CALL_ACTIVE_ISA(expert_norm_grad(a));
}

}  // namespace gmoe::core

// Arguments point to device memory.
namespace gmoe::core::cuda {

// Bytes of workspace for either function.
template <typename T>
std::int64_t expert_norm_workspace(const ExpertSlots<T>& slots);

// A slot with a bad index is noted at its position. It belongs to no expert and adds nothing; without gates its row of
// the result is 0.
template <typename T>
void expert_norm(const ExpertNorm<T>& a, const Call& call);
// A slot with a bad index is noted at its position and gets gradients of 0.
template <typename T>
void expert_norm_grad(const ExpertNormGrad<T>& a, const Call& call);

}  // namespace gmoe::core::cuda
