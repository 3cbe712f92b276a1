// Checks of index arrays and plans that come from the user: a full pass, so that a bad index is reported, never used.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "core/expert_plan.h"

namespace gmoe::core {

// Position of the first value outside [0, bound), or -1. The common case is one branch-free reduction over
// unsigned numbers, in which negative values are large.
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

struct PlanFault {
  enum Kind { none, offsets, range, order } kind;
  std::int64_t position;  // in offsets or order
};

// The first fault of a plan. Its offsets must run from 0 to the number of slots, and its order must contain every slot
// once, ascending within an expert.
inline PlanFault find_plan_fault(const ExpertPlanView& plan) {
  const std::int64_t n = plan.num_slots();
  const std::int64_t bad_offset = find_bad_offset(plan.offsets, plan.num_experts, n);
  if (bad_offset >= 0) return {PlanFault::offsets, bad_offset};
  const std::int64_t bad_index = find_bad_index(plan.order, n, n);
  if (bad_index >= 0) return {PlanFault::range, bad_index};
  std::vector<std::uint64_t> seen(static_cast<std::size_t>((n + 63) / 64), 0);
  for (std::int64_t e = 0; e < plan.num_experts; ++e) {
    for (std::int64_t i = plan.offsets[e]; i < plan.offsets[e + 1]; ++i) {
      const std::int64_t slot = plan.order[i];
      const std::uint64_t bit = std::uint64_t{1} << (slot % 64);
      const bool descends = i > plan.offsets[e] && slot <= plan.order[i - 1];
      if (descends || (seen[slot / 64] & bit) != 0) return {PlanFault::order, i};
      seen[slot / 64] |= bit;
    }
  }
  return {PlanFault::none, -1};
}

}  // namespace gmoe::core
