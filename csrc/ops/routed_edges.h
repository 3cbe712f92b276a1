// Arguments of the operators over typed edges and routed slots, as the kernels of every device take them.
#pragma once

#include "core/routed_edge_aggregate.h"
#include "ops/routed_edge_aggregate.h"

namespace gmoe::ops {

// Dense tensors. Rows are destinations, in the gradient of x and table sources.
struct RoutedEdges {
  Tensor x, table, index, offsets, columns, edge_type;
  OptionalTensor weight;
  std::int64_t first_expert;

  bool shared() const { return x.dim() == 2; }
  std::int64_t num_sources() const { return x.size(x.dim() - 2); }
  std::int64_t dim() const { return x.size(x.dim() - 1); }
  // What columns are below.
  std::int64_t num_columns(bool rows_are_sources) const { return rows_are_sources ? index.size(0) : num_sources(); }

  template <typename T, typename Index>
  core::EdgeMessages<T, Index> messages() const {
    return {data<T>(x),
            data<T>(table),
            data<std::int64_t>(index),
            first_expert,
            table.size(0),
            index.size(1),
            shared(),
            data<std::int64_t>(offsets),
            data<Index>(columns),
            data<Index>(edge_type),
            data<core::Accumulator<T>>(weight),
            num_sources(),
            index.size(0),
            columns.size(0),
            table.size(1),
            dim()};
  }
};

// Of tensors that have passed check_routed_edge_aggregate.
inline void check_routed_rows(const char* op, const RoutedEdges& in, bool rows_are_sources) {
  const std::int64_t num_rows = rows_are_sources ? in.num_sources() : in.index.size(0);
  check_size(op, "offsets", in.offsets, 0, num_rows + 1, rows_are_sources ? "'x'" : "'index'");
}

}  // namespace gmoe::ops
