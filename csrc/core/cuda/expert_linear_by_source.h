// What slots add to the rows that they read: the end of expert_linear's gradient for x where slots choose their rows.
#pragma once

#include "core/cuda/launch.h"
#include "core/cuda/workspace.h"
#include "core/types.h"

namespace gmoe::core::cuda {

// out[r] = sum over the slots with source r, ascending, of their rows. A bad source is left out and noted.
template <typename T>
struct SumBySource {
  const Accumulator<T>* rows;  // [num_slots, dim]
  const std::int64_t* source;  // [num_slots]
  std::int64_t num_slots, num_sources, dim;
  T* out;  // [num_sources, dim]
};

// Launches nothing where the workspace has no memory.
template <typename T>
void sum_by_source(const SumBySource<T>& a, Workspace& workspace, const Call& call);

}  // namespace gmoe::core::cuda
