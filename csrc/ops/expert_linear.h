// Checks of gmoe::expert_linear and its gradients, the same for every device.
#pragma once

#include "ops/compat.h"

namespace gmoe::ops {

// x [R, Din], plan, gate [N, k] and source [N, k] fit each other. Returns N.
std::int64_t check_routed_rows(const char* op, const Tensor& x, const Tensor& offsets, const Tensor& order,
                               std::int64_t k, const OptionalTensor& gate, const OptionalTensor& source);
// weight [E, Dout, Din] and bias [E, Dout] fit x and the plan.
void check_expert_weight(const char* op, const Tensor& x, const Tensor& offsets, const Tensor& weight,
                         const OptionalTensor& bias);
// grad_y is [N, Dout], or [N, k, Dout] where results stay apart.
void check_grad_y(const char* op, const Tensor& grad_y, const Tensor& x, std::int64_t num_rows, std::int64_t k,
                  bool combined);

}  // namespace gmoe::ops
