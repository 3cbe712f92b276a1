// The edges of compressed rows as rows of their types: offsets by type, the edges of each type in their order, and the
// row that each edge came from. A stable counting sort (expert_plan) by up to 1024 digits, or two of them; edges with a
// bad type are in row 0, for their reader to leave out.
#pragma once

#include <stdexcept>
#include <string>

#include "core/cuda/expert_plan.h"
#include "core/cuda/row_segments.cuh"
#include "core/cuda/workspace.h"

namespace gmoe::core::cuda {

template <typename Index>
struct EdgeTypeRows {
  static constexpr std::int64_t kDigits = kMaxExperts;
  static constexpr int kDigitBits = 10;
  static_assert(kDigits == std::int64_t{1} << kDigitBits);

  std::int64_t num_edges, num_types;
  std::int64_t *offsets, *order, *row;                   // [num_types + 1], [num_edges], [num_edges]
  std::int32_t* digit;                                   // [num_edges]
  std::int64_t *low_order, *high_order, *digit_offsets;  // of the two sorts, where one is not enough
  unsigned char* plan;

  EdgeTypeRows(std::int64_t edges, std::int64_t types, Workspace& workspace) : num_edges(edges), num_types(types) {
    offsets = workspace.take<std::int64_t>(types + 1);
    order = workspace.take<std::int64_t>(edges);
    row = workspace.take<std::int64_t>(edges);
    digit = workspace.take<std::int32_t>(edges);
    low_order = workspace.take<std::int64_t>(two_sorts() ? edges : 0);
    high_order = workspace.take<std::int64_t>(two_sorts() ? edges : 0);
    digit_offsets = workspace.take<std::int64_t>(two_sorts() ? kDigits + 1 : 0);
    plan = workspace.take<unsigned char>(expert_plan_workspace(edges, two_sorts() ? kDigits : types));
  }
  bool two_sorts() const { return num_types > kDigits; }
};

inline constexpr int kEdgeThreads = 256;

// Digit of each edge's type, edges in the order given; null is their own.
template <typename Index>
__global__ void edge_type_digits_kernel(EdgeTypeRows<Index> rows, const Index* edge_type, const std::int64_t* order,
                                        int shift) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kEdgeThreads + threadIdx.x;
  if (i >= rows.num_edges) return;
  const std::int64_t type = edge_type[order == nullptr ? i : order[i]];
  const std::int64_t known = type >= 0 && type < rows.num_types ? type : 0;
  rows.digit[i] = static_cast<std::int32_t>(known >> shift & (rows.kDigits - 1));
}

template <typename Index>
__global__ void edge_type_order_kernel(EdgeTypeRows<Index> rows) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kEdgeThreads + threadIdx.x;
  if (i < rows.num_edges) rows.order[i] = rows.low_order[rows.high_order[i]];
}

// First i in [0, count) with before(i) false, or count; true comes first.
template <typename Before>
__device__ std::int64_t first_not(std::int64_t count, const Before& before) {
  std::int64_t low = 0, high = count;
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (before(middle)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

template <typename Index>
__global__ void edge_type_offsets_kernel(EdgeTypeRows<Index> rows, const Index* edge_type) {
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kEdgeThreads + threadIdx.x;
  if (t > rows.num_types) return;
  rows.offsets[t] = first_not(rows.num_edges, [&](std::int64_t i) {
    const std::int64_t type = edge_type[rows.order[i]];
    return (type >= 0 && type < rows.num_types ? type : 0) < t;
  });
}

template <typename Index>
__global__ void edge_rows_kernel(EdgeTypeRows<Index> rows, const std::int64_t* offsets, std::int64_t num_rows,
                                 BadIndex* bad) {
  const std::int64_t edge = static_cast<std::int64_t>(blockIdx.x) * kEdgeThreads + threadIdx.x;
  if (edge >= rows.num_edges) return;
  check_offsets(offsets, num_rows, rows.num_edges, edge, rows.num_edges, 2 * rows.num_edges, bad);
  // One of the rows even where no offset is above the edge, as none of broken ones may be.
  rows.row[edge] = first_not(num_rows - 1, [&](std::int64_t i) { return offsets[i + 1] <= edge; });
}

template <typename Index>
void make_edge_type_rows(const EdgeTypeRows<Index>& rows, const Index* edge_type, const std::int64_t* offsets,
                         std::int64_t num_rows, const Call& call) {
  if (rows.num_types > rows.kDigits * rows.kDigits) {
    throw std::invalid_argument("gmoe: expected at most " + std::to_string(rows.kDigits * rows.kDigits) +
                                " edge types on CUDA, got " + std::to_string(rows.num_types));
  }
  const std::int64_t blocks = divide_up(rows.num_edges, kEdgeThreads);
  const Call plan{rows.plan, call.bad_index, call.stream};
  const auto sort = [&](const std::int64_t* order_before, int shift, std::int64_t digits, std::int64_t* digit_offsets,
                        std::int64_t* order) {
    if (blocks > 0) {
      launch("edge_type_digits", edge_type_digits_kernel<Index>, blocks, kEdgeThreads, 0, call.stream, rows, edge_type,
             order_before, shift);
    }
    expert_plan<std::int32_t>({rows.digit, rows.num_edges, digits, digit_offsets, order}, plan);
  };
  if (rows.two_sorts()) {
    sort(nullptr, 0, rows.kDigits, rows.digit_offsets, rows.low_order);
    sort(rows.low_order, rows.kDigitBits, rows.kDigits, rows.digit_offsets, rows.high_order);
    if (blocks > 0) {
      launch("edge_type_order", edge_type_order_kernel<Index>, blocks, kEdgeThreads, 0, call.stream, rows);
    }
    launch("edge_type_offsets", edge_type_offsets_kernel<Index>, divide_up(rows.num_types + 1, kEdgeThreads),
           kEdgeThreads, 0, call.stream, rows, edge_type);
  } else {
    sort(nullptr, 0, rows.num_types, rows.offsets, rows.order);
  }
  if (blocks == 0) return;
  launch("edge_rows", edge_rows_kernel<Index>, blocks, kEdgeThreads, 0, call.stream, rows, offsets, num_rows,
         call.bad_index);
}

}  // namespace gmoe::core::cuda
