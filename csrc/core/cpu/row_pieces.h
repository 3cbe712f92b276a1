// Cuts compressed rows into pieces of equal cost, so that threads get equal work for any degrees.
//
// A row costs its edges + kRowCost. The rows in sequence form a line of costs, which is cut every kPieceCost. A row
// belongs to the piece in which it starts, and that piece computes all of it. Only hubs, rows longer than kHubEdges,
// are split at the cuts: each piece sums its part into a buffer, and the parts are added in order afterwards. All of
// this depends only on the offsets, so results are the same for any number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "core/parallel.h"
#include "core/types.h"

namespace gmoe::core::GMOE_ISA {

inline constexpr std::int64_t kRowCost = 2;       // starting a row and storing it costs about two edges
inline constexpr std::int64_t kPieceCost = 2048;  // ~20 us at 128 columns: far above the cost of handing it out
inline constexpr std::int64_t kHubEdges = 8192;   // at least four pieces, so that at most two hubs overlap a piece

class RowLine {
 public:
  RowLine(const std::int64_t* offsets, std::int64_t num_rows) : offsets_(offsets), num_rows_(num_rows) {}

  std::int64_t start(std::int64_t row) const { return offsets_[row] + kRowCost * row; }
  std::int64_t total() const { return start(num_rows_); }
  std::int64_t num_rows() const { return num_rows_; }
  std::int64_t begin(std::int64_t row) const { return offsets_[row]; }
  std::int64_t end(std::int64_t row) const { return offsets_[row + 1]; }
  bool is_hub(std::int64_t row) const { return end(row) - begin(row) > kHubEdges; }
  // Edge of `row` at `cost` on the line, clamped to the row.
  std::int64_t edge_at(std::int64_t row, std::int64_t cost) const {
    return std::clamp(cost - kRowCost * row, begin(row), end(row));
  }
  // First row that starts at or after `cost`.
  std::int64_t first_row(std::int64_t cost) const {
    std::int64_t low = 0, high = num_rows_;
    while (low < high) {
      const std::int64_t middle = low + (high - low) / 2;
      if (start(middle) < cost) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
  bool has_hub() const {
    bool found = false;
    for (std::int64_t row = 0; row < num_rows_; ++row) found |= is_hub(row);
    return found;
  }

 private:
  const std::int64_t* offsets_;
  std::int64_t num_rows_;
};

inline std::int64_t pieces_of(const RowLine& line) { return divide_up(line.total(), kPieceCost); }
inline std::int64_t grain_pieces(std::int64_t width) {
  return grain_rows(kPieceCost * std::max<std::int64_t>(1, width / 16));
}

// f(row, begin, end) on ranges that cover every edge once; for work that is independent for each edge.
template <typename F>
void for_each_edge_range(const RowLine& line, std::int64_t width, const F& f) {
  parallel_for(pieces_of(line), grain_pieces(width), [&](std::int64_t first, std::int64_t last) {
    const std::int64_t low = first * kPieceCost, high = last * kPieceCost;
    for (std::int64_t row = std::max<std::int64_t>(0, line.first_row(low) - 1);
         row < line.num_rows() && line.start(row) < high; ++row) {
      f(row, line.edge_at(row, low), line.edge_at(row, high));
    }
  });
}

// Computes rows that are sums over their edges. Each task has its own worker = make_worker(task), which gets
// pieces_per_task pieces, one after another, as
//   worker.rows(first, last)            rows to compute, none of them a hub
//   worker.part(row, begin, end, sum)   some edges of a hub, whose sum goes to sum[width]
// finish(row, sum) then stores the total of a hub.
template <typename A, typename MakeWorker, typename Finish>
void for_each_row(const RowLine& line, std::int64_t width, std::int64_t pieces_per_task, const MakeWorker& make_worker,
                  const Finish& finish) {
  const std::int64_t num_pieces = pieces_of(line);
  // Two sums per piece: of a hub that started before it and of a hub that starts in it. Untouched if there is none.
  const bool split = line.has_hub();
  const std::unique_ptr<A[]> sums(split ? new A[static_cast<std::size_t>(2 * num_pieces * width)] : nullptr);

  const auto compute = [&](auto& worker, std::int64_t piece) {
    const std::int64_t low = piece * kPieceCost, high = low + kPieceCost;
    const std::int64_t last = line.first_row(high);
    std::int64_t row = line.first_row(low);
    if (!split) return worker.rows(row, last);
    A* sum = sums.get() + 2 * piece * width;
    if (row > 0 && line.is_hub(row - 1)) {
      worker.part(row - 1, line.edge_at(row - 1, low), line.edge_at(row - 1, high), sum);
    }
    for (std::int64_t next = row; next < last; row = ++next) {
      while (next < last && !line.is_hub(next)) ++next;
      worker.rows(row, next);
      if (next < last) worker.part(next, line.begin(next), line.edge_at(next, high), sum + width);
    }
  };
  const std::int64_t num_tasks = divide_up(num_pieces, pieces_per_task);
  parallel_for(num_tasks, grain_pieces(width), [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t task = first; task < last; ++task) {
      auto worker = make_worker(task);
      const std::int64_t end = std::min(num_pieces, (task + 1) * pieces_per_task);
      for (std::int64_t piece = task * pieces_per_task; piece < end; ++piece) compute(worker, piece);
    }
  });
  if (!split) return;
  for (std::int64_t row = 0; row < line.num_rows(); ++row) {
    if (!line.is_hub(row)) continue;
    const std::int64_t piece = line.start(row) / kPieceCost;
    A* sum = sums.get() + (2 * piece + 1) * width;
    for (std::int64_t next = piece + 1; next < num_pieces && next * kPieceCost < line.start(row + 1); ++next) {
      const A* more = sums.get() + 2 * next * width;
      for (std::int64_t d = 0; d < width; ++d) sum[d] += more[d];
    }
    finish(row, sum);
  }
}

}  // namespace gmoe::core::GMOE_ISA
