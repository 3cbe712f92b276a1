// Cosine routing and, in the same pass over the rows, the moving average of the expert embeddings (RbM, eqs. 3 and 4).
#pragma once

#include "core/cosine_topk.h"
#include "core/cuda/launch.h"

namespace gmoe::core {

template <typename T>
struct CosineTopkUpdate {
  CosineTopk<T> route;
  double rate;
  bool normalize;  // average directions of rows instead of rows
  T* new_memory;   // [num_experts, dim] out, apart from the memory that routes
};

GMOE_DECLARE_PER_ISA(template <typename T> void cosine_topk_update(const CosineTopkUpdate<T>& a))

template <typename T>
void cosine_topk_update(const CosineTopkUpdate<T>& a) {
  GMOE_CALL_ACTIVE_ISA(cosine_topk_update(a));
}

}  // namespace gmoe::core

// Arguments point to device memory.
namespace gmoe::core::cuda {

template <typename T>
std::int64_t cosine_topk_update_workspace(std::int64_t num_rows, std::int64_t dim, std::int64_t num_experts);

template <typename T>
void cosine_topk_update(const CosineTopkUpdate<T>& a, const Call& call);

}  // namespace gmoe::core::cuda
