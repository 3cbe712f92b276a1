// Arguments of the operators over typed edges and routed slots on a device, and what their launchers are told of them.
#pragma once

#include "ops/cuda/rows.h"
#include "ops/routed_edges.h"

namespace gmoe::ops {

struct EdgesOnDevice : RoutedEdges {
  bool rows_are_sources;

  EdgesOnDevice(const char* op, const DeviceCall& call, const Tensor& x_in, const Tensor& table_in,
                const Tensor& index_in, std::int64_t first_expert_in, const Tensor& offsets_in,
                const Tensor& columns_in, const Tensor& edge_type_in, const OptionalTensor& weight_in,
                bool rows_are_sources_in)
      : RoutedEdges{call.read("x", x_in),
                    call.read("edge_table", table_in),
                    call.read("index", index_in),
                    call.read("offsets", offsets_in),
                    call.read("columns", columns_in),
                    call.read("edge_type", edge_type_in),
                    call.read("weight", weight_in),
                    first_expert_in},
        rows_are_sources(rows_are_sources_in) {
    check_routed_rows(op, *this, rows_are_sources);
    check_has_rows(op, offsets, columns);
  }

  core::cuda::Call launch(DeviceCall& call, std::int64_t workspace_bytes) const {
    const std::int64_t edges = columns.size(0);
    return call.launch(workspace_bytes,
                       {{"columns", edges, num_columns(rows_are_sources)}, {"edge_type", edges, table.size(1)}},
                       kRisingOffsets);
  }
};

}  // namespace gmoe::ops
