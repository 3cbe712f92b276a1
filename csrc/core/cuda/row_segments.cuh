// Compressed rows in segments of equal work, for a warp each; where they begin is found from the offsets alone, so
// there is no table to make and nothing to ask the device for before a launch.
//
// A row is as many items as it has edges and one more, its end. Segment s holds the items [s, s + 1) * items, but a row
// of at most `items` edges is not divided: a boundary within it moves to its start. Longer rows are divided; their
// pieces are added up afterwards, in their order.
#pragma once

#include "core/cuda/primitives.cuh"

namespace gmoe::core::cuda {

// Pieces of long rows cost a write and a read of a sum per so many edges; fewer items would not hide the search.
inline constexpr std::int64_t kSegmentItems = 64;

// Largest i in [0, count) with start(i) <= position, for ascending starts of which the first is not above it. By a
// whole warp: a step leaves a 32nd of the candidates.
template <typename Start>
__device__ std::int64_t last_at_or_before(std::int64_t count, std::int64_t position, const Start& start) {
  std::int64_t first = 0;
  while (count > 1) {
    const std::int64_t step = divide_up(count, kWarp);
    const std::int64_t own = lane_id() * step;
    const bool before = own < count && start(first + own) <= position;
    const std::int64_t skipped = (__popc(__ballot_sync(kAllLanes, before)) - 1) * step;
    first += skipped;
    count = count - skipped < step ? count - skipped : step;
  }
  return first;
}

struct RowPosition {
  std::int64_t row, edge;
  bool inside;  // edges of the row lie before
};

struct RowSegments {
  const std::int64_t* offsets;  // [num_rows + 1]
  std::int64_t num_rows, num_edges;
  std::int64_t items = kSegmentItems;  // of a segment

  __host__ __device__ std::int64_t count() const { return divide_up(num_rows + num_edges, items); }

  // Where a segment begins; of segment count(), where all end. By a whole warp.
  __device__ RowPosition begin(std::int64_t segment) const {
    const std::int64_t item = segment * items;
    if (item >= num_rows + num_edges) return {num_rows, num_edges, false};
    const std::int64_t* o = offsets;
    const std::int64_t row = last_at_or_before(num_rows, item, [=](std::int64_t r) { return o[r] + r; });
    const std::int64_t edge = item - row;
    const bool divided = o[row + 1] - o[row] > items && edge > o[row];
    return {row, divided ? edge : o[row], divided};
  }

  // Of a divided row.
  __device__ std::int64_t last_segment(std::int64_t row) const { return (offsets[row + 1] + row) / items; }
};

}  // namespace gmoe::core::cuda
