// Who goes where: the slots of a routing [num_rows, k] grouped by expert, ascending within an expert.
#pragma once

#include <cstdint>

#include "core/cuda/launch.h"
#include "core/isa.h"

namespace gmoe::core {

template <typename Index>
struct ExpertPlanSort {
  const Index* index;  // [num_slots], checked by the caller: 0 <= index < num_experts
  std::int64_t num_slots, num_experts;
  std::int64_t* offsets;  // [num_experts + 1] out
  std::int64_t* order;    // [num_slots] out
};

// The plan as the operators that follow it read it.
struct ExpertPlanView {
  const std::int64_t* offsets;  // [num_experts + 1]
  const std::int64_t* order;    // [num_rows * k]
  std::int64_t num_experts, num_rows, k;

  std::int64_t num_slots() const { return num_rows * k; }
  std::int64_t load(std::int64_t expert) const { return offsets[expert + 1] - offsets[expert]; }
};

GMOE_DECLARE_PER_ISA(template <typename Index> void expert_plan(const ExpertPlanSort<Index>& a))

template <typename Index>
void expert_plan(const ExpertPlanSort<Index>& a) {
  GMOE_CALL_ACTIVE_ISA(expert_plan(a));
}

}  // namespace gmoe::core

// Arguments point to device memory.
namespace gmoe::core::cuda {

std::int64_t expert_plan_workspace(std::int64_t num_slots, std::int64_t num_experts);

// A slot with a bad index is noted at its position and is in no expert's part of the order. offsets[num_experts] is
// then less than num_slots, and the rest of the order is not written.
template <typename Index>
void expert_plan(const ExpertPlanSort<Index>& a, const Call& call);

}  // namespace gmoe::core::cuda
