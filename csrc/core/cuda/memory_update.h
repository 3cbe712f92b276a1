// core/cpu/memory_update.h on the device; arguments are pointers to device memory.
#pragma once

#include "core/cpu/memory_update.h"
#include "core/cuda/launch.h"

namespace gmoe::core::cuda {

template <typename T>
std::int64_t memory_update_workspace(std::int64_t num_rows, std::int64_t dim, std::int64_t num_experts);

// A slot with a bad index is left out and noted as its position in a.index.
template <typename T>
void memory_update(const MemoryUpdate<T>& a, const Call& call);

}  // namespace gmoe::core::cuda
