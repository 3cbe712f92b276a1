// The noisy gate of GMoE in training: choice, gates, and the two sums that its balance losses are made of (GMoE, eqs. 3
// to 7).
#pragma once

#include <cstdint>

#include "core/cuda/launch.h"
#include "core/isa.h"
#include "core/types.h"

namespace gmoe::core {

// All arrays are dense and row-major. noisy = clean + noise * sigma is what the choice is made on.
template <typename T>
struct NoisyLogits {
  const T *clean, *sigma, *noise;  // [num_rows, num_experts]
  std::int64_t num_rows, num_experts, k;
};

template <typename T>
struct NoisyTopk {
  NoisyLogits<T> logits;
  T* gate;                           // [num_rows, k] out, descending
  std::int64_t* index;               // [num_rows, k] out, ties to the lower expert
  Accumulator<T>*importance, *load;  // [num_experts] out: sums of gates, and of chances of being chosen
};

template <typename T>
struct NoisyTopkGrad {
  NoisyLogits<T> logits;
  const T* gate;                                     // [num_rows, k], as it came out
  const std::int64_t* index;                         // [num_rows, k], as it came out, checked by the caller
  const T* grad_gate;                                // [num_rows, k]
  const Accumulator<T>*grad_importance, *grad_load;  // [num_experts]
  T *grad_clean, *grad_sigma;                        // [num_rows, num_experts] out
};

GMOE_DECLARE_PER_ISA(template <typename T> void noisy_topk(const NoisyTopk<T>& a))
GMOE_DECLARE_PER_ISA(template <typename T> void noisy_topk_grad(const NoisyTopkGrad<T>& a))

template <typename T>
void noisy_topk(const NoisyTopk<T>& a) {
  GMOE_CALL_ACTIVE_ISA(noisy_topk(a));
}
template <typename T>
void noisy_topk_grad(const NoisyTopkGrad<T>& a) {
  GMOE_CALL_ACTIVE_ISA(noisy_topk_grad(a));
}

}  // namespace gmoe::core

// Arguments point to device memory.
namespace gmoe::core::cuda {

template <typename T>
std::int64_t noisy_topk_workspace(std::int64_t num_rows, std::int64_t num_experts);
template <typename T>
void noisy_topk(const NoisyTopk<T>& a, const Call& call);

// A bad index is skipped and noted at its position in g.index. Needs no workspace.
template <typename T>
void noisy_topk_grad(const NoisyTopkGrad<T>& g, const Call& call);

}  // namespace gmoe::core::cuda
