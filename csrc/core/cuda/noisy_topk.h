// core/cpu/noisy_topk.h on the device; arguments are pointers to device memory.
#pragma once

#include "core/cpu/noisy_topk.h"
#include "core/cuda/launch.h"

namespace gmoe::core::cuda {

template <typename T>
std::int64_t noisy_topk_workspace(std::int64_t num_rows, std::int64_t num_experts);
template <typename T>
void noisy_topk(const NoisyTopk<T>& a, const Call& call);

// A bad index is skipped and noted as its position in g.index. Needs no workspace.
template <typename T>
void noisy_topk_grad(const NoisyTopkGrad<T>& g, const Call& call);

}  // namespace gmoe::core::cuda
