// A row's sum stays in registers, a tile of columns at a time, while its neighbours' rows stream by. Neighbours lie
// anywhere in memory, so the rows a few edges ahead are fetched into the cache first; the edges of all rows are one
// flat array, so this runs on over row ends. Floor: gathering M rows of x at the speed of the cache level x fits in.
#include "core/cpu/aggregate.h"

#include "core/cpu/row_pieces.h"
#include "core/cpu/row_types.h"
#include "core/cpu/tile.h"

namespace gmoe::core::GMOE_ISA {
namespace {

template <typename T, typename Index>
struct Worker {
  using A = Accumulator<T>;
  const Aggregate<T, Index>& a;

  const T* neighbour(std::int64_t e) const { return a.x + static_cast<std::int64_t>(a.columns[e]) * a.dim; }

  template <bool Weighted, int V, typename Out>
  void sum_edges(const Tile<A, V>& tile, std::int64_t begin, std::int64_t end, Out* out) const {
    Vector<A> sum[V] = {};
    for (std::int64_t e = begin; e < end; ++e) {
      if (e + kEdgesAhead < a.num_edges) tile.prefetch(neighbour(e + kEdgesAhead));
      const T* row = neighbour(e);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) {
        if constexpr (Weighted) {
          sum[v] += a.weight[e] * tile.read(row, v);
        } else {
          sum[v] += tile.read(row, v);
        }
      }
    }
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) tile.write(out, v, sum[v]);
  }

  void rows(std::int64_t first, std::int64_t last) const {
    for_each_tile<A>(a.dim, [&](auto tile) {
      for (std::int64_t row = first; row < last; ++row) {
        T* y = a.y + row * a.dim;
        if (a.weight != nullptr) {
          sum_edges<true>(tile, a.offsets[row], a.offsets[row + 1], y);
        } else {
          sum_edges<false>(tile, a.offsets[row], a.offsets[row + 1], y);
        }
      }
    });
  }

  void part(std::int64_t, std::int64_t begin, std::int64_t end, A* sum) const {
    for_each_tile<A>(a.dim, [&](auto tile) {
      if (a.weight != nullptr) {
        sum_edges<true>(tile, begin, end, sum);
      } else {
        sum_edges<false>(tile, begin, end, sum);
      }
    });
  }
};

}  // namespace

template <typename T, typename Index>
void aggregate(const Aggregate<T, Index>& a) {
  const auto make_worker = [&](std::int64_t) { return Worker<T, Index>{a}; };
  const auto finish = [&](std::int64_t row, const Accumulator<T>* sum) {
    for (std::int64_t d = 0; d < a.dim; ++d) a.y[row * a.dim + d] = narrow<T>(sum[d]);
  };
  for_each_row<Accumulator<T>>(RowLine(a.offsets, a.num_rows), a.dim, 1, make_worker, finish);
}

template <typename T, typename Index>
void aggregate_grad_weight(const AggregateGradWeight<T, Index>& a) {
  const RowLine line(a.offsets, a.num_rows);
  for_each_edge_range(line, a.dim, [&](std::int64_t row, std::int64_t begin, std::int64_t end) {
    const T* grad = a.grad_y + row * a.dim;
    for (std::int64_t e = begin; e < end; ++e) {
      if (e + kEdgesAhead < a.num_edges) {
        prefetch_row(a.x + static_cast<std::int64_t>(a.columns[e + kEdgesAhead]) * a.dim, a.dim);
      }
      a.grad_weight[e] = dot(grad, a.x + static_cast<std::int64_t>(a.columns[e]) * a.dim, a.dim);
    }
  });
}

#define GMOE_INSTANTIATE(T, Index)                     \
  template void aggregate(const Aggregate<T, Index>&); \
  template void aggregate_grad_weight(const AggregateGradWeight<T, Index>&);
GMOE_FOR_ROWS(GMOE_INSTANTIATE)
#undef GMOE_INSTANTIATE

}  // namespace gmoe::core::GMOE_ISA
