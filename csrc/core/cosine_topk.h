// Cosine routing: gate = softmax over the k largest cosines of a row with E expert embeddings (RbM, eq. 3).
#pragma once

#include <cstdint>

#include "core/cuda/launch.h"
#include "core/isa.h"
#include "core/types.h"

namespace gmoe::core {

// All arrays are dense and row-major.
template <typename T>
struct CosineTopk {
  const T* x;       // [num_rows, dim]
  const T* memory;  // [num_experts, dim]
  std::int64_t num_rows, dim, num_experts, k;
  double eps;           // smallest norm
  T* gate;              // [num_rows, k] out, descending
  std::int64_t* index;  // [num_rows, k] out, ties to the lower expert
};

template <typename T>
struct CosineTopkGradX {
  const T* grad_gate;         // [num_rows, k]
  const T* x;                 // [num_rows, dim]
  const T* memory;            // [num_experts, dim]
  const std::int64_t* index;  // [num_rows, k], checked by the caller
  std::int64_t num_rows, dim, num_experts, k;
  double eps;
  T* grad_x;  // [num_rows, dim] out
};

GMOE_DECLARE_PER_ISA(template <typename T> void cosine_topk(const CosineTopk<T>& a))
GMOE_DECLARE_PER_ISA(template <typename T> void cosine_topk_grad_x(const CosineTopkGradX<T>& a))

template <typename T>
void cosine_topk(const CosineTopk<T>& a) {
  GMOE_CALL_ACTIVE_ISA(cosine_topk(a));
}
template <typename T>
void cosine_topk_grad_x(const CosineTopkGradX<T>& a) {
  GMOE_CALL_ACTIVE_ISA(cosine_topk_grad_x(a));
}

}  // namespace gmoe::core

// Arguments point to device memory.
namespace gmoe::core::cuda {

template <typename T>
void cosine_topk(const CosineTopk<T>& a, const Call& call);

// A bad index is left out and noted at its position in a.index.
template <typename T>
void cosine_topk_grad_x(const CosineTopkGradX<T>& a, const Call& call);

}  // namespace gmoe::core::cuda
