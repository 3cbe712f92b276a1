// The gate of GMoE: softmax over the k largest logits of each row (GMoE, eq. 3).
#pragma once

#include <cstdint>

#include "core/cuda/launch.h"
#include "core/isa.h"
#include "core/types.h"

namespace gmoe::core {

// All arrays are dense and row-major.
template <typename T>
struct TopkSoftmax {
  const T* logits;  // [num_rows, num_experts]
  std::int64_t num_rows, num_experts, k;
  T* gate;              // [num_rows, k] out, descending
  std::int64_t* index;  // [num_rows, k] out, ties to the lower expert
};

template <typename T>
struct TopkSoftmaxGradLogits {
  const T* grad_gate;         // [num_rows, k]
  const T* gate;              // [num_rows, k]
  const std::int64_t* index;  // [num_rows, k], checked by the caller, no expert twice in a row
  std::int64_t num_rows, num_experts, k;
  T* grad_logits;  // [num_rows, num_experts] out
};

GMOE_DECLARE_PER_ISA(template <typename T> void topk_softmax(const TopkSoftmax<T>& a))
GMOE_DECLARE_PER_ISA(template <typename T> void topk_softmax_grad_logits(const TopkSoftmaxGradLogits<T>& a))

template <typename T>
void topk_softmax(const TopkSoftmax<T>& a) {
  GMOE_CALL_ACTIVE_ISA(topk_softmax(a));
}
template <typename T>
void topk_softmax_grad_logits(const TopkSoftmaxGradLogits<T>& a) {
  GMOE_CALL_ACTIVE_ISA(topk_softmax_grad_logits(a));
}

}  // namespace gmoe::core

// Arguments point to device memory.
namespace gmoe::core::cuda {

template <typename T>
void topk_softmax(const TopkSoftmax<T>& a, const Call& call);

// A bad index is skipped and noted at its position in a.index.
template <typename T>
void topk_softmax_grad_logits(const TopkSoftmaxGradLogits<T>& a, const Call& call);

}  // namespace gmoe::core::cuda
