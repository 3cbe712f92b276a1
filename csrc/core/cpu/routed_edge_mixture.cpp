// routed_edge_aggregate together with the operations that follow it in evaluation, in registers: nothing of size [N, k,
// D] is written. Only the slots of hubs, whose edges several tasks share, are summed in memory.
#include "core/routed_edge_mixture.h"

#include <algorithm>

#include "core/cpu/edge_messages.h"
#include "core/cpu/row_pieces.h"
#include "core/cpu/row_tile.h"

namespace gmoe::core::GMOE_ISA {
namespace {

template <typename T, typename Index>
struct Worker {
  using A = Accumulator<T>;
  const RoutedEdgeMixture<T, Index>& a;

  // total += gate (scale * sum + shift) for slot r of a row.
  template <int V>
  void add_slot(const Tile<A, V>& tile, std::int64_t row, std::int64_t r, std::int64_t e, const Vector<A> (&sum)[V],
                Vector<A> (&total)[V]) const {
    const A gate = widen(a.gate[row * a.messages.k + r]);
    const std::int64_t at = e * a.messages.dim;
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      total[v] +=
          gate * (a.scale == nullptr ? sum[v] : tile.read(a.scale + at, v) * sum[v] + tile.read(a.shift + at, v));
    }
  }

  template <int V>
  void start(const Tile<A, V>& tile, std::int64_t row, Vector<A> (&total)[V]) const {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      total[v] = a.onto == nullptr ? Vector<A>{} : tile.read(a.onto + row * a.messages.dim, v);
    }
  }

  void rows(std::int64_t first, std::int64_t last) const {
    const auto& m = a.messages;
    for_each_tile<A>(m.dim, [&](auto tile) {
      constexpr int V = decltype(tile)::kVectors;
      for (std::int64_t row = first; row < last; ++row) {
        Vector<A> total[V];
        start(tile, row, total);
        for (std::int64_t r = 0; r < m.k; ++r) {
          const std::int64_t e = m.expert_of(row, r);
          if (e < 0) continue;
          Vector<A> sum[V] = {};
          add_messages(m, tile, e, m.offsets[row], m.offsets[row + 1], sum);
          add_slot(tile, row, r, e, sum, total);
        }
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) tile.write(a.y + row * m.dim, v, total[v]);
      }
    });
  }

  void part(std::int64_t row, std::int64_t begin, std::int64_t end, A* slots) const {
    const auto& m = a.messages;
    for_each_tile<A>(m.dim, [&](auto tile) {
      constexpr int V = decltype(tile)::kVectors;
      for (std::int64_t r = 0; r < m.k; ++r) {
        const std::int64_t e = m.expert_of(row, r);
        Vector<A> sum[V] = {};
        if (e >= 0) add_messages(m, tile, e, begin, end, sum);
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) tile.write(slots + r * m.dim, v, sum[v]);
      }
    });
  }

  void finish(std::int64_t row, const A* slots) const {
    const auto& m = a.messages;
    for_each_tile<A>(m.dim, [&](auto tile) {
      constexpr int V = decltype(tile)::kVectors;
      Vector<A> total[V];
      start(tile, row, total);
      for (std::int64_t r = 0; r < m.k; ++r) {
        const std::int64_t e = m.expert_of(row, r);
        if (e < 0) continue;
        Vector<A> sum[V];
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) sum[v] = tile.read(slots + r * m.dim, v);
        add_slot(tile, row, r, e, sum, total);
      }
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) tile.write(a.y + row * m.dim, v, total[v]);
    });
  }
};

}  // namespace

template <typename T, typename Index>
void routed_edge_mixture(const RoutedEdgeMixture<T, Index>& a) {
  const auto& m = a.messages;
  const Worker<T, Index> worker{a};
  for_each_row<Accumulator<T>>(
      RowLine(m.offsets, m.num_destinations), m.k * m.dim, 1, [&](std::int64_t) { return worker; },
      [&](std::int64_t row, const Accumulator<T>* slots) { worker.finish(row, slots); });
}

#define GMOE_INSTANTIATE(T, Index) template void routed_edge_mixture(const RoutedEdgeMixture<T, Index>&);
GMOE_FOR_ROWS(GMOE_INSTANTIATE)
#undef GMOE_INSTANTIATE

}  // namespace gmoe::core::GMOE_ISA
