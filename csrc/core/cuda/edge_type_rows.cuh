// The edges of compressed rows as rows of their types: offsets by type, the edges of each type in their order, and the
// row that each edge came from. Edges with a bad type are in row 0, for their reader to leave out.
#pragma once

#include "core/cuda/key_sort.cuh"
#include "core/cuda/row_segments.cuh"

namespace gmoe::core::cuda {

struct EdgeTypeRows {
  KeySort edges;
  std::int64_t* row;  // [num_edges]

  EdgeTypeRows(std::int64_t num_edges, std::int64_t num_types, Workspace& workspace)
      : edges(num_edges, num_types, workspace), row(workspace.take<std::int64_t>(num_edges)) {}
};

template <typename Index>
struct EdgeTypeKey {
  const Index* edge_type;
  std::int64_t num_types;

  __device__ std::int64_t operator()(std::int64_t edge) const {
    const std::int64_t type = edge_type[edge];
    return type >= 0 && type < num_types ? type : 0;
  }
};

__global__ void edge_rows_kernel(EdgeTypeRows rows, const std::int64_t* offsets, std::int64_t num_rows, BadIndex* bad) {
  const std::int64_t edge = static_cast<std::int64_t>(blockIdx.x) * kSortThreads + threadIdx.x;
  const std::int64_t num_edges = rows.edges.num_items;
  if (edge >= num_edges) return;
  check_offsets(offsets, num_rows, num_edges, edge, num_edges, 2 * num_edges, bad);
  // One of the rows even where no offset is above the edge, as none of broken ones may be.
  rows.row[edge] = first_not(num_rows - 1, [&](std::int64_t i) { return offsets[i + 1] <= edge; });
}

template <typename Index>
void make_edge_type_rows(const EdgeTypeRows& rows, const Index* edge_type, const std::int64_t* offsets,
                         std::int64_t num_rows, const Call& call) {
  sort_by_key(rows.edges, EdgeTypeKey<Index>{edge_type, rows.edges.num_keys}, call);
  if (rows.edges.num_items == 0) return;
  launch("edge_rows", edge_rows_kernel, divide_up(rows.edges.num_items, kSortThreads), kSortThreads, 0, call.stream,
         rows, offsets, num_rows, call.bad_index);
}

}  // namespace gmoe::core::cuda
