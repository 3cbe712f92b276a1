// A row's sum stays in registers, a tile of columns at a time, while its neighbours' rows stream by. Neighbours are
// anywhere in memory, so rows a few edges ahead are prefetched; the edges of all rows are one flat array, so this
// crosses row ends. If the rows of x do not fit into the second-level cache, but a slice of their columns does and is
// read often enough, slices are copied there one after another. None of this changes the order in which an element is
// summed. Floor: gathering M rows of x at the speed of the cache level that x, or its slice, fits into.
#include "core/aggregate.h"

#include <algorithm>
#include <cstdint>

#if defined(__linux__)
#include <unistd.h>
#endif

#include "core/cpu/row_pieces.h"
#include "core/cpu/row_tile.h"
#include "core/workspace.h"

namespace gmoe::core::GMOE_ISA {
namespace {

constexpr std::int64_t kSliceBytes = 128;        // of a row; one line would read the edges twice as often
constexpr std::int64_t kEdgesPerCopiedRow = 12;  // a row of 128 columns is copied in the time that 6 edges save

// Columns that are summed together: all, or a slice.
template <typename T>
struct Slice {
  const T* x;             // first column of the first row
  std::int64_t x_stride;  // from row to row
  T* y;
  std::int64_t y_stride;
  std::int64_t width;
};

template <typename T, typename Index>
struct Worker {
  using A = Accumulator<T>;
  const Aggregate<T, Index>& a;
  const Slice<T>& slice;

  template <bool Weighted, typename Tile, typename Out>
  void sum_edges(const Tile& tile, std::int64_t begin, std::int64_t end, Out* out) const {
    // Relative to the tile's first column, a vector's offset in a row is a constant.
    const T* x = slice.x + tile.begin;
    Tile from = tile;
    from.begin = 0;
    const std::int64_t stride = slice.x_stride;
    const Index* columns = a.columns;
    const A* weight = a.weight;
    Vector<A> sum[Tile::kVectors] = {};
    const auto add = [&](std::int64_t e) {
      const T* row = x + columns[e] * stride;
#pragma GCC unroll 16
      for (int v = 0; v < Tile::kVectors; ++v) {
        if constexpr (Weighted) {
          sum[v] += weight[e] * from.read(row, v);
        } else {
          sum[v] += from.read(row, v);
        }
      }
    };
    std::int64_t e = begin;
    for (const std::int64_t last = std::min(end, a.num_edges - kEdgesAhead); e < last; ++e) {
      from.prefetch(x + columns[e + kEdgesAhead] * stride);
      add(e);
    }
    for (; e < end; ++e) add(e);
    tile.write_all(out, sum);
  }

  // A function of its own, so that the registers of its loop do not depend on what surrounds the call.
  [[gnu::noinline]] void rows(std::int64_t first, std::int64_t last) const {
    for_each_tile_of<T>(slice.width, [&](const auto& tile) {
      for (std::int64_t row = first; row < last; ++row) {
        T* y = slice.y + row * slice.y_stride;
        if (a.weight != nullptr) {
          sum_edges<true>(tile, a.offsets[row], a.offsets[row + 1], y);
        } else {
          sum_edges<false>(tile, a.offsets[row], a.offsets[row + 1], y);
        }
      }
    });
  }

