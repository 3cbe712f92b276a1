// Checks of gmoe::random_walk, the same for every device.
#pragma once

#include "ops/graph_checks.h"

namespace gmoe::ops {

void check_random_walk(const Tensor& offsets, const Tensor& columns, const Tensor& starts, std::int64_t length);

}  // namespace gmoe::ops
