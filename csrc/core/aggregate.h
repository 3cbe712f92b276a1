// Sparse aggregation y_i = sum_{j -> i} w_ij x_j over compressed rows (GMoE, eqs. 2 and 11), and the gradient of w.
#pragma once

#include <cstdint>

#include "core/cuda/launch.h"
#include "core/isa.h"
#include "core/types.h"

namespace gmoe::core {

// All arrays are dense and row-major; offsets and columns are checked by the caller.
template <typename T, typename Index>
struct Aggregate {
  const T* x;                    // [num_columns, dim]
  const std::int64_t* offsets;   // [num_rows + 1]
  const Index* columns;          // [num_edges]
  const Accumulator<T>* weight;  // [num_edges], or null for 1
  std::int64_t num_rows, num_edges, dim;
  T* y;  // [num_rows, dim] out
};

template <typename T, typename Index>
struct AggregateGradWeight {
  const T* grad_y;              // [num_rows, dim]
  const T* x;                   // [num_columns, dim]
  const std::int64_t* offsets;  // [num_rows + 1]
  const Index* columns;         // [num_edges]
  std::int64_t num_rows, num_edges, dim;
  Accumulator<T>* grad_weight;  // [num_edges] out
};

// num_columns: rows of x.
GMOE_DECLARE_PER_ISA(template <typename T, typename Index>
                     void aggregate(const Aggregate<T, Index>& a, std::int64_t num_columns))
GMOE_DECLARE_PER_ISA(template <typename T, typename Index>
                     void aggregate_grad_weight(const AggregateGradWeight<T, Index>& a))

template <typename T, typename Index>
void aggregate(const Aggregate<T, Index>& a, std::int64_t num_columns) {
  GMOE_CALL_ACTIVE_ISA(aggregate(a, num_columns));
}
template <typename T, typename Index>
void aggregate_grad_weight(const AggregateGradWeight<T, Index>& a) {
  GMOE_CALL_ACTIVE_ISA(aggregate_grad_weight(a));
}

}  // namespace gmoe::core

// Arguments point to device memory.
namespace gmoe::core::cuda {

template <typename T>
std::int64_t aggregate_workspace(std::int64_t num_rows, std::int64_t num_edges, std::int64_t dim);

// An edge with a bad column is left out and noted at its position. Offsets that do not rise from 0 to num_edges are
// noted at num_edges; rows of y are then wrong or not written. The gradient of x is the same function on the transpose.
template <typename T, typename Index>
void aggregate(const Aggregate<T, Index>& a, std::int64_t num_columns, const Call& call);

// An edge with a bad column gets zero and is noted at its position; broken offsets as above. With edges there must be
// rows.
template <typename T, typename Index>
void aggregate_grad_weight(const AggregateGradWeight<T, Index>& a, std::int64_t num_columns, const Call& call);

}  // namespace gmoe::core::cuda
