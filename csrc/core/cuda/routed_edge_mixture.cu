// routed_edge_aggregate with what follows it in evaluation done in registers: a warp takes all slots of its rows, one
// after another, and writes their sum alone. What comes after the messages is linear in them, so that the pieces of a
// divided row add up; shift and onto are in the piece that starts it. Floor: as of routed_edge_aggregate, less y.
#include "core/routed_edge_mixture.h"

#include "core/cuda/edge_messages.cuh"
#include "core/types.h"

namespace gmoe::core::cuda {
namespace {

template <typename T, typename Index>
struct MixtureSum : MessageSum<T, Index> {
  using A = Accumulator<T>;
  static constexpr bool kMixes = true;
  const T *gate, *scale, *shift, *onto;

  template <int V>
  __device__ __forceinline__ void put_together(const TileValues<V, A>& sum, TileValues<V, A>& total, std::int64_t row,
                                               std::int64_t slot, bool starts, Tile<V> tile) const {
    const auto& m = this->messages.m;
    const std::int64_t e = slot < m.k ? this->messages.expert(row, slot) : -1;
    const A weight = e < 0 ? A{0} : widened(gate[row * m.k + slot]);
#pragma unroll
    for (int p = 0; p < Tile<V>::kPacks; ++p) {
      const std::int64_t d = tile.column(p);
      if (d >= m.dim) continue;
      Pack<T, V> factor = {}, plus = {}, before = {};
      if (slot == 0 && starts && onto != nullptr) before = load<V>(onto + row * m.dim + d);
      if (e >= 0 && scale != nullptr) factor = load<V>(scale + e * m.dim + d);
      if (e >= 0 && scale != nullptr && starts) plus = load<V>(shift + e * m.dim + d);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if (slot == 0) total[p][v] = widened(before.value[v]);
        if (e < 0) continue;
        const A normed = scale == nullptr ? sum[p][v] : widened(factor.value[v]) * sum[p][v] + widened(plus.value[v]);
        total[p][v] += weight * normed;
      }
    }
  }
};

// A warp works through every slot of its segment, which is the shorter for it.
template <typename T, typename Index>
RowSums<T> sums_of_y(const EdgeMessages<T, Index>& m, T* y, BadIndex* bad) {
  constexpr std::int64_t kLeastItems = 16;
  const std::int64_t items = kSegmentItems / (m.k > 0 ? m.k : 1);
  return {{m.offsets, m.num_destinations, m.num_edges, items > kLeastItems ? items : kLeastItems, bad, 2 * m.num_edges},
          1,
          m.dim,
          1,
          0,
          y,
          nullptr};
}

}  // namespace

template <typename T, typename Index>
std::int64_t routed_edge_mixture_workspace(const EdgeMessages<T, Index>& m) {
  return sums_of_y<T>(m, nullptr, nullptr).piece_bytes();
}

template <typename T, typename Index>
void routed_edge_mixture(const RoutedEdgeMixture<T, Index>& a, const Call& call) {
  const auto& m = a.messages;
  MixtureSum<T, Index> s{{sums_of_y(m, a.y, call.bad_index), {m, call.bad_index}, m.k > 0 ? m.k : 1, m.k > 0 ? 1 : 0},
                         a.gate,
                         a.scale,
                         a.shift,
                         a.onto};
  s.to.piece = static_cast<Accumulator<T>*>(call.workspace);
  sum_edges({"routed_edge_mixture", "routed_edge_mixture/divided_rows"}, s, call, m.x, m.table, a.scale, a.shift,
            a.onto);
}

#define GMOE_INSTANTIATE(T, Index)                                                    \
  template std::int64_t routed_edge_mixture_workspace(const EdgeMessages<T, Index>&); \
  template void routed_edge_mixture(const RoutedEdgeMixture<T, Index>&, const Call&);
GMOE_FOR_ROWS(GMOE_INSTANTIATE)
#undef GMOE_INSTANTIATE

}  // namespace gmoe::core::cuda
