// The moving average of the expert embeddings (RbM, eq. 4).
#pragma once

#include <cstdint>

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
