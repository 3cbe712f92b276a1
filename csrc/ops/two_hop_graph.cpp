#include "core/two_hop_graph.h"

#include <algorithm>

#include "ops/call.h"

namespace gmoe::ops {
namespace {

struct Edges {
  Tensor offsets, columns, edge_type;  // without edge types the last one is empty

  // For num_edges edges, once they are known.
  void allocate(const Tensor& columns_in, std::int64_t num_edges, bool typed) {
    columns = new_like(columns_in, {num_edges});
    edge_type = new_like(columns_in, {typed ? num_edges : 0});
  }
};

template <typename Index>
void make_on_cpu(const core::TwoHopGraph<Index>& a, const Tensor& columns, Edges& out) {
  std::vector<core::TwoHopRows<Index>> blocks;
  std::int64_t* ends = mutable_data<std::int64_t>(out.offsets);
  core::two_hop_graph(a, ends + 1, blocks);
  // Lengths of rows, shifted by one, become offsets.
  ends[0] = 0;
  for (std::int64_t i = 0; i < a.num_nodes; ++i) ends[i + 1] += ends[i];
  out.allocate(columns, ends[a.num_nodes], a.edge_type != nullptr);
  Index *to = mutable_data<Index>(out.columns), *to_type = mutable_data<Index>(out.edge_type);
  for (const auto& block : blocks) {
    to = std::copy(block.columns.begin(), block.columns.end(), to);
    to_type = std::copy(block.edge_type.begin(), block.edge_type.end(), to_type);
  }
}

// The only operator that waits for its device: for the number of edges.
template <typename Index, typename DeviceCall>
void make_on_device(const core::TwoHopGraph<Index>& a, const Tensor& columns, Edges& out, DeviceCall& call) {
  const std::int64_t num_edges = columns.size(0);
  auto* ends = mutable_data<std::int64_t>(out.offsets);
  const std::int64_t bytes = core::cuda::two_hop_offsets_workspace(a.num_nodes);
  core::cuda::two_hop_offsets(a, num_edges, ends, call.launch(bytes));
  const std::int64_t num_found = call.wait_and_read(ends + a.num_nodes);
  const bool typed = a.edge_type != nullptr;
  out.allocate(columns, num_found, typed);
  const core::cuda::TwoHopResult<Index> result{.offsets = ends,
                                               .num_edges = num_found,
                                               .columns = mutable_data<Index>(out.columns),
                                               .edge_type = typed ? mutable_data<Index>(out.edge_type) : nullptr};
  core::cuda::two_hop_edges(a, num_edges, result, call.launch(core::cuda::two_hop_edges_workspace(result)));
}

std::tuple<Tensor, Tensor, Tensor> two_hop_graph(const Tensor& offsets_in, const Tensor& columns_in,
                                                 const OptionalTensor& edge_type_in, std::int64_t num_edge_types,
                                                 bool exclude_self, bool exclude_one_hop) {
  constexpr const char* op = "gmoe::two_hop_graph";
  check_rows(op, offsets_in, columns_in);
  if (edge_type_in.has_value()) {
    check_edge_type(op, *edge_type_in, columns_in);
    // Both hops' types make one index of the columns' width.
    const bool wide = columns_in.scalar_type() == ScalarType::Long;
    const std::int64_t most = wide ? 3037000499 : 46340;
    check(num_edge_types >= 0 && num_edge_types <= most, op, ": expected 'num_edge_types' in [0, ", most, "], got ",
          num_edge_types);
  }
  Call call(op, offsets_in);
  const Tensor offsets = call.read("offsets", offsets_in), columns = call.read("columns", columns_in);
  const OptionalTensor edge_type = call.read("edge_type", edge_type_in);
  const std::int64_t num_nodes = offsets.size(0) - 1;
  call.follow_rows(offsets, columns, num_nodes);
  call.follow("edge_type", edge_type, num_edge_types);
  Edges out{.offsets = new_like(offsets, {num_nodes + 1}), .columns = {}, .edge_type = {}};
  dispatch_index(op, columns.scalar_type(), [&](auto type) {
    using Index = typename decltype(type)::type;
    const core::TwoHopGraph<Index> a{.offsets = data<std::int64_t>(offsets),
                                     .columns = data<Index>(columns),
                                     .edge_type = data<Index>(edge_type),
                                     .num_nodes = num_nodes,
                                     .num_types = num_edge_types,
                                     .exclude_self = exclude_self,
                                     .exclude_one_hop = exclude_one_hop};
    if constexpr (kOnDevice) {
      make_on_device(a, columns, out, call);
    } else {
      make_on_cpu(a, columns, out);
    }
  });
  return {out.offsets, out.columns, out.edge_type};
}

}  // namespace
}  // namespace gmoe::ops

GMOE_SCHEMAS(m) {
  m.def(
      "two_hop_graph(Tensor offsets, Tensor columns, Tensor? edge_type, int num_edge_types, bool exclude_self, "
      "bool exclude_one_hop) -> (Tensor offsets, Tensor columns, Tensor edge_type)");
}

GMOE_OPERATORS(m) { m.impl("two_hop_graph", TORCH_BOX(&gmoe::ops::two_hop_graph)); }
