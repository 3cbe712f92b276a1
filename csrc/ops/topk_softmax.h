// Checks of gmoe::topk_softmax and its gradient, the same for every device.
#pragma once

#include "ops/compat.h"

namespace gmoe::ops {

void check_topk_softmax(const Tensor& logits, std::int64_t k);
void check_topk_softmax_grad_logits(const Tensor& grad_gate, const Tensor& gate, const Tensor& index,
                                    std::int64_t num_experts);

}  // namespace gmoe::ops
