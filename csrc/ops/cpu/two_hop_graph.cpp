#include "core/two_hop_graph.h"

#include <algorithm>

#include "ops/two_hop_graph.h"

namespace gmoe::ops {
namespace {

// Lengths of rows, shifted by one, become offsets.
std::int64_t sum_degrees(std::int64_t* offsets, std::int64_t num_nodes) {
  offsets[0] = 0;
  for (std::int64_t i = 0; i < num_nodes; ++i) offsets[i + 1] += offsets[i];
  return offsets[num_nodes];
}

// Without edge types the third result is empty.
std::tuple<Tensor, Tensor, Tensor> two_hop_graph(const Tensor& offsets_in, const Tensor& columns_in,
                                                 const OptionalTensor& edge_type_in, std::int64_t num_edge_types,
                                                 bool exclude_self, bool exclude_one_hop) {
  constexpr const char* op = "gmoe::two_hop_graph";
  check_two_hop_graph(offsets_in, columns_in, edge_type_in, num_edge_types);
  const Tensor offsets = dense(offsets_in), columns = dense(columns_in);
  const OptionalTensor edge_type = dense(edge_type_in);
  const std::int64_t num_nodes = offsets.size(0) - 1;
  check_row_values(op, offsets, columns, num_nodes);
  if (edge_type.has_value()) check_indices(op, "edge_type", *edge_type, num_edge_types);

  return dispatch_index(op, columns.scalar_type(), [&](auto type) {
    using Index = typename decltype(type)::type;
    std::vector<core::TwoHopRows<Index>> blocks;
    Tensor new_offsets = new_like(offsets, {num_nodes + 1});
    std::int64_t* ends = mutable_data<std::int64_t>(new_offsets);
    core::two_hop_graph<Index>({data<std::int64_t>(offsets), data<Index>(columns), data<Index>(edge_type), num_nodes,
                                num_edge_types, exclude_self, exclude_one_hop},
                               ends + 1, blocks);
    const std::int64_t num_edges = sum_degrees(ends, num_nodes);
    Tensor new_columns = new_like(columns, {num_edges});
    Tensor new_type = new_like(columns, {edge_type.has_value() ? num_edges : 0});
    Index *to = mutable_data<Index>(new_columns), *to_type = mutable_data<Index>(new_type);
    for (const auto& block : blocks) {
      to = std::copy(block.columns.begin(), block.columns.end(), to);
      to_type = std::copy(block.edge_type.begin(), block.edge_type.end(), to_type);
    }
    return std::tuple<Tensor, Tensor, Tensor>{new_offsets, new_columns, new_type};
  });
}

}  // namespace
}  // namespace gmoe::ops

STABLE_TORCH_LIBRARY_IMPL(gmoe, CPU, m) { m.impl("two_hop_graph", TORCH_BOX(&gmoe::ops::two_hop_graph)); }
