// A warp takes a segment of rows and edges (row_segments.cuh) and a tile of columns of x; the rows of kInFlight edges
// are under way at once, across the ends of rows. Sums of divided rows go to the workspace, in float, and are added in
// their order by a second launch. Tiles follow one another, so that what is gathered at a time stays in the
// second-level cache. Floor: the gathered rows of x at that cache's speed.
#include "core/aggregate.h"

#include "core/cuda/row_segments.cuh"
#include "core/types.h"

namespace gmoe::core::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kInFlight = 4;  // of a warp; more of them leave a multiprocessor fewer warps
constexpr std::int64_t kValuesPerTile = 128;

// What a lane holds of a row: packs of V values, a warp apart.
template <int V, int Packs>
struct Tile {
  static constexpr std::int64_t kValues = std::int64_t{kWarp} * V * Packs;
  std::int64_t first;  // column of the lane's first pack

  __device__ explicit Tile(std::int64_t tile) : first(tile * kValues + lane_id() * V) {}
  __device__ std::int64_t column(int pack) const { return first + pack * kWarp * V; }
};

template <typename T, typename Index>
struct Work {
  Aggregate<T, Index> a;
  std::int64_t num_columns, blocks_per_tile;
  Accumulator<T>* piece;  // [2, segments, dim]: ends of rows that began before, then starts of rows that go on
  BadIndex* bad;

  __host__ __device__ RowSegments segments() const {
    return {a.offsets, a.num_rows, a.num_edges, kSegmentItems, bad, a.num_edges};
  }
  __device__ std::int64_t segment() const { return blockIdx.x % blocks_per_tile * kWarps + warp_id(); }
  __device__ std::int64_t tile() const { return blockIdx.x / blocks_per_tile; }
  __device__ Accumulator<T>* row_end(std::int64_t segment) const { return piece + segment * a.dim; }
  __device__ Accumulator<T>* row_start(std::int64_t segment) const {
    return piece + (segments().count() + segment) * a.dim;
  }
};

template <int V, int Packs, typename T, typename A>
__device__ __forceinline__ void store_row(T* row, const A (&sum)[Packs][V], std::int64_t dim, Tile<V, Packs> tile) {
#pragma unroll
  for (int p = 0; p < Packs; ++p) {
    const std::int64_t d = tile.column(p);
    if (d >= dim) continue;
    Pack<T, V> pack;
#pragma unroll
    for (int v = 0; v < V; ++v) pack.value[v] = narrowed<T>(sum[p][v]);
    store<V>(row + d, pack);
  }
}

template <int V, int Packs, typename T, typename Index>
__global__ void __launch_bounds__(kWarps* kWarp, V * Packs * sizeof(Accumulator<T>) > 16 ? 2 : 3)
    aggregate_kernel(Work<T, Index> w) {
  using A = Accumulator<T>;
  const Aggregate<T, Index>& a = w.a;
  const std::int64_t segment = w.segment();
  if (segment >= w.segments().count()) return;
  if (w.tile() == 0) w.segments().check(segment);
  const RowPosition begin = w.segments().begin(segment), end = w.segments().end(segment, begin);
  const Tile<V, Packs> tile(w.tile());
  A sum[Packs][V] = {};
  std::int64_t row = begin.row;
  const auto finish_row = [&] {
    if (row == begin.row && begin.inside) {
      store_row(w.row_end(segment), sum, a.dim, tile);
    } else {
      store_row(a.y + row * a.dim, sum, a.dim, tile);
    }
#pragma unroll
    for (int p = 0; p < Packs; ++p) {
#pragma unroll
      for (int v = 0; v < V; ++v) sum[p][v] = 0;
    }
    ++row;
  };
  for (std::int64_t first = begin.edge; first < end.edge; first += kInFlight) {
    A weight[kInFlight];
    bool valid[kInFlight];
    Pack<T, V> x[kInFlight][Packs];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      const std::int64_t edge = first + u;
      valid[u] = edge < end.edge && check_index(a.columns[edge], w.num_columns, edge, w.bad);
      weight[u] = valid[u] && a.weight != nullptr ? a.weight[edge] : A{1};
#pragma unroll
      for (int p = 0; p < Packs; ++p) {
        if (!valid[u] || tile.column(p) >= a.dim) continue;
        x[u][p] = load<V>(a.x + a.columns[edge] * a.dim + tile.column(p));
      }
    }
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      if (first + u >= end.edge) break;
      while (row < end.row && first + u == a.offsets[row + 1]) finish_row();
#pragma unroll
      for (int p = 0; p < Packs; ++p) {
        if (!valid[u] || tile.column(p) >= a.dim) continue;
#pragma unroll
        for (int v = 0; v < V; ++v) sum[p][v] += weight[u] * widened(x[u][p].value[v]);
      }
    }
  }
  while (row < end.row) finish_row();
  if (end.inside) store_row(w.row_start(segment), sum, a.dim, tile);
}

