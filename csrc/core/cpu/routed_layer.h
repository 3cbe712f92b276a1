// One layer of a packed student: y = act(sum_r gate_r (W_e(r) x + b_e(r))) over the k experts a row is routed to.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/types.h"

namespace gmoe::core {

// How weights are stored. Sums are float32: narrow weights are widened when loaded, which saves memory traffic.
enum class WeightType { float32, bfloat16, int8 };

// All arrays are dense and row-major.
struct RoutedLayer {
  const float* memory;  // [experts, compared], rows of norm 100 at most; null without a router (one expert, gate 1)
  const void* weight;   // [experts, in, out]: a feature's row holds its weights to all outputs, zero features skip it
  const float* weight_scale;  // [experts, in]: what an int8 row is multiplied by; null for other types
  const float* bias;          // [experts, out]
  const float* panels;        // weight and bias as pack_panels leaves them; only blocks of rows read it
  std::int64_t in, out, experts, k;
  std::int64_t compared;  // columns that are compared: `in`, or those of the projected row
  WeightType type;
  bool relu;
  bool over_all;  // gates are a softmax over all experts, not over the chosen ones
};

// A row as its non-zero features in ascending order.
struct SparseRow {
  const float* value;
  const std::int32_t* column;
  std::int64_t count;
};

// Rows as their non-zero features, one row after another, and all values of the last `tail_columns` columns, which are
// not among them.
struct SparseRows {
  const std::int64_t* offsets;  // [rows + 1]
  const float* value;
  const std::int32_t* column;
  const float* tail;  // [rows, tail_columns]
  std::int64_t tail_columns;
};

// Buffers of routed_block, sized by the caller for `rows` rows of the widest layer.
struct BlockScratch {
  float* scaled;          // [rows, in]: rows of one expert times their gates
  std::int64_t* offsets;  // [experts + 1]
  std::int64_t* slots;    // [rows, k]
};

inline std::int64_t padded(std::int64_t columns) { return round_up(columns, 16); }
// Floats that pack_panels writes.
inline std::int64_t panel_floats(const RoutedLayer& a) { return a.experts * (a.in + 1) * padded(a.out); }

// clang-format off
GMOE_DECLARE_PER_ISA(
  std::int64_t compress(const float* x, std::int64_t n, float* value, std::int32_t* column);
  void route_row(const RoutedLayer& a, const float* x, float* cosine, float* gate, std::int64_t* index);
  void route_sparse_row(const RoutedLayer& a, const SparseRow& x, float* cosine, float* gate, std::int64_t* index);
  void routed_row(const RoutedLayer& a, const SparseRow& x, float* gate, std::int64_t* index, float* y);
  void pack_panels(const RoutedLayer& a, float* panels);
  void routed_block(const RoutedLayer& a, const float* x, std::int64_t x_stride, std::int64_t rows, const float* gate,
                    const std::int64_t* index, const BlockScratch& scratch, float* y);
  void routed_sparse_block(const RoutedLayer& a, const SparseRows& x, std::int64_t rows, const float* gate,
                           const std::int64_t* index, const BlockScratch& scratch, float* y))
// clang-format on

// The non-zero values of x[n] (NaN included) and their columns; returns their number.
inline std::int64_t compress(const float* x, std::int64_t n, float* value, std::int32_t* column) {
  GMOE_CALL_ACTIVE_ISA(compress(x, n, value, column));
}

// gate[k] descending and index[k] for x[compared]; cosine[experts] is scratch. A NaN in x gives NaN gates and valid,
// distinct experts. Sparse rows have the layer's own features.
inline void route_row(const RoutedLayer& a, const float* x, float* cosine, float* gate, std::int64_t* index) {
  GMOE_CALL_ACTIVE_ISA(route_row(a, x, cosine, gate, index));
}
inline void route_sparse_row(const RoutedLayer& a, const SparseRow& x, float* cosine, float* gate,
                             std::int64_t* index) {
  GMOE_CALL_ACTIVE_ISA(route_sparse_row(a, x, cosine, gate, index));
}

// y[out]; sorts gate and index by expert, the order in which routed_block adds.
inline void routed_row(const RoutedLayer& a, const SparseRow& x, float* gate, std::int64_t* index, float* y) {
  GMOE_CALL_ACTIVE_ISA(routed_row(a, x, gate, index, y));
}

inline void pack_panels(const RoutedLayer& a, float* panels) { GMOE_CALL_ACTIVE_ISA(pack_panels(a, panels)); }

// y[rows, padded(out)], the padding zero: the same values as routed_row gives row by row.
inline void routed_block(const RoutedLayer& a, const float* x, std::int64_t x_stride, std::int64_t rows,
                         const float* gate, const std::int64_t* index, const BlockScratch& scratch, float* y) {
  GMOE_CALL_ACTIVE_ISA(routed_block(a, x, x_stride, rows, gate, index, scratch, y));
}
// The same of rows that are mostly zeros; reads the weights themselves, but for the tail the panels.
inline void routed_sparse_block(const RoutedLayer& a, const SparseRows& x, std::int64_t rows, const float* gate,
                                const std::int64_t* index, const BlockScratch& scratch, float* y) {
  GMOE_CALL_ACTIVE_ISA(routed_sparse_block(a, x, rows, gate, index, scratch, y));
}

}  // namespace gmoe::core
