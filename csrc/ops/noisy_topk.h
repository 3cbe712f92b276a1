// Checks of gmoe::noisy_topk and its gradient, the same for every device.
#pragma once

#include "ops/compat.h"

namespace gmoe::ops {

void check_noisy_topk(const char* op, const Tensor& clean, const Tensor& sigma, const Tensor& noise, std::int64_t k);
void check_noisy_topk_grad(const char* op, const Tensor& grad_gate, const Tensor& grad_importance,
                           const Tensor& grad_load, const Tensor& clean, const Tensor& gate, const Tensor& index);

}  // namespace gmoe::ops
