// The moving average of the expert embeddings (RbM, eq. 4).
#pragma once

#include <cstdint>

#include "core/cuda/launch.h"
#include "core/isa.h"
#include "core/types.h"

namespace gmoe::core {

// All arrays are dense and row-major.
template <typename T>
struct MemoryUpdate {
  const T* memory;            // [num_experts, dim]
  const T* x;                 // [num_rows, dim]
  const T* gate;              // [num_rows, k]
  const std::int64_t* index;  // [num_rows, k], checked by the caller
  std::int64_t num_rows, dim, num_experts, k;
  double rate;
  bool normalize;
  double eps;  // smallest norm
  T* out;      // [num_experts, dim]
};

GMOE_DECLARE_PER_ISA(template <typename T> void memory_update(const MemoryUpdate<T>& a))

template <typename T>
void memory_update(const MemoryUpdate<T>& a) {
  GMOE_CALL_ACTIVE_ISA(memory_update(a));
}

}  // namespace gmoe::core

// Arguments point to device memory.
namespace gmoe::core::cuda {

template <typename T>
std::int64_t memory_update_workspace(std::int64_t num_rows, std::int64_t dim, std::int64_t num_experts);

// A slot with a bad index is left out and noted at its position in a.index.
template <typename T>
void memory_update(const MemoryUpdate<T>& a, const Call& call);

}  // namespace gmoe::core::cuda
