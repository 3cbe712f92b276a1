// Checks of gmoe::aggregate and the gradient of its weights, the same for every device.
#pragma once

#include "ops/graph_checks.h"

namespace gmoe::ops {

void check_aggregate(const Tensor& x, const Tensor& offsets, const Tensor& columns, const OptionalTensor& weight);
void check_aggregate_grad_weight(const Tensor& grad_y, const Tensor& x, const Tensor& offsets, const Tensor& columns);

}  // namespace gmoe::ops
