// core/cpu/cosine_topk.h on the device; arguments are pointers to device memory.
#pragma once

#include "core/cpu/cosine_topk.h"
#include "core/cuda/launch.h"

namespace gmoe::core::cuda {

template <typename T>
void cosine_topk(const CosineTopk<T>& a, const Call& call);

// A bad index is left out and noted as its position in a.index.
template <typename T>
void cosine_topk_grad_x(const CosineTopkGradX<T>& a, const Call& call);

}  // namespace gmoe::core::cuda
