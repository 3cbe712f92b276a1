// Message passing over typed edges, y_i = sum_{j -> i} w_ij relu(x_j + table[type_ij]): the kernels of
// routed_edge_aggregate with one expert that every row has chosen.
#pragma once

#include "core/routed_edge_aggregate.h"

namespace gmoe::core {

template <typename T, typename Index>
struct EdgeAggregate {
  const T* x;                    // [num_sources, dim]
  const T* table;                // [num_types, dim]
  const std::int64_t* offsets;   // rows of destinations; in the gradient of x and table of sources
  const Index* columns;          // [num_edges]
  const Index* edge_type;        // [num_edges]
  const Accumulator<T>* weight;  // [num_edges], or null for 1
  std::int64_t num_sources, num_destinations, num_edges, num_types, dim;

  EdgeMessages<T, Index> messages() const {
    return {x,      table,       nullptr,          0,         1,         1,  true, offsets, columns, edge_type,
            weight, num_sources, num_destinations, num_edges, num_types, dim};
  }
};

template <typename T, typename Index>
void edge_aggregate(const EdgeAggregate<T, Index>& a, T* y) {
  routed_edge_aggregate<T, Index>({a.messages(), y});
}
// grad_x and grad_table may be null when not wanted.
template <typename T, typename Index>
void edge_aggregate_grad(const EdgeAggregate<T, Index>& a, const T* grad_y, T* grad_x, T* grad_table) {
  routed_edge_aggregate_grad<T, Index>({a.messages(), grad_y, grad_x, grad_table});
}
template <typename T, typename Index>
void edge_aggregate_grad_weight(const EdgeAggregate<T, Index>& a, const T* grad_y, Accumulator<T>* grad_weight) {
  routed_edge_aggregate_grad_weight<T, Index>({a.messages(), grad_y, grad_weight});
}

}  // namespace gmoe::core

// Arguments point to device memory.
namespace gmoe::core::cuda {

template <typename T, typename Index>
std::int64_t edge_aggregate_workspace(const EdgeAggregate<T, Index>& a) {
  return routed_edge_aggregate_workspace(a.messages());
}
template <typename T, typename Index>
void edge_aggregate(const EdgeAggregate<T, Index>& a, T* y, const Call& call) {
  routed_edge_aggregate<T, Index>({a.messages(), y}, call);
}
template <typename T, typename Index>
std::int64_t edge_aggregate_grad_workspace(const EdgeAggregate<T, Index>& a) {
  return routed_edge_aggregate_grad_workspace(a.messages());
}
// grad_x and grad_table may be null when not wanted.
template <typename T, typename Index>
void edge_aggregate_grad(const EdgeAggregate<T, Index>& a, const T* grad_y, T* grad_x, T* grad_table,
                         const Call& call) {
  routed_edge_aggregate_grad<T, Index>({a.messages(), grad_y, grad_x, grad_table}, call);
}
template <typename T, typename Index>
void edge_aggregate_grad_weight(const EdgeAggregate<T, Index>& a, const T* grad_y, Accumulator<T>* grad_weight,
                                const Call& call) {
  routed_edge_aggregate_grad_weight<T, Index>({a.messages(), grad_y, grad_weight}, call);
}

}  // namespace gmoe::core::cuda
