// Arguments of the operators over typed edges and routed slots, checked, as the kernels take them.
#pragma once

#include "core/cpu/routed_edge_aggregate.h"
#include "ops/routed_edge_aggregate.h"

namespace gmoe::ops {

// Dense tensors whose indices are known to be in range. Rows are destinations, in the gradient of x and table sources.
struct RoutedEdges {
  Tensor x, table, index, offsets, columns, edge_type;
  OptionalTensor weight;
  std::int64_t first_expert;

  bool shared() const { return x.dim() == 2; }
  std::int64_t num_sources() const { return x.size(x.dim() - 2); }
  std::int64_t dim() const { return x.size(x.dim() - 1); }

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

inline RoutedEdges checked_edges(const char* op, const Tensor& x, const Tensor& table, const Tensor& index,
                                 std::int64_t first_expert, const Tensor& offsets, const Tensor& columns,
                                 const Tensor& edge_type, const OptionalTensor& weight, bool rows_are_sources) {
  check_routed_edge_aggregate(op, x, table, index, offsets, columns, edge_type, weight);
  RoutedEdges in{dense(x),       dense(table),     dense(index),  dense(offsets),
                 dense(columns), dense(edge_type), dense(weight), first_expert};
  const std::int64_t num_rows = rows_are_sources ? in.num_sources() : in.index.size(0);
  check_size(op, "offsets", in.offsets, 0, num_rows + 1, rows_are_sources ? "'x'" : "'index'");
  check_row_values(op, in.offsets, in.columns, rows_are_sources ? in.index.size(0) : in.num_sources());
  check_indices(op, "edge_type", in.edge_type, in.table.size(1));
  return in;
}

}  // namespace gmoe::ops
