// core/cpu/topk_softmax.h on the device; arguments are pointers to device memory.
#pragma once

#include "core/cpu/topk_softmax.h"
#include "core/cuda/launch.h"

namespace gmoe::core::cuda {

template <typename T>
void topk_softmax(const TopkSoftmax<T>& a, const Call& call);

// A bad index is skipped and noted as its position in a.index.
template <typename T>
void topk_softmax_grad_logits(const TopkSoftmaxGradLogits<T>& a, const Call& call);

}  // namespace gmoe::core::cuda
