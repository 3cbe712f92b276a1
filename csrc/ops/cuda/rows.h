// Compressed rows on a device: what the host can check of them, and what kernels note.
#pragma once

#include "ops/cuda/call.h"
#include "ops/graph_checks.h"

namespace gmoe::ops {

// Of a position past all indices: offsets that do not rise from 0 to the number of edges.
inline constexpr const char* kRisingOffsets = "'offsets' to rise from 0 to the number of 'columns'";

// Kernels keep to the rows that there are, and would have none for the edges.
inline void check_has_rows(const char* op, const Tensor& offsets, const Tensor& columns) {
  check(offsets.size(0) > 1 || columns.size(0) == 0, op, ": expected 'offsets' to rise from 0 to ", columns.size(0),
        ", got no rows");
}

struct DeviceRows {
  Tensor offsets, columns;

  std::int64_t num_rows() const { return offsets.size(0) - 1; }
  std::int64_t num_edges() const { return columns.size(0); }
};

inline DeviceRows read_rows(const char* op, const DeviceCall& call, const Tensor& offsets, const Tensor& columns) {
  check_has_rows(op, offsets, columns);
  return {call.read("offsets", offsets), call.read("columns", columns)};
}

}  // namespace gmoe::ops
