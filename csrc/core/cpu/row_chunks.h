// Chunks of rows that have sums of their own, added in order at the end: a result that depends on the sizes alone, not
// on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/isa.h"

namespace gmoe::core::GMOE_ISA {

class RowChunks {
 public:
  // Chunks of at least `least_rows`, longer where sums_per_chunk values each would take too much memory.
  RowChunks(std::int64_t num_rows, std::int64_t least_rows, std::int64_t sums_per_chunk)
      : num_rows_(num_rows),
        rows_(std::max(least_rows, divide_up(num_rows, std::max<std::int64_t>(
                                                           1, kMaxSums / std::max<std::int64_t>(1, sums_per_chunk))))),
        count_(std::max<std::int64_t>(1, divide_up(num_rows, rows_))) {}

  std::int64_t count() const { return count_; }  // at least 1
  std::int64_t begin(std::int64_t chunk) const { return chunk * rows_; }
  std::int64_t end(std::int64_t chunk) const { return std::min(num_rows_, (chunk + 1) * rows_); }

 private:
  static constexpr std::int64_t kMaxSums = 1 << 22;  // 16 MiB of floats

  static std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

  std::int64_t num_rows_, rows_, count_;
};

}  // namespace gmoe::core::GMOE_ISA
