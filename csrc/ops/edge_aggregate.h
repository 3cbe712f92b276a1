// Checks of gmoe::edge_aggregate and its gradients, the same for every device.
#pragma once

#include "ops/graph_checks.h"

namespace gmoe::ops {

void check_edge_aggregate(const char* op, const Tensor& x, const Tensor& edge_table, const Tensor& offsets,
                          const Tensor& columns, const Tensor& edge_type, const OptionalTensor& weight);
void check_edge_aggregate_grad_y(const char* op, const Tensor& grad_y, const Tensor& x);

}  // namespace gmoe::ops
