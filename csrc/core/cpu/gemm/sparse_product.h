// Products of rows that are mostly zeros: bags of words, and what a ReLU leaves.
//
// Rows are kept as their non-zero values, in segments of a block of depth. A segment multiplies panels of the other
// matrix that lie in the first-level cache: a value is broadcast against as many columns as registers hold sums, so a
// multiply-add costs one load of the panel, and zeros cost nothing. Loads are the limit: 10 for 8 multiply-adds, where
// the dense tile needs 16 for 28, so it pays where fewer than about six values in ten are not zero.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "core/cpu/gemm/routed_product.h"

namespace gmoe::core::GMOE_ISA {

inline constexpr std::int64_t kSegmentPanels = 4;  // 8 sums hide the latency of a multiply-add
template <typename A>
inline constexpr std::int64_t kSegmentColumns = kSegmentPanels * kTileColumns<A>;
template <typename A>  // rows of the panels that fill 32 KiB, first-level cache
inline constexpr std::int64_t kSegmentDepth = (32 << 10) / (kSegmentColumns<A> * static_cast<std::int64_t>(sizeof(A)));
inline constexpr std::int64_t kLongestSegment = 8;       // in kSegmentDepth: panels of 256 KiB, second-level cache
inline constexpr double kSegmentValues = 24;             // wanted, so that reading and writing sums costs little
inline constexpr double kMostDense = 0.55;               // share of values that are not zero
inline constexpr std::int64_t kMinSparseWork = 1 << 22;  // multiply-adds; below, looking for zeros would not pay
inline constexpr std::int64_t kSparseEntries = 1 << 21;  // values at a time: 12 MiB if none is zero
inline constexpr std::int64_t kSegmentsAhead = 3;        // consecutive segments need not be adjacent
inline constexpr std::int64_t kSampledRows = 64;

// ---- segments

// The share of non-zero values in up to kSampledRows of n rows, row_of(0) to row_of(n - 1); 0 where `columns` outputs
// each are too few, or the rows too dense, for zeros to be worth skipping.
template <typename T, typename RowOf>
double density_to_skip(std::int64_t n, std::int64_t dim, std::int64_t columns, const RowOf& row_of) {
  if (columns < 2 * kTileColumns<Accumulator<T>> || n * dim * columns < kMinSparseWork) return 0;
  const std::int64_t rows = std::min(n, kSampledRows);
  std::int64_t kept = 0;
  for (std::int64_t i = 0; i < rows; ++i) {
    const T* row = row_of(i * n / rows);
    for (std::int64_t d = 0; d < dim; ++d) kept += widen(row[d]) != 0;
  }
  const double density = static_cast<double>(kept) / static_cast<double>(std::max<std::int64_t>(1, rows * dim));
  return density > kMostDense ? 0 : std::max(density, 1e-3);
}

// 0, or NaN if one of n values is NaN or infinite: zero times such a value is not zero.
template <typename T, typename A = Accumulator<T>>
A zero_times(const T* values, std::int64_t n) {
  Vector<A> sum[4] = {};
  std::int64_t i = 0;
  for (; i + 4 * kLanes<A> <= n; i += 4 * kLanes<A>) {
    for (int j = 0; j < 4; ++j) sum[j] += A{0} * load(values + i + j * kLanes<A>);
  }
  sum[0] += sum[1] + sum[2] + sum[3];
  A total = 0;
  for (int lane = 0; lane < kLanes<A>; ++lane) total += sum[0][lane];
  for (; i < n; ++i) total += A{0} * widen(values[i]);
  return total;
}

// Longer for lower densities, in a few steps, so that two samples of a matrix mostly agree.
template <typename A>
std::int64_t longest_segment(double density) {
  std::int64_t length = 1;
  while (length < kLongestSegment && density * length * kSegmentDepth<A> < kSegmentValues / 2) length *= 2;
  return length * kSegmentDepth<A>;
}

// Segments one after another: segment s holds the values [begin[s], begin[s + 1]), place[j] of them is the row of the
// panels that value j meets.
template <typename A>
class Segments {
 public:
  explicit Segments(std::int64_t capacity) : value_(capacity + kLanes<A>), place_(capacity + kLanes<A>), begin_{0} {}