// The warp of the segment in which a divided row begins adds up its pieces.
template <int V, int Packs, typename T, typename Index>
__global__ void __launch_bounds__(kWarps* kWarp) aggregate_divided_rows_kernel(Work<T, Index> w) {
  using A = Accumulator<T>;
  const std::int64_t segment = w.segment();
  if (segment >= w.segments().count()) return;
  const RowPosition begin = w.segments().begin(segment), end = w.segments().end(segment, begin);
  if (!end.inside || (begin.inside && begin.row == end.row)) return;
  const std::int64_t last = w.segments().last_segment(end.row);
  const Tile<V, Packs> tile(w.tile());
  A sum[Packs][V] = {};
#pragma unroll 8
  for (std::int64_t s = segment; s <= last; ++s) {
    const A* piece = s < last ? w.row_start(s) : w.row_end(s);
#pragma unroll
    for (int p = 0; p < Packs; ++p) {
      const std::int64_t d = tile.column(p);
      if (d >= w.a.dim) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) sum[p][v] += piece[d + v];
    }
  }
  store_row(w.a.y + end.row * w.a.dim, sum, w.a.dim, tile);
}

// Dot products of 32 edges, a warp: lane l gets that of edge l.
template <int V, typename T, typename Index>
__global__ void __launch_bounds__(kWarps* kWarp)
    aggregate_grad_weight_kernel(AggregateGradWeight<T, Index> a, std::int64_t num_columns, BadIndex* bad) {
  using A = Accumulator<T>;
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * kWarps + warp_id()) * kWarp;
  if (first >= a.num_edges) return;
  const int count = static_cast<int>(a.num_edges - first < kWarp ? a.num_edges - first : kWarp);
  check_offsets(a.offsets, a.num_rows, a.num_edges, first + lane_id(), divide_up(a.num_edges, kWarp) * kWarp,
                a.num_edges, bad);
  const auto start = [&](std::int64_t r) { return a.offsets[r]; };
  std::int64_t own_row = last_at_or_before(a.num_rows, first, start);
  Index own_column = -1;
  if (lane_id() < count) {
    const std::int64_t edge = first + lane_id();
    while (own_row + 1 < a.num_rows && a.offsets[own_row + 1] <= edge) ++own_row;
    if (check_index(a.columns[edge], num_columns, edge, bad)) own_column = a.columns[edge];
  }
  A dot[kWarp] = {};
  for (std::int64_t from = 0; from < a.dim; from += kWarp * V) {
    const std::int64_t d = from + lane_id() * V;
#pragma unroll
    for (int i = 0; i < kWarp; ++i) {
      const Index column = __shfl_sync(kAllLanes, own_column, i);
      const std::int64_t row = __shfl_sync(kAllLanes, own_row, i);
      if (column < 0 || d >= a.dim) continue;
      const Pack<T, V> x = load<V>(a.x + column * a.dim + d), grad = load<V>(a.grad_y + row * a.dim + d);
#pragma unroll
      for (int v = 0; v < V; ++v) dot[i] += widened(x.value[v]) * widened(grad.value[v]);
    }
  }
  const A sum = warp_sum_32(dot);
  if (lane_id() < count) a.grad_weight[first + lane_id()] = sum;
}