  void part(std::int64_t, std::int64_t begin, std::int64_t end, A* sum) const {
    for_each_tile_of<T>(slice.width, [&](const auto& tile) {
      if (a.weight != nullptr) {
        sum_edges<true>(tile, begin, end, sum);
      } else {
        sum_edges<false>(tile, begin, end, sum);
      }
    });
  }
};

template <typename T, typename Index>
void aggregate_slice(const Aggregate<T, Index>& a, const Slice<T>& slice) {
  const auto make_worker = [&](std::int64_t) { return Worker<T, Index>{a, slice}; };
  const auto finish = [&](std::int64_t row, const Accumulator<T>* sum) {
    narrow_row(sum, slice.width, slice.y + row * slice.y_stride);
  };
  for_each_row<Accumulator<T>>(RowLine(a.offsets, a.num_rows), slice.width, 1, make_worker, finish);
}

// The partial last vector is part of the sum over lanes, unlike in dot: results depend on it to the bit.
template <typename T, typename A = Accumulator<T>>
A dot_vectors(const T* a, const T* b, std::int64_t dim) {
  Vector<A> sum = {};
  std::int64_t d = 0;
  for (; d + kLanes<A> <= dim; d += kLanes<A>) sum += load(a + d) * load(b + d);
  if (d < dim) sum += load_first(a + d, dim - d) * load_first(b + d, dim - d);
  return horizontal_sum<A>(sum);
}

std::int64_t second_level_bytes() {
  std::int64_t bytes = 0;
#if defined(__linux__) && defined(_SC_LEVEL2_CACHE_SIZE)
  static const std::int64_t found = sysconf(_SC_LEVEL2_CACHE_SIZE);
  bytes = found;
#endif
  return bytes > 0 ? bytes : std::int64_t{1} << 20;
}

// Columns at a time: all, unless copying slices pays off. It did not for bfloat16 rows, which are half as long.
template <typename T, typename Index>
std::int64_t slice_width(const Aggregate<T, Index>& a, std::int64_t num_columns) {
  constexpr auto kBytes = static_cast<std::int64_t>(sizeof(T));
  const std::int64_t cache = second_level_bytes(), width = kSliceBytes / kBytes;
  const bool spills = num_columns * a.dim * kBytes > cache;
  const bool slice_fits = 2 * num_columns * kSliceBytes <= 3 * cache;  // half a slice more still gained two thirds
  const bool read_often = a.num_edges >= kEdgesPerCopiedRow * num_columns;
  const bool slices = std::is_same_v<T, Accumulator<T>> && a.dim > width && spills && slice_fits && read_often;
  return slices ? width : a.dim;
}

}  // namespace

template <typename T, typename Index>
void aggregate(const Aggregate<T, Index>& a, std::int64_t num_columns) {
  const std::int64_t width = slice_width(a, num_columns);
  if (width == a.dim) return aggregate_slice<T, Index>(a, {a.x, a.dim, a.y, a.dim, a.dim});
  const Workspace<T, kHugePage> copy(num_columns * width);
  for (std::int64_t first = 0; first < a.dim; first += width) {
    const std::int64_t columns = std::min(width, a.dim - first);
    parallel_for(num_columns, grain_rows(width), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        std::copy_n(a.x + row * a.dim + first, columns, copy.data() + row * width);
      }
    });
    aggregate_slice<T, Index>(a, {copy.data(), width, a.y + first, a.dim, columns});
  }
}

template <typename T, typename Index>
void aggregate_grad_weight(const AggregateGradWeight<T, Index>& a) {
  const RowLine line(a.offsets, a.num_rows);
  for_each_edge_range(line, a.dim, [&](std::int64_t row, std::int64_t begin, std::int64_t end) {
    const T* grad = a.grad_y + row * a.dim;
    for (std::int64_t e = begin; e < end; ++e) {
      const auto row_of = [&](std::int64_t edge) { return a.x + static_cast<std::int64_t>(a.columns[edge]) * a.dim; };
      if (e + kEdgesAhead < a.num_edges) prefetch_row(row_of(e + kEdgesAhead), a.dim);
      a.grad_weight[e] = dot_vectors(grad, row_of(e), a.dim);
    }
  });
}

#define GMOE_INSTANTIATE(T, Index)                                   \
  template void aggregate(const Aggregate<T, Index>&, std::int64_t); \
  template void aggregate_grad_weight(const AggregateGradWeight<T, Index>&);
GMOE_FOR_ROWS(GMOE_INSTANTIATE)
#undef GMOE_INSTANTIATE

}  // namespace gmoe::core::GMOE_ISA
