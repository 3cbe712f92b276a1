// Compressed rows in segments of equal work, for a warp each; where they begin is found from the offsets alone, so
// there is no table to make and nothing to ask the device for before a launch.
//
// A row is as many items as it has edges and one more, its end. Segment s holds the items [s, s + 1) * items, but a row
// of at most `items` edges is not divided: a boundary within it moves to its start. Longer rows are divided; their
// pieces are added up afterwards, in their order.
//
// Offsets that do not rise from 0 to the number of edges are noted. They lead to wrong rows and edges, or to results
// that nobody writes, but never to a place outside of the arrays: what is read of them is clamped.
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
    const int starts_before = __popc(__ballot_sync(kAllLanes, before));
    const std::int64_t skipped = starts_before > 0 ? (starts_before - 1) * step : 0;
    first += skipped;
    count = count - skipped < step ? count - skipped : step;
  }
  return first;
}

__host__ __device__ constexpr std::int64_t clamped(std::int64_t value, std::int64_t low, std::int64_t high) {
  return value < low ? low : value > high ? high : value;
}

// Notes, at `position`, offsets that do not rise from 0 to num_edges. Thread `thread` of so many looks at its share.
inline __device__ void check_offsets(const std::int64_t* offsets, std::int64_t num_rows, std::int64_t num_edges,
                                     std::int64_t thread, std::int64_t threads, std::int64_t position, BadIndex* bad) {
  for (std::int64_t r = thread; r < num_rows; r += threads) {
    const bool starts = r > 0 || offsets[0] == 0, ends = r + 1 < num_rows || offsets[num_rows] == num_edges;
    if (!starts || !ends || offsets[r] > offsets[r + 1]) atomicMin(bad, static_cast<BadIndex>(position));
  }
}

struct RowPosition {
  std::int64_t row, edge;
  bool inside;  // edges of the row lie before
};

struct RowSegments {
  const std::int64_t* offsets;  // [num_rows + 1]
  std::int64_t num_rows, num_edges;
  std::int64_t items = kSegmentItems;  // of a segment

  // Where broken offsets are noted, and as what; null where they are known to be right.
  BadIndex* bad = nullptr;
  std::int64_t bad_position = 0;

  // By the warps that take every segment once.
  __device__ void check(std::int64_t segment) const {
    if (bad == nullptr) return;
    check_offsets(offsets, num_rows, num_edges, segment * kWarp + lane_id(), count() * kWarp, bad_position, bad);
  }

  __host__ __device__ std::int64_t count() const { return divide_up(num_rows + num_edges, items); }

  // Where a segment begins; of segment count(), where all end. By a whole warp.
  __device__ RowPosition begin(std::int64_t segment) const {
    const std::int64_t item = segment * items;
    if (item >= num_rows + num_edges) return {num_rows, num_edges, false};
    const std::int64_t row = last_at_or_before(num_rows, item, [&](std::int64_t r) { return offset(r) + r; });
    const std::int64_t edge = item - row, start = offset(row);
    const bool divided = offset(row + 1) - start > items && edge > start;
    return {row, divided ? clamped(edge, 0, num_edges) : start, divided};
  }
  // Where the segment that begins at `begin` ends: at most twice the items on.
  __device__ RowPosition end(std::int64_t segment, const RowPosition& begin) const {
    const RowPosition end = this->begin(segment + 1);
    return {clamped(end.row, begin.row, begin.row + 2 * items), clamped(end.edge, begin.edge, begin.edge + 2 * items),
            end.inside};
  }

  // Of a divided row.
  __device__ std::int64_t last_segment(std::int64_t row) const {
    return clamped((offset(row + 1) + row) / items, 0, count() - 1);
  }

 private:
  __device__ std::int64_t offset(std::int64_t row) const { return clamped(offsets[row], 0, num_edges); }
};

}  // namespace gmoe::core::cuda
