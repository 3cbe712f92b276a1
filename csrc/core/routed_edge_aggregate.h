// Message passing over typed edges for chosen (destination, expert) pairs (the message of OGB's molecule networks):
//   y_ir = sum_{j -> i} w_ij relu(x_ej + table[e, type_ij]),  e = index_ir - first_expert
// Slots whose expert lies outside [0, num_experts) are zeros. Without an index every destination has one slot, for the
// only expert: edge_aggregate.
#pragma once

#include <cstdint>

#include "core/cuda/launch.h"
#include "core/isa.h"
#include "core/types.h"

namespace gmoe::core {

// What forward and gradients share. All arrays are dense and row-major; indices are checked by the caller.
template <typename T, typename Index>
struct EdgeMessages {
  const T* x;                  // [num_experts, num_sources, dim], or [num_sources, dim] shared by all experts
  const T* table;              // [num_experts, num_types, dim]
  const std::int64_t* expert;  // [num_destinations, k], or null: one slot per row, for expert 0
  std::int64_t first_expert, num_experts, k;
  bool shared;                   // x has no expert dimension
  const std::int64_t* offsets;   // compressed rows: of destinations, in the gradient of x and table of sources
  const Index* columns;          // [num_edges]
  const Index* edge_type;        // [num_edges]
  const Accumulator<T>* weight;  // [num_edges], or null for 1
  std::int64_t num_sources, num_destinations, num_edges, num_types, dim;

  // Expert of slot r of a destination, or -1 when it is not one of those given here.
  std::int64_t expert_of(std::int64_t destination, std::int64_t r) const {
    if (expert == nullptr) return 0;
    // Unsigned, so that no value of the index can overflow the difference.
    const auto e = static_cast<std::uint64_t>(expert[destination * k + r]) - static_cast<std::uint64_t>(first_expert);
    return e < static_cast<std::uint64_t>(num_experts) ? static_cast<std::int64_t>(e) : -1;
  }
  const T* source_row(std::int64_t e, std::int64_t source) const {
    return x + ((shared ? 0 : e * num_sources) + source) * dim;
  }
  std::int64_t table_row(std::int64_t e, std::int64_t edge) const {
    return (e * num_types + static_cast<std::int64_t>(edge_type[edge])) * dim;
  }
};

template <typename T, typename Index>
struct RoutedEdgeAggregate {
  EdgeMessages<T, Index> messages;
  T* y;  // [num_destinations, k, dim] out
};

template <typename T, typename Index>
struct RoutedEdgeAggregateGrad {
  EdgeMessages<T, Index> messages;  // rows are sources, columns destinations
  const T* grad_y;                  // [num_destinations, k, dim]
  T* grad_x;                        // like x, out; null when not wanted
  T* grad_table;                    // like table, out; null when not wanted
};

template <typename T, typename Index>
struct RoutedEdgeAggregateGradWeight {
  EdgeMessages<T, Index> messages;
  const T* grad_y;              // [num_destinations, k, dim]
  Accumulator<T>* grad_weight;  // [num_edges] out
};

GMOE_DECLARE_PER_ISA(template <typename T, typename Index>
                     void routed_edge_aggregate(const RoutedEdgeAggregate<T, Index>& a))
GMOE_DECLARE_PER_ISA(template <typename T, typename Index>
                     void routed_edge_aggregate_grad(const RoutedEdgeAggregateGrad<T, Index>& a))
GMOE_DECLARE_PER_ISA(template <typename T, typename Index>
                     void routed_edge_aggregate_grad_weight(const RoutedEdgeAggregateGradWeight<T, Index>& a))

template <typename T, typename Index>
void routed_edge_aggregate(const RoutedEdgeAggregate<T, Index>& a) {
  GMOE_CALL_ACTIVE_ISA(routed_edge_aggregate(a));
}
template <typename T, typename Index>
void routed_edge_aggregate_grad(const RoutedEdgeAggregateGrad<T, Index>& a) {
  GMOE_CALL_ACTIVE_ISA(routed_edge_aggregate_grad(a));
}
template <typename T, typename Index>
void routed_edge_aggregate_grad_weight(const RoutedEdgeAggregateGradWeight<T, Index>& a) {
  GMOE_CALL_ACTIVE_ISA(routed_edge_aggregate_grad_weight(a));
}

}  // namespace gmoe::core

// Arguments point to device memory. An edge with a bad index is left out and noted: a column at the position of its
// edge, an edge type at that + num_edges. Offsets that do not rise from 0 to num_edges are noted at 2 num_edges;
// results are then wrong or not written. With edges there must be rows.
namespace gmoe::core::cuda {

template <typename T, typename Index>
std::int64_t routed_edge_aggregate_workspace(const EdgeMessages<T, Index>& m);
template <typename T, typename Index>
void routed_edge_aggregate(const RoutedEdgeAggregate<T, Index>& a, const Call& call);

template <typename T, typename Index>
std::int64_t routed_edge_aggregate_grad_workspace(const EdgeMessages<T, Index>& m);
template <typename T, typename Index>
void routed_edge_aggregate_grad(const RoutedEdgeAggregateGrad<T, Index>& a, const Call& call);

// An edge with a bad index gets zero.
template <typename T, typename Index>
void routed_edge_aggregate_grad_weight(const RoutedEdgeAggregateGradWeight<T, Index>& a, const Call& call);

}  // namespace gmoe::core::cuda