  void clear() {
    begin_.assign(1, 0);
    count_ = 0;
  }
  // Appends the non-zero ones of n values as a segment, and zeros where `kept` is not zero; it may be null.
  template <typename T>
  void append(const T* from, std::int64_t n, const A* kept) {
    count_ += compress(from, n, kept, value_.data() + count_, place_.data() + count_);
    begin_.push_back(static_cast<std::uint32_t>(count_));
  }

  const A* value() const { return value_.data(); }
  const std::uint16_t* place() const { return place_.data(); }
  const std::uint32_t* begin() const { return begin_.data(); }

 private:
  Workspace<A> value_;
  Workspace<std::uint16_t> place_;
  std::vector<std::uint32_t> begin_;
  std::int64_t count_ = 0;
};

// sum[m] = start[m] + segment (first + line[m]) times the panels, m < n; without lines segment first + m.
template <typename A>
struct SegmentProduct {
  const Segments<A>& segments;
  std::int64_t first;
  const std::int32_t* line = nullptr;
  std::int64_t n;
  const A* panel;  // [depth][Panels * kTileColumns]
  const A* start;  // rows start_stride apart
  std::int64_t start_stride;
  A* sum;  // [n][Panels * kTileColumns]
};

template <int Panels, typename A>
void multiply_segments(const SegmentProduct<A>& p) {
  const A* values = p.segments.value();
  const std::uint16_t* places = p.segments.place();
  const std::uint32_t* begin = p.segments.begin() + p.first;
  const auto fetch = [&](std::int64_t m) {
    const std::int64_t line = p.line != nullptr ? p.line[m] : m;
    prefetch_row(values + begin[line], begin[line + 1] - begin[line]);
    prefetch_row(places + begin[line], begin[line + 1] - begin[line]);
  };
  for (std::int64_t m = 0; m < p.n; ++m) {
    const std::int64_t line = p.line != nullptr ? p.line[m] : m;
    fetch(std::min(m + kSegmentsAhead, p.n - 1));
    Vector<A> c[2 * Panels] = {};
    for (std::uint32_t j = begin[line]; j < begin[line + 1]; ++j) {
      const A value = values[j];
      const A* row = p.panel + std::int64_t{places[j]} * Panels * kTileColumns<A>;
#pragma GCC unroll 8
      for (int r = 0; r < 2 * Panels; ++r) c[r] += value * load(row + r * kLanes<A>);
    }
    const A* start = p.start + m * p.start_stride;
    A* sum = p.sum + m * Panels * kTileColumns<A>;
#pragma GCC unroll 8
    for (int r = 0; r < 2 * Panels; ++r) store(sum + r * kLanes<A>, load(start + r * kLanes<A>) + c[r]);
  }
}

template <typename A>
void multiply_segments(std::int64_t panels, const SegmentProduct<A>& p) {
  static_assert(kSegmentPanels == 4);
  switch (panels) {
    case 1: return multiply_segments<1>(p);
    case 2: return multiply_segments<2>(p);
    case 3: return multiply_segments<3>(p);
    default: return multiply_segments<4>(p);
  }
}

// ---- a block of a routed product
//
// The input rows of a block of output rows are kept as segments, block of depth by block of depth. For every four
// panels of columns and every expert, blocks of depth pass one after another through the first-level cache, and each
// meets all the expert's rows; their sums lie in the second-level cache meanwhile. What is summed in which order is the
// same for any cut into blocks.

inline constexpr std::int64_t kSparseBlockRows = 2048;  // every block reads all the packed weights
inline constexpr std::int64_t kSparseSlots = 1024;      // sums of 1,024 x 128 floats are 0.5 MiB of L2
inline constexpr std::int64_t kFinishAhead = 4;         // output rows are scattered: this many are prefetched

// The density of the input rows if zeros are worth skipping, else 0.
template <typename T>
double sparse_density(const RoutedProduct<T>& p) {
  if (p.out == nullptr || p.against != nullptr || p.in_against != nullptr || p.out_row.table != nullptr) return 0;
  const auto row_of = [&](std::int64_t i) { return p.in + p.in_row(p.order[i]) * p.depth(); };
  return density_to_skip<T>(p.num_slots(), p.depth(), p.columns(), row_of);
}

// For every feature 0, or NaN if one of its weights is not finite, so that its zeros count; empty if all are finite.
template <typename T, typename A = Accumulator<T>>
std::vector<A> kept_features(const RoutedProduct<T>& p) {
  const std::int64_t size = p.num_experts * p.columns() * p.depth();
  if (zero_times(p.weight.data, size) == 0) return {};
  std::vector<A> kept(static_cast<std::size_t>(p.depth()), A{0});
  for (std::int64_t i = 0; i < size; ++i) {
    const bool depth_last = p.weight.layout == WeightLayout::columns_by_depth;
    kept[depth_last ? i % p.depth() : i / p.columns() % p.depth()] += A{0} * widen(p.weight.data[i]);
  }
  return kept;
}

// Compressed lines of an output row.
template <typename T>
std::int64_t lines_per_row(const RoutedProduct<T>& p) {
  return p.in_row.table != nullptr ? p.out_row.divisor : 1;
}

// Blocks of about equal size, at most `most`.
inline std::int64_t equal_blocks(std::int64_t length, std::int64_t most) {
  return divide_up(length, divide_up(length, most));
}

template <typename T, typename A = Accumulator<T>>
struct SparseBuffers {
  SparseBuffers(const RoutedProduct<T>& p, std::int64_t rows, double density, const std::vector<A>& kept_features)
      : kept(kept_features.empty() ? nullptr : kept_features.data()),
        depth(equal_blocks(p.depth(), longest_segment<A>(density))),
        segments(rows * lines_per_row(p) * p.depth()),
        sum(kSparseSlots * kSegmentColumns<A>),
        out_rows(p, rows, kSegmentColumns<A>) {}
  const A* kept;       // [depth of the product], or null
  std::int64_t depth;  // of a segment
  Segments<A> segments;
  std::vector<std::int64_t> in_row;  // of each line of segments
  std::vector<std::int32_t> line;    // of the block's slots, expert by expert
  Workspace<A> sum;
  OutputRows<T> out_rows;
};

// A line is an input row if all slots of a row share it, else a slot.
template <typename T, typename A>
void compress_block(const RoutedProduct<T>& p, const Block& block, const std::vector<SlotRange>& slots,
                    SparseBuffers<T, A>& buffers) {
  buffers.in_row.clear();
  buffers.line.clear();
  const bool by_slot = p.in_row.table != nullptr;
  const std::int64_t first = by_slot ? 0 : p.in_row(block.first_row * p.out_row.divisor);
  for (const SlotRange& of : slots) {
    for (std::int64_t m = 0; m < of.n; ++m) {
      const std::int64_t row = p.in_row(of.first[m]);
      const std::int64_t line = by_slot ? static_cast<std::int64_t>(buffers.in_row.size()) : row - first;
      if (by_slot) buffers.in_row.push_back(row);
      buffers.line.push_back(static_cast<std::int32_t>(line));
    }
  }
  if (!by_slot) {
    const std::int64_t last = p.in_row(block.last_row * p.out_row.divisor - 1);
    for (std::int64_t row = first; row <= last; ++row) buffers.in_row.push_back(row);
  }
  buffers.segments.clear();
  for (std::int64_t d = 0; d < p.depth(); d += buffers.depth) {
    const std::int64_t depth = std::min(buffers.depth, p.depth() - d);
    const A* kept = buffers.kept != nullptr ? buffers.kept + d : nullptr;
    for (const std::int64_t row : buffers.in_row) buffers.segments.append(p.in + row * p.depth() + d, depth, kept);
  }
}

// out[row of slot m] += gate sum[m], for the columns of the block.
template <typename T, typename A>
void finish_slots(const RoutedProduct<T>& p, const Block& block, const SlotRange& slots, std::int64_t stride,
                  SparseBuffers<T, A>& buffers) {
  OutputRows<T>& rows = buffers.out_rows;
  const std::int64_t column = block.first_column, width = block.width();
  for (std::int64_t m = 0; m < slots.n; ++m) {
    const std::int64_t slot = slots.first[m], row = p.out_row(slot);
    if (m + kFinishAhead < slots.n) prefetch_row(rows.row(p.out_row(slots.first[m + kFinishAhead])) + column, width);
    A* out = rows.row(row);
    const A* base = rows.base(row, out) + column;
    out += column;
    const A* sum = buffers.sum.data() + m * stride;
    const A gate = p.gate_of(slot);
    std::int64_t c = 0;
    for (; c + kLanes<A> <= width; c += kLanes<A>) store(out + c, load(base + c) + gate * load(sum + c));
    for (; c < width; ++c) out[c] = base[c] + gate * sum[c];
  }
}

// One expert's slots times the columns of a block of up to four panels.
template <typename T, typename A>
void multiply_columns(const RoutedProduct<T>& p, const Pass<A>& pass, const Block& block, std::int64_t expert,
                      const SlotRange& slots, const std::int32_t* line, std::int64_t panels,
                      SparseBuffers<T, A>& buffers) {
  const std::int64_t stride = panels * kTileColumns<A>;
  const A* packed = pass.panel(expert, block.first_column, p.depth());
  const A* bias = pass.bias_from(expert, block.first_column, buffers.out_rows.zeros());
  const auto lines = static_cast<std::int64_t>(buffers.in_row.size());
  const std::int64_t chunk = slots.n > 0 ? equal_blocks(slots.n, kSparseSlots) : 1;
  for (std::int64_t begin = 0; begin < slots.n; begin += chunk) {
    const SlotRange some{slots.first + begin, std::min(chunk, slots.n - begin)};
    for (std::int64_t d = 0; d < p.depth(); d += buffers.depth) {
      multiply_segments(panels, SegmentProduct<A>{.segments = buffers.segments,
                                                  .first = d / buffers.depth * lines,
                                                  .line = line + begin,
                                                  .n = some.n,
                                                  .panel = packed + d * stride,
                                                  .start = d == 0 ? bias : buffers.sum.data(),
                                                  .start_stride = d == 0 ? 0 : stride,
                                                  .sum = buffers.sum.data()});
    }
    finish_slots(p, block, some, stride, buffers);
  }
}

template <typename T, typename A>
void run_sparse_block(const RoutedProduct<T>& p, const Pass<A>& pass, const Block& block,
                      SparseBuffers<T, A>& buffers) {
  std::vector<SlotRange> slots;
  for (std::int64_t e = 0; e < p.num_experts; ++e) slots.push_back(p.slots_in(e, block.first_row, block.last_row));
  compress_block(p, block, slots, buffers);
  for (std::int64_t column = block.first_column; column < block.last_column; column += kSegmentColumns<A>) {
    const Block columns{block.first_row, block.last_row, column,
                        std::min(block.last_column, column + kSegmentColumns<A>)};
    const std::int64_t panels = divide_up(columns.width(), kTileColumns<A>);
    buffers.out_rows.open(columns, panels * kTileColumns<A>);
    const std::int32_t* line = buffers.line.data();
    for (std::int64_t e = 0; e < p.num_experts; line += slots[e].n, ++e) {
      multiply_columns(p, pass, columns, e, slots[e], line, panels, buffers);
    }
    buffers.out_rows.close();
  }
}

}  // namespace gmoe::core::GMOE_ISA
