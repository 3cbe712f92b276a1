// Index checks of the CPU operators: a full pass, so that a bad index is reported and never followed.
#pragma once

#include <cstdint>

namespace gmoe::core {

// Position of the first value outside [0, bound), or -1. The common case is one branch-free reduction.
template <typename Index>
std::int64_t find_bad_index(const Index* values, std::int64_t n, std::int64_t bound) {
  bool bad = false;
  for (std::int64_t i = 0; i < n; ++i) bad |= values[i] < 0 || static_cast<std::int64_t>(values[i]) >= bound;
  if (!bad) return -1;
  for (std::int64_t i = 0; i < n; ++i) {
    if (values[i] < 0 || static_cast<std::int64_t>(values[i]) >= bound) return i;
  }
  return -1;
}

// Position of the first offset that breaks 0 = offsets[0] <= offsets[1] <= ... <= offsets[n] = total, or -1.
inline std::int64_t find_bad_offset(const std::int64_t* offsets, std::int64_t n, std::int64_t total) {
  if (offsets[0] != 0) return 0;
  for (std::int64_t i = 0; i < n; ++i) {
    if (offsets[i + 1] < offsets[i]) return i + 1;
  }
  return offsets[n] == total ? -1 : n;
}

}  // namespace gmoe::core
