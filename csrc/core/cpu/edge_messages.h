// The loop that operators over typed edges share: messages are computed and added in registers.
// Include only from files under core/cpu.
#pragma once

#include "core/cpu/row_tile.h"
#include "core/routed_edge_aggregate.h"

namespace gmoe::core::GMOE_ISA {

template <bool Weighted, typename T, typename Index, typename A, int V>
[[gnu::always_inline]] inline void add_messages(const EdgeMessages<T, Index>& m, const Tile<A, V>& tile, std::int64_t e,
                                                std::int64_t begin, std::int64_t end, Vector<A> (&sum)[V]) {
  for (std::int64_t edge = begin; edge < end; ++edge) {
    if (m.expert == nullptr && edge + kEdgesAhead < m.num_edges) {
      tile.prefetch(m.source_row(0, static_cast<std::int64_t>(m.columns[edge + kEdgesAhead])));
    }
    const T* source = m.source_row(e, static_cast<std::int64_t>(m.columns[edge]));
    const T* embedding = m.table + m.table_row(e, edge);
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      const Vector<A> message = relu(tile.read(source, v) + tile.read(embedding, v));
      if constexpr (Weighted) {
        sum[v] += m.weight[edge] * message;
      } else {
        sum[v] += message;
      }
    }
  }
}

// sum += the messages of edges [begin, end) to expert e.
template <typename T, typename Index, typename A, int V>
[[gnu::always_inline]] inline void add_messages(const EdgeMessages<T, Index>& m, const Tile<A, V>& tile, std::int64_t e,
                                                std::int64_t begin, std::int64_t end, Vector<A> (&sum)[V]) {
  if (m.weight != nullptr) {
    add_messages<true>(m, tile, e, begin, end, sum);
  } else {
    add_messages<false>(m, tile, e, begin, end, sum);
  }
}

}  // namespace gmoe::core::GMOE_ISA
