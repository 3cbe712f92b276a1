// A block of a routed product whose input rows are mostly zeros: sparse_rows.h instead of register tiles.
//
// The input rows of a block of output rows are kept as segments of non-zero values, block of depth by block of depth.
// For every four panels of columns and every expert, blocks of depth pass one after another through the first-level
// cache, and each meets all the expert's rows; their sums lie in the second-level cache meanwhile. What is summed in
// which order is the same for any cut into blocks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/cpu/routed_product.h"
#include "core/cpu/sparse_rows.h"
#include "core/parallel.h"

namespace gmoe::core::GMOE_ISA {

inline constexpr std::int64_t kSparseBlockRows = 2048;  // every block reads all the packed weights
inline constexpr std::int64_t kSparseSlots = 1024;      // sums of 1,024 x 128 floats are 0.5 MiB of L2
inline constexpr std::int64_t kFinishAhead = 4;         // output rows lie apart; so many are under way

// The density to work with where zeros are worth skipping, or 0.
template <typename T>
double sparse_density(const RoutedProduct<T>& p) {
  if (p.out == nullptr || p.against != nullptr || p.in_against != nullptr || p.out_row.table != nullptr) return 0;
  if (p.columns < 2 * kTileColumns<Accumulator<T>> || p.num_slots() * p.depth * p.columns < kMinSparseWork) return 0;
  const auto row_of = [&](std::int64_t i) { return p.in + p.in_row(p.order[i]) * p.depth; };
  const double density = sampled_density<T>(p.num_slots(), p.depth, row_of);
  return density > kMostDense ? 0 : std::max(density, 1e-3);
}

// For every feature NaN if a weight of it is NaN or infinite, so that its zeros count, else 0; empty if all are finite.
template <typename T, typename A = Accumulator<T>>
std::vector<A> kept_features(const RoutedProduct<T>& p) {
  if (zero_times(p.weight, p.num_experts * p.columns * p.depth) == 0) return {};
  std::vector<A> kept(static_cast<std::size_t>(p.depth), A{0});
  for (std::int64_t i = 0; i < p.num_experts * p.columns * p.depth; ++i) {
    const bool depth_last = p.layout == WeightLayout::columns_by_depth;
    kept[depth_last ? i % p.depth : i / p.columns % p.depth] += A{0} * widen(p.weight[i]);
  }
  return kept;
}

template <typename T>
std::int64_t sparse_block_rows(const RoutedProduct<T>& p) {
  const std::int64_t lines = p.in_row.table != nullptr ? p.out_row.divisor : 1;  // of an output row
  const std::int64_t rows = std::clamp(kSparseEntries / (p.depth * lines), kMinRowsPerTask, kSparseBlockRows);
  const std::int64_t tasks = num_threads() == 1 ? 1 : 2 * num_threads();
  return std::min(rows, std::max(kMinRowsPerTask, (p.out_rows + tasks - 1) / tasks));
}

// Blocks of about equal size, at most `most`.
inline std::int64_t equal_blocks(std::int64_t length, std::int64_t most) {
  const std::int64_t blocks = (length + most - 1) / most;
  return (length + blocks - 1) / blocks;
}

template <typename T, typename A = Accumulator<T>>
struct SparseBuffers {
  SparseBuffers(const RoutedProduct<T>& p, std::int64_t rows, double density, const std::vector<A>& kept_features)
      : kept(kept_features.empty() ? nullptr : kept_features.data()),
        depth(equal_blocks(p.depth, longest_segment<A>(density))),
        segments(rows * (p.in_row.table != nullptr ? p.out_row.divisor : 1) * p.depth),
        sum(kSparseSlots * kSegmentColumns<A>),
        wide_out(std::is_same_v<T, A> ? 0 : rows * kSegmentColumns<A>),
        zeros(static_cast<std::size_t>(kSegmentColumns<A>), A{0}),
        begun(static_cast<std::size_t>(rows)) {}
  const A* kept;       // [depth of the product], or null
  std::int64_t depth;  // of a segment
  Segments<A> segments;
  std::vector<std::int64_t> in_row;  // of each line of segments
  std::vector<std::int32_t> line;    // of the block's slots, expert by expert
  Workspace<A> sum;
  Workspace<A> wide_out;  // the block's rows and four panels, where T is narrower than A
  std::vector<A> zeros;
  std::vector<char> begun;  // per row of the block: whether it holds a sum
};

// The slots of one expert that fall into a block.
struct BlockSlots {
  const std::int64_t* first;
  std::int64_t n;
};

template <typename T>
std::vector<BlockSlots> block_slots(const RoutedProduct<T>& p, const Block& block) {
  const auto before = [&](std::int64_t slot, std::int64_t row) { return p.out_row(slot) < row; };
  std::vector<BlockSlots> found;
  for (std::int64_t e = 0; e < p.num_experts; ++e) {
    const std::int64_t* end = p.order + p.offsets[e + 1];
    const std::int64_t* first = std::lower_bound(p.order + p.offsets[e], end, block.first_row, before);
    found.push_back({first, std::lower_bound(first, end, block.last_row, before) - first});
  }
  return found;
}

// Lines are input rows where each serves all its row's slots, else slots.
template <typename T, typename A>
void compress_block(const RoutedProduct<T>& p, const Block& block, const std::vector<BlockSlots>& slots,
                    SparseBuffers<T, A>& buffers) {
  buffers.in_row.clear();
  buffers.line.clear();
  const std::int64_t first = p.in_row.table != nullptr ? 0 : p.in_row(block.first_row * p.out_row.divisor);
  for (const BlockSlots& of : slots) {
    for (std::int64_t m = 0; m < of.n; ++m) {
      const std::int64_t row = p.in_row(of.first[m]);
      const std::int64_t line =
          p.in_row.table != nullptr ? static_cast<std::int64_t>(buffers.in_row.size()) : row - first;
      if (p.in_row.table != nullptr) buffers.in_row.push_back(row);
      buffers.line.push_back(static_cast<std::int32_t>(line));
    }
  }
  if (p.in_row.table == nullptr) {
    const std::int64_t last = p.in_row(block.last_row * p.out_row.divisor - 1);
    for (std::int64_t row = first; row <= last; ++row) buffers.in_row.push_back(row);
  }
  buffers.segments.clear();
  for (std::int64_t d = 0; d < p.depth; d += buffers.depth) {
    const std::int64_t depth = std::min(buffers.depth, p.depth - d);
    const A* kept = buffers.kept != nullptr ? buffers.kept + d : nullptr;
    for (const std::int64_t row : buffers.in_row) buffers.segments.append(p.in + row * p.depth + d, depth, kept);
  }
}

// out[row of slot m] += gate sum[m], for columns [column, column + width).
template <typename T, typename A>
void finish_slots(const RoutedProduct<T>& p, const Block& block, const std::int64_t* slots, std::int64_t n,
                  std::int64_t column, std::int64_t width, std::int64_t stride, SparseBuffers<T, A>& buffers) {
  const auto out_of = [&](std::int64_t slot) {
    const std::int64_t row = p.out_row(slot);
    if constexpr (std::is_same_v<T, A>) {
      return p.out + row * p.columns + column;
    } else {
      return buffers.wide_out.data() + (row - block.first_row) * stride;
    }
  };
  for (std::int64_t m = 0; m < n; ++m) {
    if (m + kFinishAhead < n) prefetch_row(out_of(slots[m + kFinishAhead]), width);
    A* out = out_of(slots[m]);
    const bool begun = std::exchange(buffers.begun[p.out_row(slots[m]) - block.first_row], char{1}) != 0;
    const A* base = begun ? out : buffers.zeros.data();
    const A* sum = buffers.sum.data() + m * stride;
    const A gate = p.gate != nullptr ? A{widen(p.gate[slots[m]])} : A{1};
    std::int64_t c = 0;
    for (; c + kRegisterLanes<A> <= width; c += kRegisterLanes<A>) {
      const Register<A> y = at(base + c) + gate * at(sum + c);
      at(out + c) = y;
    }
    for (; c < width; ++c) out[c] = base[c] + gate * sum[c];
  }
}

// Writes what is still wide, and zeros where no slot came.
template <typename T, typename A>
void close_columns(const RoutedProduct<T>& p, const Block& block, std::int64_t column, std::int64_t width,
                   std::int64_t stride, SparseBuffers<T, A>& buffers) {
  for (std::int64_t i = block.first_row; i < block.last_row; ++i) {
    T* to = p.out + i * p.columns + column;
    if (!buffers.begun[i - block.first_row]) {
      std::fill(to, to + width, narrow<T>(A{0}));
    } else if constexpr (!std::is_same_v<T, A>) {
      const A* row = buffers.wide_out.data() + (i - block.first_row) * stride;
      std::int64_t c = 0;
      for (; c + kLanes<A> <= width; c += kLanes<A>) store(to + c, load(row + c));
      for (; c < width; ++c) to[c] = narrow<T>(row[c]);
    }
  }
}

// One expert's slots of the block times up to four panels of columns.
template <typename T, typename A>
void multiply_columns(const RoutedProduct<T>& p, const Pass<A>& pass, const Block& block, std::int64_t expert,
                      const BlockSlots& slots, const std::int32_t* line, std::int64_t column, std::int64_t panels,
                      SparseBuffers<T, A>& buffers) {
  const std::int64_t stride = panels * kTileColumns<A>;
  const A* packed = pass.packed + pass.packed_at[expert] + (column - pass.first_column) * p.depth;
  const A* bias = pass.bias != nullptr ? pass.bias + expert * pass.bias_stride + column : buffers.zeros.data();
  const auto lines = static_cast<std::int64_t>(buffers.in_row.size());
  const std::int64_t chunk = slots.n > 0 ? equal_blocks(slots.n, kSparseSlots) : 1;
  for (std::int64_t begin = 0; begin < slots.n; begin += chunk) {
    const std::int64_t n = std::min(chunk, slots.n - begin);
    for (std::int64_t d = 0; d < p.depth; d += buffers.depth) {
      const SegmentProduct<A> product{
          buffers.segments,    d / buffers.depth * lines,          line + begin,        n,
          packed + d * stride, d == 0 ? bias : buffers.sum.data(), d == 0 ? 0 : stride, buffers.sum.data()};
      multiply_segments(panels, product);
    }
    const std::int64_t width = std::min(stride, block.last_column - column);
    finish_slots(p, block, slots.first + begin, n, column, width, stride, buffers);
  }
}

template <typename T, typename A>
void run_sparse_block(const RoutedProduct<T>& p, const Pass<A>& pass, const Block& block,
                      SparseBuffers<T, A>& buffers) {
  const std::vector<BlockSlots> slots = block_slots(p, block);
  compress_block(p, block, slots, buffers);
  for (std::int64_t column = block.first_column; column < block.last_column; column += kSegmentColumns<A>) {
    const std::int64_t width = std::min(kSegmentColumns<A>, block.last_column - column);
    const std::int64_t panels = round_up(width, kTileColumns<A>) / kTileColumns<A>;
    std::fill(buffers.begun.begin(), buffers.begun.end(), 0);
    const std::int32_t* line = buffers.line.data();
    for (std::int64_t e = 0; e < p.num_experts; line += slots[e].n, ++e) {
      multiply_columns(p, pass, block, e, slots[e], line, column, panels, buffers);
    }
    close_columns(p, block, column, width, panels * kTileColumns<A>, buffers);
  }
}

}  // namespace gmoe::core::GMOE_ISA
