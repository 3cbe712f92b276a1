// The experts' sums over typed edges, put together for each destination (GMoE, eq. 2, in evaluation):
//   y_i = onto_i + sum_r gate_ir (scale_e * sum_{j -> i} w_ij relu(x_ej + table[e, type_ij]) + shift_e)
// over the slots r whose expert e = index_ir - first_expert is given here.
#pragma once

#include "core/cpu/routed_edge_aggregate.h"

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
