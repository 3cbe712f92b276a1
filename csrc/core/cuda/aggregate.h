// core/cpu/aggregate.h on the device; arguments are pointers to device memory.
#pragma once

#include "core/cpu/aggregate.h"
#include "core/cuda/launch.h"

namespace gmoe::core::cuda {

template <typename T>
std::int64_t aggregate_workspace(std::int64_t num_rows, std::int64_t num_edges, std::int64_t dim);

// An edge with a bad column is left out and noted as its position, offsets that do not rise from 0 to num_edges as
// num_edges: rows of y are then wrong or not written. The gradient of x is the same on the transpose.
template <typename T, typename Index>
void aggregate(const Aggregate<T, Index>& a, std::int64_t num_columns, const Call& call);

// Of an edge with a bad column: zero, and noted as its position; broken offsets as above. With edges there must be
// rows.
template <typename T, typename Index>
void aggregate_grad_weight(const AggregateGradWeight<T, Index>& a, std::int64_t num_columns, const Call& call);

}  // namespace gmoe::core::cuda
