// Checks of gmoe::memory_update, the same for every device.
#pragma once

#include "ops/compat.h"

namespace gmoe::ops {

void check_memory_update(const Tensor& memory, const Tensor& x, const Tensor& gate, const Tensor& index, double rate);

}  // namespace gmoe::ops
