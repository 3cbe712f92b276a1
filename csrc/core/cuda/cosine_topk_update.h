// core/cpu/cosine_topk_update.h on the device; arguments are pointers to device memory.
#pragma once

#include "core/cpu/cosine_topk_update.h"
#include "core/cuda/launch.h"

namespace gmoe::core::cuda {

template <typename T>
std::int64_t cosine_topk_update_workspace(std::int64_t num_rows, std::int64_t dim, std::int64_t num_experts);

template <typename T>
void cosine_topk_update(const CosineTopkUpdate<T>& a, const Call& call);

}  // namespace gmoe::core::cuda
