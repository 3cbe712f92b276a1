// The experts' sums over typed edges, put together for each destination (GMoE, eq. 2, in evaluation):
//   y_i = onto_i + sum_r gate_ir (scale_e * sum_{j -> i} w_ij relu(x_ej + table[e, type_ij]) + shift_e)
// over the slots r whose expert e = index_ir - first_expert is given here.
#pragma once

#include "core/cuda/launch.h"
#include "core/routed_edge_aggregate.h"

namespace gmoe::core {

template <typename T, typename Index>
struct RoutedEdgeMixture {
  EdgeMessages<T, Index> messages;
  const T* gate;   // [num_destinations, k]
  const T* scale;  // [num_experts, dim], or null for 1
  const T* shift;  // [num_experts, dim]; null where scale is
  const T* onto;   // [num_destinations, dim], or null for 0
  T* y;            // [num_destinations, dim] out
};

GMOE_DECLARE_PER_ISA(template <typename T, typename Index>
                     void routed_edge_mixture(const RoutedEdgeMixture<T, Index>& a))

template <typename T, typename Index>
void routed_edge_mixture(const RoutedEdgeMixture<T, Index>& a) {
  GMOE_CALL_ACTIVE_ISA(routed_edge_mixture(a));
}

}  // namespace gmoe::core

// Arguments point to device memory. An edge with a bad index is left out and noted: a column at the position of its
// edge, an edge type at that + num_edges. Offsets that do not rise from 0 to num_edges are noted at 2 num_edges;
// results are then wrong or not written. With edges there must be rows.
namespace gmoe::core::cuda {

template <typename T, typename Index>
std::int64_t routed_edge_mixture_workspace(const EdgeMessages<T, Index>& m);
template <typename T, typename Index>
void routed_edge_mixture(const RoutedEdgeMixture<T, Index>& a, const Call& call);

}  // namespace gmoe::core::cuda
