// Checks of gmoe::cosine_topk and its gradient, the same for every device.
#pragma once

#include "ops/compat.h"

namespace gmoe::ops {

// Also of the operators that route on the way: `op` is the name that errors give.
void check_cosine_topk(const char* op, const Tensor& x, const Tensor& memory, std::int64_t k);
void check_cosine_topk_grad_x(const Tensor& grad_gate, const Tensor& x, const Tensor& memory, const Tensor& index);

}  // namespace gmoe::ops
