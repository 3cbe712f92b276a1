// core/cpu/edge_aggregate.h on the device: the kernels of routed_edge_aggregate with one expert that every row has
// chosen. Arguments are pointers to device memory.
#pragma once

#include "core/cpu/edge_aggregate.h"
#include "core/cuda/routed_edge_aggregate.h"

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
