// Arguments of the operators over typed edges and routed slots.
#pragma once

#include "core/routed_edge_aggregate.h"
#include "ops/call.h"

namespace gmoe::ops {

// Dense tensors that fit each other and whose indices may be followed. Rows are destinations; in the gradient of x and
// table they are sources. Without an index every destination has one slot, for the only expert.
struct RoutedEdges {
  Tensor x, table, offsets, columns, edge_type;
  OptionalTensor index, weight;
  std::int64_t first_expert, num_destinations, k;

  bool shared() const { return x.dim() == 2; }
  std::int64_t num_sources() const { return x.size(x.dim() - 2); }
  std::int64_t num_edges() const { return columns.size(0); }
  std::int64_t dim() const { return x.size(x.dim() - 1); }

  template <typename T, typename Index>
  core::EdgeMessages<T, Index> messages() const {
    return {.x = data<T>(x),
            .table = data<T>(table),
            .expert = data<std::int64_t>(index),
            .first_expert = first_expert,
            .num_experts = table.size(0),
            .k = k,
            .shared = shared(),
            .offsets = data<std::int64_t>(offsets),
            .columns = data<Index>(columns),
            .edge_type = data<Index>(edge_type),
            .weight = data<core::Accumulator<T>>(weight),
            .num_sources = num_sources(),
            .num_destinations = num_destinations,
            .num_edges = num_edges(),
            .num_types = table.size(1),
            .dim = dim()};
  }
};

inline void check_routed_edges(const char* op, const Tensor& x, const Tensor& edge_table, const OptionalTensor& index,
                               const Tensor& offsets, const Tensor& columns, const Tensor& edge_type,
                               const OptionalTensor& weight) {
  check(x.dim() == 2 || x.dim() == 3, op, ": expected 'x' of shape [F, N, D] or [N, D], got ", shape(x));
  check_floating(op, "x", x);
  check_dim(op, "edge_table", edge_table, 3);
  check_same_dtype(op, "edge_table", edge_table, "x", x);
  check_size(op, "edge_table", edge_table, 2, x.size(x.dim() - 1), "'x'");
  if (x.dim() == 3) check_size(op, "edge_table", edge_table, 0, x.size(0), "'x'");
  if (index) {
    check_dim(op, "index", *index, 2);
    check_int64(op, "index", *index);
  } else {
    check_size(op, "edge_table", edge_table, 0, 1, "the one expert of all rows, or 'index' to be given");
  }
  check_rows(op, offsets, columns);
  check_edge_type(op, edge_type, columns);
  check_weight(op, weight, x, columns);
}

// Of tensors that passed check_routed_edges. num_destinations matters without an index alone.
inline RoutedEdges read_routed_edges(const char* op, Call& call, const Tensor& x, const Tensor& table,
                                     const OptionalTensor& index, std::int64_t first_expert, const Tensor& offsets,
                                     const Tensor& columns, const Tensor& edge_type, const OptionalTensor& weight,
                                     bool rows_are_sources, std::int64_t num_destinations) {
  RoutedEdges in{.x = call.read("x", x),
                 .table = call.read("edge_table", table),
                 .offsets = call.read("offsets", offsets),
                 .columns = call.read("columns", columns),
                 .edge_type = call.read("edge_type", edge_type),
                 .index = call.read("index", index),
                 .weight = call.read("weight", weight),
                 .first_expert = first_expert,
                 .num_destinations = index ? index->size(0) : num_destinations,
                 .k = index ? index->size(1) : 1};
  const std::int64_t num_rows = rows_are_sources ? in.num_sources() : in.num_destinations;
  check_size(op, "offsets", in.offsets, 0, num_rows + 1, rows_are_sources ? "'x'" : index ? "'index'" : "'grad_y'");
  call.follow_rows(in.offsets, in.columns, rows_are_sources ? in.num_destinations : in.num_sources());
  call.follow("edge_type", in.edge_type, in.table.size(1));
  return in;
}

}  // namespace gmoe::ops
