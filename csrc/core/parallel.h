// parallel_for over ranges, and fixed chunks of rows for reductions. The client chooses who runs the ranges: the torch
// operators install torch's threads; without a backend the loop is serial. Kernels must cut their work so that the
// result does not depend on the ranges they get: an output row has one owner, a reduction has fixed chunks.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/types.h"

namespace gmoe::core {

using RangeFunction = void (*)(std::int64_t begin, std::int64_t end, const void* context);

struct ParallelBackend {
  // Calls function on disjoint ranges that cover [0, n), each at least `grain` long except the last.
  void (*run)(std::int64_t n, std::int64_t grain, RangeFunction function, const void* context);
  int (*num_threads)();
};

void set_parallel_backend(ParallelBackend backend);
const ParallelBackend& parallel_backend();

inline int num_threads() { return parallel_backend().num_threads(); }

// f(begin, end) on ranges of [0, n); f must not throw.
template <typename F>
void parallel_for(std::int64_t n, std::int64_t grain, const F& f) {
  if (n <= 0) return;
  if (n <= grain) {
    f(std::int64_t{0}, n);
    return;
  }
  const auto call = [](std::int64_t begin, std::int64_t end, const void* context) {
    (*static_cast<const F*>(context))(begin, end);
  };
  parallel_backend().run(n, grain, call, &f);
}

// The least number of rows per task for which starting it is cheap, at `work_per_row` units of work per row.
inline std::int64_t grain_rows(std::int64_t work_per_row) {
  constexpr std::int64_t kWorkPerTask = 1 << 16;  // ~10 us of vector work
  return work_per_row >= kWorkPerTask ? 1 : kWorkPerTask / (work_per_row < 1 ? 1 : work_per_row);
}

// Chunks of rows with separate sums, which are added in order at the end: the result depends only on the sizes, not on
// the number of threads.
class RowChunks {
 public:
  // Chunks of at least `least_rows`, longer where sums_per_chunk values each would take too much memory.
  RowChunks(std::int64_t num_rows, std::int64_t least_rows, std::int64_t sums_per_chunk) : num_rows_(num_rows) {
    constexpr std::int64_t kMaxSums = 1 << 22;  // 16 MiB of floats
    const std::int64_t most = std::max<std::int64_t>(1, kMaxSums / std::max<std::int64_t>(1, sums_per_chunk));
    rows_ = std::max(least_rows, divide_up(num_rows, most));
    count_ = std::max<std::int64_t>(1, divide_up(num_rows, rows_));
  }

  std::int64_t count() const { return count_; }  // at least 1
  std::int64_t begin(std::int64_t chunk) const { return chunk * rows_; }
  std::int64_t end(std::int64_t chunk) const { return std::min(num_rows_, (chunk + 1) * rows_); }

 private:
  std::int64_t num_rows_, rows_, count_;
};

}  // namespace gmoe::core
