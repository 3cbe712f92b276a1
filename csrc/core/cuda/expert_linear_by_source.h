// Sums over slots' rows: of the slots of a row, and, for expert_linear's gradient for x, of those that read a row.
#pragma once

#include "core/cuda/launch.h"
#include "core/cuda/workspace.h"
#include "core/types.h"

namespace gmoe::core::cuda {

// out[r] = sum over i in [start[r], start[r + 1]), ascending, of the row of order[i]; -1 is left out.
template <typename T>
struct SlotSums {
  const Accumulator<T>* rows;  // [num_slots, dim]
  const std::int64_t* order;
  const std::int64_t* start;  // [num_rows + 1], or null: r * per_row
  std::int64_t per_row, num_rows, dim;
  T* out;  // [num_rows, dim]
};
template <typename T>
void sum_slots(const SlotSums<T>& a, const Call& call);

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
