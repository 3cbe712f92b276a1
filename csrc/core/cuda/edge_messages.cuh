// What the operators over typed edges share: messages w relu(x_ej + table[e, type]) as sums of staged pairs.
//
// Of bad indices, a column is noted as the position of its edge, an edge type as that + num_edges.
#pragma once

#include "core/cuda/edge_sums.cuh"
#include "core/routed_edge_aggregate.h"

namespace gmoe::core::cuda {

// NaN passes, as in torch.relu and its gradient: neither comparison holds for it.
template <typename A>
__device__ __forceinline__ A relu(A v) {
  return v < A{0} ? A{0} : v;
}
template <typename A>
__device__ __forceinline__ A relu_grad(A input, A grad) {
  return input <= A{0} ? A{0} : grad;
}

// EdgeMessages as a kernel reads them: places of rows, in elements.
template <typename T, typename Index>
struct Messages {
  EdgeMessages<T, Index> m;
  BadIndex* bad;

  __device__ bool check(std::int64_t edge, std::int64_t num_columns) const {
    const bool column = check_index(m.columns[edge], num_columns, edge, bad);
    return check_index(m.edge_type[edge], m.num_types, m.num_edges + edge, bad) && column;
  }
  // Expert of a slot, or -1 when it is not one of those given here.
  __device__ std::int64_t expert(std::int64_t destination, std::int64_t slot) const {
    if (m.expert == nullptr) return 0;
    // Unsigned, so that no value of the index can overflow the difference.
    const auto e =
        static_cast<std::uint64_t>(m.expert[destination * m.k + slot]) - static_cast<std::uint64_t>(m.first_expert);
    return e < static_cast<std::uint64_t>(m.num_experts) ? static_cast<std::int64_t>(e) : -1;
  }
  __device__ std::int64_t source_at(std::int64_t e, std::int64_t source) const {
    return ((m.shared ? 0 : e * m.num_sources) + source) * m.dim;
  }
  __device__ std::int64_t table_at(std::int64_t e, std::int64_t edge) const {
    return (e * m.num_types + m.edge_type[edge]) * m.dim;
  }
  __device__ Accumulator<T> weight(std::int64_t edge) const {
    return m.weight == nullptr ? Accumulator<T>{1} : m.weight[edge];
  }
};

// The message of an edge to a destination's slot; rows are destinations.
template <typename T, typename Index>
struct MessageSum {
  using Value = T;
  using A = Accumulator<T>;
  static constexpr int kStreams = 2;
  static constexpr bool kMixes = false;
  RowSums<T> to;
  Messages<T, Index> messages;
  std::int64_t inner = 1, slots = 1;

  __device__ const T* stream(int n) const { return n == 0 ? messages.m.x : messages.m.table; }
  // The list is the slot.
  __device__ bool stage(std::int64_t row, std::int64_t list, std::int64_t edge, std::int64_t, Staged<A>& out) const {
    const std::int64_t e = messages.expert(row, list);
    if (!messages.check(edge, messages.m.num_sources) || e < 0) return false;
    out.at[0] = messages.source_at(e, messages.m.columns[edge]);
    out.at[1] = messages.table_at(e, edge);
    out.weight = messages.weight(edge);
    return true;
  }
  static __device__ A contribution(const A (&value)[kStreams], A weight) { return weight * relu(value[0] + value[1]); }
};

}  // namespace gmoe::core::cuda