template <int V, int Packs, typename T, typename Index>
void run(Work<T, Index> w, const Call& call) {
  w.blocks_per_tile = divide_up(w.segments().count(), kWarps);
  const std::int64_t blocks = w.blocks_per_tile * divide_up(w.a.dim, Tile<V, Packs>::kValues);
  launch("aggregate", aggregate_kernel<V, Packs, T, Index>, blocks, kWarps * kWarp, 0, call.stream, w);
  launch("aggregate/divided_rows", aggregate_divided_rows_kernel<V, Packs, T, Index>, blocks, kWarps * kWarp, 0,
         call.stream, w);
}

}  // namespace

template <typename T>
std::int64_t aggregate_workspace(std::int64_t num_rows, std::int64_t num_edges, std::int64_t dim) {
  const RowSegments rows{nullptr, num_rows, num_edges};
  return 2 * rows.count() * dim * static_cast<std::int64_t>(sizeof(Accumulator<T>));
}

template <typename T, typename Index>
void aggregate(const Aggregate<T, Index>& a, std::int64_t num_columns, const Call& call) {
  if (a.num_rows == 0 || a.dim == 0) return;
  const Work<T, Index> w{a, num_columns, 0, static_cast<Accumulator<T>*>(call.workspace), call.bad_index};
  constexpr int kWide = kPack<T>;                               // 16 bytes
  constexpr int kNarrow = sizeof(Accumulator<T>) == 8 ? 2 : 4;  // what makes a tile by one or two packs
  constexpr int kPacks = static_cast<int>(kValuesPerTile / (kWarp * kNarrow));
  if constexpr (kWide > kNarrow) {
    if (a.dim > kValuesPerTile && fits_packs<kWide>(a.dim, a.x, a.y)) return run<kWide, 1>(w, call);
  }
  if (fits_packs<kNarrow>(a.dim, a.x, a.y)) return run<kNarrow, kPacks>(w, call);
  run<1, static_cast<int>(kValuesPerTile / kWarp)>(w, call);
}

template <typename T, typename Index>
void aggregate_grad_weight(const AggregateGradWeight<T, Index>& a, std::int64_t num_columns, const Call& call) {
  if (a.num_edges == 0) return;
  const std::int64_t blocks = divide_up(a.num_edges, kWarps * kWarp);
  const auto go = [&](auto kernel) {
    launch("aggregate_grad_weight", kernel, blocks, kWarps * kWarp, 0, call.stream, a, num_columns, call.bad_index);
  };
  if (fits_packs<kPack<T>>(a.dim, a.x, a.grad_y)) return go(aggregate_grad_weight_kernel<kPack<T>, T, Index>);
  go(aggregate_grad_weight_kernel<1, T, Index>);
}

#define GMOE_INSTANTIATE(T, Index)                                                \
  template void aggregate(const Aggregate<T, Index>&, std::int64_t, const Call&); \
  template void aggregate_grad_weight(const AggregateGradWeight<T, Index>&, std::int64_t, const Call&);
GMOE_FOR_ROWS(GMOE_INSTANTIATE)
#undef GMOE_INSTANTIATE
template std::int64_t aggregate_workspace<float>(std::int64_t, std::int64_t, std::int64_t);
template std::int64_t aggregate_workspace<double>(std::int64_t, std::int64_t, std::int64_t);
template std::int64_t aggregate_workspace<bfloat16>(std::int64_t, std::int64_t, std::int64_t);

}  // namespace gmoe::core::cuda
