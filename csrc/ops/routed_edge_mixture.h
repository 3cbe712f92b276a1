// Checks of gmoe::routed_edge_mixture beyond those of routed_edge_aggregate, the same for every device.
#pragma once

#include "ops/graph_checks.h"

namespace gmoe::ops {

void check_routed_edge_mixture(const Tensor& x, const Tensor& edge_table, const Tensor& index, const Tensor& gate,
                               const OptionalTensor& scale, const OptionalTensor& shift, const OptionalTensor& onto);

}  // namespace gmoe::ops
