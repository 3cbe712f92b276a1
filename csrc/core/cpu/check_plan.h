// Plans come back from the user, so operators check them before they follow them: a full pass over the order, which
// costs about a nanosecond per slot.
#pragma once

#include <cstdint>
#include <vector>

#include "core/cpu/check_index.h"
#include "core/cpu/expert_plan.h"

namespace gmoe::core {

struct PlanFault {
  enum Kind { none, offsets, range, order } kind;
  std::int64_t position;  // in offsets or order
};

// offsets run from 0 to the number of slots; order names every slot once, ascending within an expert.
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
