#include "core/two_hop_graph.h"

#include "ops/cuda/rows.h"
#include "ops/two_hop_graph.h"

namespace gmoe::ops {
namespace {

// Without edge types the third result is empty. The only operator that waits for its device: for the number of edges.
std::tuple<Tensor, Tensor, Tensor> two_hop_graph(const Tensor& offsets, const Tensor& columns,
                                                 const OptionalTensor& edge_type_in, std::int64_t num_edge_types,
                                                 bool exclude_self, bool exclude_one_hop) {
  constexpr const char* op = "gmoe::two_hop_graph";
  check_two_hop_graph(offsets, columns, edge_type_in, num_edge_types);
  DeviceCall call(op, offsets);
  const DeviceRows rows = read_rows(op, call, offsets, columns);
  const OptionalTensor edge_type = call.read("edge_type", edge_type_in);
  const std::int64_t num_nodes = rows.num_rows(), num_edges = rows.num_edges();
  const auto launch = [&](std::int64_t workspace_bytes) {
    return call.launch(workspace_bytes,
                       {{"columns", num_edges, num_nodes}, {"edge_type", edge_type ? num_edges : 0, num_edge_types}},
                       kRisingOffsets);
  };
  return dispatch_index(op, rows.columns.scalar_type(), [&](auto type) {
    using Index = typename decltype(type)::type;
    const core::TwoHopGraph<Index> graph{data<std::int64_t>(rows.offsets),
                                         data<Index>(rows.columns),
                                         data<Index>(edge_type),
                                         num_nodes,
                                         num_edge_types,
                                         exclude_self,
                                         exclude_one_hop};
    Tensor new_offsets = new_like(rows.offsets, {num_nodes + 1});
    auto* ends = mutable_data<std::int64_t>(new_offsets);
    core::cuda::two_hop_offsets(graph, num_edges, ends, launch(core::cuda::two_hop_offsets_workspace(num_nodes)));
    const std::int64_t num_found = call.wait_and_read(ends + num_nodes);
    Tensor new_columns = new_like(rows.columns, {num_found});
    Tensor new_type = new_like(rows.columns, {edge_type ? num_found : 0});
    const core::cuda::TwoHopResult<Index> result{ends, num_found, mutable_data<Index>(new_columns),
                                                 edge_type ? mutable_data<Index>(new_type) : nullptr};
    core::cuda::two_hop_edges(graph, num_edges, result, launch(core::cuda::two_hop_edges_workspace(result)));
    return std::tuple<Tensor, Tensor, Tensor>{new_offsets, new_columns, new_type};
  });
}

}  // namespace
}  // namespace gmoe::ops

GMOE_DEVICE_LIBRARY(m) { m.impl("two_hop_graph", TORCH_BOX(&gmoe::ops::two_hop_graph)); }
