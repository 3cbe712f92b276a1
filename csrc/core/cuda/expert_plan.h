// core/cpu/expert_plan.h on the device; arguments are pointers to device memory.
#pragma once

#include "core/cpu/expert_plan.h"
#include "core/cuda/launch.h"

namespace gmoe::core::cuda {

std::int64_t expert_plan_workspace(std::int64_t num_slots, std::int64_t num_experts);

// A slot with a bad index is in no expert's part of the order; its position is noted. offsets[num_experts] is then less
// than num_slots, and what follows in the order is not written.
template <typename Index>
void expert_plan(const ExpertPlanSort<Index>& a, const Call& call);

}  // namespace gmoe::core::cuda
