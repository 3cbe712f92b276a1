// Checks of gmoe::cosine_topk_update, the same for every device.
#pragma once

#include "ops/compat.h"

namespace gmoe::ops {

void check_cosine_topk_update(const Tensor& x, const Tensor& memory, std::int64_t k, double rate);

}  // namespace gmoe::ops
