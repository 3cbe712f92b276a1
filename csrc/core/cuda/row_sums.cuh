// Sums over the edges of rows: a warp takes a segment of rows (row_segments.cuh) and a tile of columns. What it has of
// a divided row goes to the workspace, in the type of the sums; a second launch adds those pieces in their order.
#pragma once

#include "core/cuda/row_segments.cuh"

namespace gmoe::core::cuda {

inline constexpr int kSumWarps = 8;
inline constexpr std::int64_t kTileColumns = 128;

// What a lane holds of a row: packs of V values, a warp apart.
template <int V>
struct Tile {
  static constexpr int kPacks = static_cast<int>(kTileColumns) / (kWarp * V);
  std::int64_t first;  // column of the lane's first pack

  __device__ explicit Tile(std::int64_t tile) : first(tile * kTileColumns + lane_id() * V) {}
  __device__ std::int64_t column(int pack) const { return first + pack * kWarp * V; }
};
template <int V, typename A>
using TileValues = A[Tile<V>::kPacks][V];

template <int V, typename T, typename A>
__device__ __forceinline__ void store_row(T* row, const A (&sum)[Tile<V>::kPacks][V], std::int64_t dim, Tile<V> tile) {
#pragma unroll
  for (int p = 0; p < Tile<V>::kPacks; ++p) {
    const std::int64_t d = tile.column(p);
    if (d >= dim) continue;
    Pack<T, V> pack;
#pragma unroll
    for (int v = 0; v < V; ++v) pack.value[v] = narrowed<T>(sum[p][v]);
    store<V>(row + d, pack);
  }
}

// A sum for every row and list (a slot, say, or an expert).
template <typename T>
struct RowSums {
  RowSegments rows;
  std::int64_t lists, dim;
  std::int64_t row_step, list_step;  // from one row or list of `out` to the next, in rows of dim values
  T* out;
  Accumulator<T>* piece;  // [2, segments, lists, dim]: ends of rows that began before, then starts of rows that go on

  __device__ T* result(std::int64_t row, std::int64_t list) const {
    return out + (row * row_step + list * list_step) * dim;
  }
  __device__ Accumulator<T>* row_end(std::int64_t segment, std::int64_t list) const {
    return piece + (segment * lists + list) * dim;
  }
  __device__ Accumulator<T>* row_start(std::int64_t segment, std::int64_t list) const {
    return row_end(rows.count() + segment, list);
  }
  std::int64_t piece_bytes() const {
    return 2 * rows.count() * lists * dim * static_cast<std::int64_t>(sizeof(Accumulator<T>));
  }

  // Blocks for a warp per segment, list and tile. Tiles follow one another, so that what is gathered at a time stays in
  // the second-level cache; the lists of a segment are neighbours, which read the same indices.
  __host__ __device__ std::int64_t blocks_per_tile() const { return divide_up(rows.count() * lists, kSumWarps); }
  std::int64_t blocks() const { return blocks_per_tile() * divide_up(dim, kTileColumns); }
  __device__ std::int64_t unit() const { return blockIdx.x % blocks_per_tile() * kSumWarps + warp_id(); }
  __device__ std::int64_t tile() const { return blockIdx.x / blocks_per_tile(); }
};

// The warp of the segment in which a divided row begins adds up its pieces.
template <typename T>
__global__ void __launch_bounds__(kSumWarps* kWarp) divided_rows_kernel(RowSums<T> s) {
  const std::int64_t segment = s.unit() / s.lists, list = s.unit() % s.lists;
  if (segment >= s.rows.count()) return;
  const RowPosition begin = s.rows.begin(segment), end = s.rows.end(segment, begin);
  if (!end.inside || (begin.inside && begin.row == end.row)) return;
  const std::int64_t last = s.rows.last_segment(end.row);
  const Tile<1> tile(s.tile());
  TileValues<1, Accumulator<T>> sum = {};
#pragma unroll 8  // pieces under way
  for (std::int64_t at = segment; at <= last; ++at) {
    const Accumulator<T>* piece = at < last ? s.row_start(at, list) : s.row_end(at, list);
#pragma unroll
    for (int p = 0; p < Tile<1>::kPacks; ++p) {
      const std::int64_t d = tile.column(p);
      if (d < s.dim) sum[p][0] += piece[d];
    }
  }
  store_row<1>(s.result(end.row, list), sum, s.dim, tile);
}

template <typename T>
void add_divided_rows(const char* name, const RowSums<T>& s, const Call& call) {
  launch(name, divided_rows_kernel<T>, s.blocks(), kSumWarps * kWarp, 0, call.stream, s);
}

}  // namespace gmoe::core::cuda
