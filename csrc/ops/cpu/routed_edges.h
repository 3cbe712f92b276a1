// Arguments of the operators over typed edges and routed slots, whose indices are known to be in range.
#pragma once

#include "ops/routed_edges.h"

namespace gmoe::ops {

inline RoutedEdges checked_edges(const char* op, const Tensor& x, const Tensor& table, const Tensor& index,
                                 std::int64_t first_expert, const Tensor& offsets, const Tensor& columns,
                                 const Tensor& edge_type, const OptionalTensor& weight, bool rows_are_sources) {
  check_routed_edge_aggregate(op, x, table, index, offsets, columns, edge_type, weight);
  RoutedEdges in{dense(x),       dense(table),     dense(index),  dense(offsets),
                 dense(columns), dense(edge_type), dense(weight), first_expert};
  check_routed_rows(op, in, rows_are_sources);
  check_row_values(op, in.offsets, in.columns, in.num_columns(rows_are_sources));
  check_indices(op, "edge_type", in.edge_type, in.table.size(1));
  return in;
}

}  // namespace gmoe::ops
