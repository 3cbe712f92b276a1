// Weights packed for the register tile: panels [depth][kTileColumns], widened to accumulators, zeros behind the last
// column. Include only from files under core/cpu.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/cpu/register_tile.h"

namespace gmoe::core::GMOE_ISA {

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
void pack_panel(const WeightMatrices<T>& p, std::int64_t expert, std::int64_t column, A* panel,
                std::int64_t stride = kTileColumns<A>) {
  const std::int64_t width = std::min<std::int64_t>(kTileColumns<A>, p.columns - column);
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
  // Squares of a register's lanes are transposed in registers; what is left over goes element by element.
  constexpr int kLanes = kRegisterLanes<A>;
  const std::int64_t square_columns = width - width % kLanes, square_depth = p.depth - p.depth % kLanes;
  for (std::int64_t c = 0; c < square_columns; c += kLanes) {
    const T* rows = weight + (column + c) * p.depth;
    for (std::int64_t d = 0; d < square_depth; d += kLanes) {
      Register<A> square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) square[i] = load_register(rows + i * p.depth + d);
      transpose<kLanes / 2, A>(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) at(panel + (d + i) * stride + c) = square[i];
    }
  }
  for (std::int64_t c = 0; c < width; ++c) {
    const T* row = weight + (column + c) * p.depth;
    for (std::int64_t d = c < square_columns ? square_depth : 0; d < p.depth; ++d) {
      panel[d * stride + c] = widen(row[d]);
    }
  }
}

}  // namespace gmoe::core::GMOE_ISA
