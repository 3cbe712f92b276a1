// Checks of gmoe::expert_plan and of plans handed to other operators, the same for every device.
#pragma once

#include "ops/compat.h"

namespace gmoe::ops {

void check_expert_plan(const Tensor& index, std::int64_t num_experts);
// The shapes and dtypes of a plan; what it holds is checked where it can be read.
void check_plan(const char* op, const Tensor& offsets, const Tensor& order, std::int64_t k);

}  // namespace gmoe::ops
