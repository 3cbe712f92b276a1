// The slots of experts in parts of equal size, for kernels that own experts; which part has which slots follows from
// the offsets alone, so there is no table to make and nothing to ask the device for before a launch.
//
// Expert e begins with part offsets[e] / per_part + e. That leaves room for all its slots, and some parts empty.
#pragma once

#include "core/cuda/primitives.cuh"
#include "core/expert_plan.h"

namespace gmoe::core::cuda {

inline __host__ __device__ std::int64_t num_slots(const ExpertPlanView& plan) { return plan.num_rows * plan.k; }

// A plan that does not have every slot once is noted as num_slots, behind all positions of bad sources.
inline __device__ void note_bad_plan(const ExpertPlanView& plan, BadIndex* bad) {
  atomicMin(bad, static_cast<BadIndex>(num_slots(plan)));
}

// The largest e with start(e) <= i, of ascending starts of which the first is not above it.
template <typename Start>
__device__ std::int64_t expert_at(std::int64_t num_experts, std::int64_t i, const Start& start) {
  std::int64_t low = 0, high = num_experts - 1;
  while (low < high) {
    const std::int64_t middle = low + (high - low + 1) / 2;
    if (start(middle) <= i) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

struct ExpertPart {
  std::int64_t expert, begin, end;  // positions in the plan's order
};

struct ExpertParts {
  ExpertPlanView plan;
  std::int64_t per_part;  // 0: every expert is one part

  __host__ __device__ bool cut() const { return per_part > 0; }
  __host__ __device__ std::int64_t count() const {
    return cut() ? num_slots(plan) / per_part + plan.num_experts : plan.num_experts;
  }
  // Of a damaged plan, offsets stay within the slots.
  __device__ std::int64_t offset(std::int64_t e) const {
    const std::int64_t n = num_slots(plan), at = plan.offsets[e];
    return at < 0 ? 0 : at < n ? at : n;
  }
  __device__ std::int64_t first_part(std::int64_t e) const { return cut() ? offset(e) / per_part + e : e; }
  __device__ std::int64_t num_parts(std::int64_t e) const {
    const std::int64_t load = offset(e + 1) - offset(e);
    return load <= 0 ? 0 : cut() ? divide_up(load, per_part) : 1;
  }
  __device__ std::int64_t expert_of(std::int64_t position) const {
    return expert_at(plan.num_experts, position, [&](std::int64_t e) { return offset(e); });
  }
  __device__ ExpertPart part(std::int64_t index) const {
    const std::int64_t e =
        cut() ? expert_at(plan.num_experts, index, [&](std::int64_t i) { return first_part(i); }) : index;
    const std::int64_t before = index - first_part(e), begin = offset(e) + before * per_part, end = offset(e + 1);
    if (before < 0 || begin >= end) return {e, 0, 0};
    return {e, begin, cut() && begin + per_part < end ? begin + per_part : end};
  }
};

}  // namespace gmoe::core::cuda
