// Index checks of the CPU operators: a full pass, so that a bad index is reported and never followed.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

namespace gmoe::core {

// Position of the first value outside [0, bound), or -1. The common case is one branch-free reduction over unsigned
// numbers, as which negative ones are large.
template <typename Index>
std::int64_t find_bad_index(const Index* values, std::int64_t n, std::int64_t bound) {
  using Unsigned = std::make_unsigned_t<Index>;
  constexpr auto kLargest = static_cast<std::int64_t>(std::numeric_limits<Index>::max());
  const Unsigned last = bound > kLargest ? static_cast<Unsigned>(kLargest) : static_cast<Unsigned>(bound - 1);
  if (bound <= 0) return n > 0 ? 0 : -1;
  Unsigned bad = 0;
  for (std::int64_t i = 0; i < n; ++i) bad |= static_cast<Unsigned>(values[i]) > last ? 1 : 0;
  if (bad == 0) return -1;
  for (std::int64_t i = 0; i < n; ++i) {
    if (static_cast<Unsigned>(values[i]) > last) return i;
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
