// core/cpu/expert_norm.h on the device; arguments are pointers to device memory.
#pragma once

#include "core/cpu/expert_norm.h"
#include "core/cuda/launch.h"

namespace gmoe::core::cuda {

// Bytes, for either of the two.
template <typename T>
std::int64_t expert_norm_workspace(const ExpertSlots<T>& slots);

// A slot with a bad index belongs to no expert and adds nothing, its position is noted; without gates its row of the
// result is 0.
template <typename T>
void expert_norm(const ExpertNorm<T>& a, const Call& call);
// A slot with a bad index has gradients of 0; its position is noted.
template <typename T>
void expert_norm_grad(const ExpertNormGrad<T>& a, const Call& call);

}  // namespace gmoe::core::cuda
