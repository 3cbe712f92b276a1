// core/cpu/routed_edge_aggregate.h on the device; arguments are pointers to device memory. Of bad indices, a column is
// noted as the position of its edge, an edge type as that + num_edges; their edges are left out. Offsets that do not
// rise from 0 to num_edges are noted as 2 num_edges: results are then wrong or not written. With edges there must be
// rows.
#pragma once

#include "core/cpu/routed_edge_aggregate.h"
#include "core/cuda/launch.h"

namespace gmoe::core::cuda {

template <typename T, typename Index>
std::int64_t routed_edge_aggregate_workspace(const EdgeMessages<T, Index>& m);
template <typename T, typename Index>
void routed_edge_aggregate(const RoutedEdgeAggregate<T, Index>& a, const Call& call);

template <typename T, typename Index>
std::int64_t routed_edge_aggregate_grad_workspace(const EdgeMessages<T, Index>& m);
template <typename T, typename Index>
void routed_edge_aggregate_grad(const RoutedEdgeAggregateGrad<T, Index>& a, const Call& call);

// Of an edge with a bad index: zero.
template <typename T, typename Index>
void routed_edge_aggregate_grad_weight(const RoutedEdgeAggregateGradWeight<T, Index>& a, const Call& call);

}  // namespace gmoe::core::cuda
