// A register-blocked matrix product, C[rows, columns] = A[rows, depth] B[depth, columns] for a tile of C that stays in
// registers, and what surrounds it: packing B, and products of single rows for which packing would not pay.
//
// B comes in panels of kTileColumns (two vectors wide); an element of A is broadcast against both. With 14 x 2
// accumulators on AVX-512 a step of the depth loop does 28 multiply-adds for 16 loads, so the multiply-add units are
// the limit. Every element is its start value, then one multiply-add per depth in ascending order, whatever the number
// of rows in its tile: the result does not depend on how rows are cut into tiles.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/simd.h"
#include "core/types.h"

namespace gmoe::core::GMOE_ISA {

#if defined(__AVX512F__)
inline constexpr std::int64_t kTileRows = 14;  // 28 accumulators + 2 of B + 1 of A of 32 registers
#elif defined(__aarch64__)
inline constexpr std::int64_t kTileRows = 12;  // 24 + 2 + 1 of 32
#else
inline constexpr std::int64_t kTileRows = 6;  // 12 + 2 + 1 of 16
#endif
template <typename A>
inline constexpr std::int64_t kTileColumns = 2 * kLanes<A>;

// c[m] += sum_d a[m * RowStride + d * DepthStride] * b[d * PanelStride ...], m < Rows. The strides are constants so
// that no register is spent on row pointers.
template <int Rows, int RowStride, int DepthStride, int PanelStride, typename A>
[[gnu::always_inline]] inline void multiply_tile(const A* __restrict a, const A* __restrict b, std::int64_t depth,
                                                 Vector<A> (&c)[Rows][2]) {
  for (std::int64_t d = 0; d < depth; ++d) {
    const Vector<A> b0 = load(b), b1 = load(b + kLanes<A>);
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
      const A value = a[m * RowStride];
      c[m][0] += value * b0;
      c[m][1] += value * b1;
    }
    a += DepthStride;
    b += PanelStride;
  }
}

// ---- panels: [depth][kTileColumns], widened to accumulators, zeros behind the last column

enum class WeightLayout { columns_by_depth, depth_by_columns };

// A stack of matrices, [num_experts, columns, depth] or [num_experts, depth, columns].
template <typename T>
struct WeightMatrices {
  const T* data;
  WeightLayout layout;
  std::int64_t depth, columns;
};

// Columns [column, column + kTileColumns) of one expert's matrix; rows of the panel are `stride` apart.
template <typename T, typename A>
void pack_panel(const WeightMatrices<T>& p, std::int64_t expert, std::int64_t column, std::int64_t stride, A* panel) {
  const std::int64_t width = std::min(kTileColumns<A>, p.columns - column);
  const T* weight = p.data + expert * p.columns * p.depth;
  for (std::int64_t d = 0; width < kTileColumns<A> && d < p.depth; ++d) {
    std::fill(panel + d * stride, panel + d * stride + kTileColumns<A>, A{0});
  }
  if (p.layout == WeightLayout::depth_by_columns) {
    for (std::int64_t d = 0; d < p.depth; ++d) {
      const T* row = weight + d * p.columns + column;
      A* to = panel + d * stride;
      for (std::int64_t c = 0; c < width; ++c) to[c] = widen(row[c]);
    }
    return;
  }
  // Squares as wide as a vector are transposed in registers; the rest goes element by element.
  const std::int64_t square_columns = width - width % kLanes<A>, square_depth = p.depth - p.depth % kLanes<A>;
  for (std::int64_t c = 0; c < square_columns; c += kLanes<A>) {
    const T* rows = weight + (column + c) * p.depth;
    for (std::int64_t d = 0; d < square_depth; d += kLanes<A>) {
      Vector<A> square[kLanes<A>];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<A>; ++i) square[i] = load(rows + i * p.depth + d);
      transpose<A>(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<A>; ++i) store(panel + (d + i) * stride + c, square[i]);
    }
  }
  for (std::int64_t c = 0; c < width; ++c) {
    const T* row = weight + (column + c) * p.depth;
    for (std::int64_t d = c < square_columns ? square_depth : 0; d < p.depth; ++d) {
      panel[d * stride + c] = widen(row[d]);
    }
  }
}

// ---- one row times a matrix that is not packed; floor: the time to read the matrix once

// x . y with two vectors of sums, whose lanes are then added in order: the gates' gradients depend on it to the bit.
template <typename T, typename A>
A dot_row(const T* x, const A* y, std::int64_t n) {
  Vector<A> sum[2] = {};
  std::int64_t i = 0;
  for (; i + 2 * kLanes<A> <= n; i += 2 * kLanes<A>) {
    sum[0] += load(x + i) * load(y + i);
    sum[1] += load(x + i + kLanes<A>) * load(y + i + kLanes<A>);
  }
  sum[0] += sum[1];
  A total = 0;
  for (int lane = 0; lane < kLanes<A>; ++lane) total += sum[0][lane];
  for (; i < n; ++i) total += widen(x[i]) * y[i];
  return total;
}

// value[c] = start[c] + weight[c] . row for columns [0, n); weight rows are `depth` long.
template <typename T, typename A>
void dot_columns(const T* weight, const A* row, std::int64_t depth, std::int64_t n, const A* start, A* value) {
  std::int64_t c = 0;
  for (; c + kLanes<A> <= n; c += kLanes<A>) {
    Vector<A> sum[kLanes<A>] = {};
    const T* w = weight + c * depth;
    std::int64_t d = 0;
    for (; d + kLanes<A> <= depth; d += kLanes<A>) {
      const Vector<A> x = load(row + d);
#pragma GCC unroll 16
      for (int j = 0; j < kLanes<A>; ++j) sum[j] += x * load(w + j * depth + d);
    }
    Vector<A> total = sum_lanes<A>(sum);
    for (; d < depth; ++d) {
      for (int j = 0; j < kLanes<A>; ++j) total[j] += row[d] * widen(w[j * depth + d]);
    }
    store(value + c, start != nullptr ? total + load(start + c) : total);
  }
  for (; c < n; ++c) {
    A total = start != nullptr ? start[c] : A{0};
    for (std::int64_t d = 0; d < depth; ++d) total += row[d] * widen(weight[c * depth + d]);
    value[c] = total;
  }
}

// value[c] = start[c] + sum_d row[d] weight[d][c] for columns [0, n); weight rows are `stride` apart.
template <typename T, typename A>
void add_weight_rows(const T* weight, std::int64_t stride, const A* row, std::int64_t depth, std::int64_t n,
                     const A* start, A* value) {
  for (std::int64_t c = 0; c < n; ++c) value[c] = start != nullptr ? start[c] : A{0};
  for (std::int64_t d = 0; d < depth; ++d) {
    const T* w = weight + d * stride;
    for (std::int64_t c = 0; c < n; ++c) value[c] += row[d] * widen(w[c]);
  }
}

}  // namespace gmoe::core::GMOE_ISA
