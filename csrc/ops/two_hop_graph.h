// Checks of gmoe::two_hop_graph, the same for every device.
#pragma once

#include "ops/graph_checks.h"

namespace gmoe::ops {

void check_two_hop_graph(const Tensor& offsets, const Tensor& columns, const OptionalTensor& edge_type,
                         std::int64_t num_edge_types);

}  // namespace gmoe::ops
