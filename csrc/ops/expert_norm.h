// Checks of gmoe::expert_norm and its gradient, the same for every device.
#pragma once

#include "ops/compat.h"

namespace gmoe::ops {

// y [N, k, D], index [N, k], gate [N, k] fit each other, and so do weight and bias [E, D].
void check_expert_norm(const char* op, const Tensor& y, const Tensor& index, const OptionalTensor& gate,
                       const Tensor& weight, const Tensor& bias);
// One of the [E, D] tensors beside weight.
void check_per_expert(const char* op, const char* name, const Tensor& t, const Tensor& weight, ScalarType dtype);
// grad_out is [N, D] with gates, else [N, k, D].
void check_expert_norm_grad(const char* op, const Tensor& grad_out, const Tensor& y, const OptionalTensor& gate,
                            const Tensor& weight, const Tensor& count);

}  // namespace gmoe::ops
