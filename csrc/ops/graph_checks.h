// Checks of compressed rows, shared by the operators that take a graph.
#pragma once

#include "ops/compat.h"

namespace gmoe::ops {

// The type that sums over rows of `dtype` are kept in, and the only one their weights may have.
inline ScalarType accumulator_dtype(ScalarType dtype) {
  return dtype == ScalarType::BFloat16 ? ScalarType::Float : dtype;
}

inline void check_edges(const char* op, const char* name, const Tensor& t, const Tensor& columns) {
  check_dim(op, name, t, 1);
  check_size(op, name, t, 0, columns.size(0), "'columns'");
}

inline void check_rows(const char* op, const Tensor& offsets, const Tensor& columns) {
  check_dim(op, "offsets", offsets, 1);
  check_int64(op, "offsets", offsets);
  check(offsets.size(0) >= 1, op, ": expected 'offsets' of shape [rows + 1], got [0]");
  check_dim(op, "columns", columns, 1);
  check_index_dtype(op, "columns", columns);
}

inline void check_edge_type(const char* op, const Tensor& edge_type, const Tensor& columns) {
  check_edges(op, "edge_type", edge_type, columns);
  check_same_dtype(op, "edge_type", edge_type, "columns", columns);
}

inline void check_weight(const char* op, const OptionalTensor& weight, const Tensor& x, const Tensor& columns) {
  if (!weight.has_value()) return;
  check_edges(op, "weight", *weight, columns);
  check(weight->scalar_type() == accumulator_dtype(x.scalar_type()), op,
        ": expected 'weight' of dtype float32, or float64 for float64 rows");
}

// ---- on the CPU: what the offsets and columns (dense) hold

inline void check_row_values(const char* op, const Tensor& offsets, const Tensor& columns, std::int64_t num_columns) {
  const std::int64_t* values = data<std::int64_t>(offsets);
  const std::int64_t bad = core::find_bad_offset(values, offsets.size(0) - 1, columns.size(0));
  check(bad < 0, op, ": expected 'offsets' to rise from 0 to ", columns.size(0), ", got ", bad < 0 ? 0 : values[bad],
        " at position ", bad);
  check_indices(op, "columns", columns, num_columns);
}

// f(Type<T>{}, Type<Index>{}) for the dtype of the rows and the width of the columns.
template <typename F>
void dispatch_rows(const char* op, const Tensor& x, const Tensor& columns, const F& f) {
  dispatch_floating(op, x.scalar_type(), [&](auto type) {
    dispatch_index(op, columns.scalar_type(), [&](auto index_type) { f(type, index_type); });
  });
}

}  // namespace gmoe::ops
