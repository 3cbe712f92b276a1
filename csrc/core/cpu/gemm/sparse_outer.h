// The gradient of an expert's weight where the rows of x are mostly zeros, by the segments of sparse_product.h.
//
// dW^T = sum over slots of x_s (x) gate dy_i is a product too: its row d is the sum of the rows of dy whose x has
// feature d, times that feature. So x is kept as the non-zero values of its columns, in segments of a block of slots;
// the block's rows of dy, times the gate, are gathered four panels at a time into the first-level cache, where every
// feature meets them. dW^T of four panels lies in the second-level cache meanwhile; it is transposed at the end.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/cpu/gemm/sparse_product.h"

namespace gmoe::core::GMOE_ISA {

inline constexpr std::int64_t kOuterAhead = 4;  // rows are scattered: this many are prefetched while one is copied

// The inputs of a run of slots.
template <typename T, typename A = Accumulator<T>>
struct SparseOuter {
  const T* x;
  const T* grad_y;
  const std::int64_t* x_row;       // [slots]
  const std::int64_t* grad_y_row;  // [slots]
  const A* gate;                   // [slots]
  const A* kept;                   // [slots]: not zero where gate dy is not finite, so that zeros of x count; or null
  std::int64_t slots, in_dim, out_dim;
};

template <typename A>
struct OuterBuffers {
  OuterBuffers(double density, std::int64_t in_dim, std::int64_t rows)
      : slots_per_segment(longest_segment<A>(density)),
        segments_at_once(std::max<std::int64_t>(1, kSparseEntries / (in_dim * slots_per_segment))),
        segments(segments_at_once * slots_per_segment * in_dim),
        columns(round_up(slots_per_segment, kLanes<A>) * kLanes<A>),
        grad_y(slots_per_segment * kSegmentColumns<A>),
        sum(round_up(in_dim, kLanes<A>) * round_up(rows, kTileColumns<A>)) {}
  std::int64_t slots_per_segment, segments_at_once;
  Segments<A> segments;
  Workspace<A> columns;  // [kLanes][slots]: some columns of x
  Workspace<A> grad_y;   // [slots][four panels], times the gate
  Workspace<A> sum;      // by groups of four panels: [in_dim][columns of the group]
};

// Appends the columns of x in slots [begin, begin + n), one segment each.
template <typename T, typename A>
void compress_columns(const SparseOuter<T, A>& p, std::int64_t begin, std::int64_t n, OuterBuffers<A>& buffers) {
  const std::int64_t stride = round_up(n, kLanes<A>);
  A* columns = buffers.columns.data();
  const auto row_of = [&](std::int64_t s) { return p.x + p.x_row[begin + s] * p.in_dim; };
  for (std::int64_t d = 0; d < p.in_dim; d += kLanes<A>) {
    const std::int64_t width = std::min(kLanes<A>, p.in_dim - d);
    for (std::int64_t s = 0; s < n; s += kLanes<A>) {
      Vector<A> square[kLanes<A>] = {};
      const std::int64_t rows = std::min(kLanes<A>, n - s);
      if (width == kLanes<A>) {
        for (std::int64_t i = 0; i < rows; ++i) square[i] = load(row_of(s + i) + d);
      } else {
        for (std::int64_t i = 0; i < rows; ++i) square[i] = load_first(row_of(s + i) + d, width);
      }
      transpose<A>(square);
      for (int i = 0; i < kLanes<A>; ++i) store(columns + i * stride + s, square[i]);
    }
    const A* kept = p.kept != nullptr ? p.kept + begin : nullptr;
    for (std::int64_t i = 0; i < width; ++i) buffers.segments.append(columns + i * stride, n, kept);
  }
}

// Columns [column, column + width) of gate dy of n slots from `begin` on.
template <typename T, typename A>
void gather_grad_y(const SparseOuter<T, A>& p, std::int64_t begin, std::int64_t n, std::int64_t column,
                   std::int64_t width, std::int64_t stride, A* to) {
  for (std::int64_t i = begin; i < begin + n; ++i, to += stride) {
    if (i + kOuterAhead < begin + n) prefetch_row(p.grad_y + p.grad_y_row[i + kOuterAhead] * p.out_dim + column, width);
    const T* from = p.grad_y + p.grad_y_row[i] * p.out_dim + column;
    for (std::int64_t c = 0; c < width; ++c) to[c] = p.gate[i] * widen(from[c]);
    std::fill(to + width, to + stride, A{0});
  }
}

// out[f][d] = sum[d][f] for f < width.
template <typename A>
void write_transposed(const A* sum, std::int64_t stride, std::int64_t in_dim, std::int64_t width, A* out) {
  for (std::int64_t f = 0; f < width; f += kLanes<A>) {
    for (std::int64_t d = 0; d < in_dim; d += kLanes<A>) {
      Vector<A> square[kLanes<A>];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<A>; ++i) square[i] = load(sum + (d + i) * stride + f);
      transpose<A>(square);
      const std::int64_t rows = std::min(kLanes<A>, width - f);
      const std::int64_t lanes = std::min(kLanes<A>, in_dim - d);
      for (std::int64_t i = 0; i < rows; ++i) {
        A* to = out + (f + i) * in_dim + d;
        if (lanes == kLanes<A>) {
          store(to, square[i]);
        } else {
          for (std::int64_t j = 0; j < lanes; ++j) to[j] = square[i][j];
        }
      }
    }
  }
}

// Rows [begin, end) of dW for the slots of p, written to sum [end - begin, in_dim].
template <typename T, typename A>
void sum_sparse_outer(const SparseOuter<T, A>& p, std::int64_t begin, std::int64_t end, OuterBuffers<A>& buffers,
                      A* sum) {
  const std::int64_t padded_in = round_up(p.in_dim, kLanes<A>);
  std::fill(buffers.sum.data(), buffers.sum.data() + padded_in * round_up(end - begin, kTileColumns<A>), A{0});
  const std::int64_t at_once = buffers.segments_at_once * buffers.slots_per_segment;
  for (std::int64_t chunk = 0; chunk < p.slots; chunk += at_once) {
    const std::int64_t chunk_end = std::min(p.slots, chunk + at_once);
    buffers.segments.clear();
    for (std::int64_t s = chunk; s < chunk_end; s += buffers.slots_per_segment) {
      compress_columns(p, s, std::min(buffers.slots_per_segment, chunk_end - s), buffers);
    }
    for (std::int64_t f = begin; f < end; f += kSegmentColumns<A>) {
      const std::int64_t width = std::min(kSegmentColumns<A>, end - f), stride = round_up(width, kTileColumns<A>);
      A* total = buffers.sum.data() + padded_in * (f - begin);
      std::int64_t first = 0;
      for (std::int64_t s = chunk; s < chunk_end; s += buffers.slots_per_segment, first += p.in_dim) {
        gather_grad_y(p, s, std::min(buffers.slots_per_segment, chunk_end - s), f, width, stride,
                      buffers.grad_y.data());
        multiply_segments(stride / kTileColumns<A>, SegmentProduct<A>{.segments = buffers.segments,
                                                                      .first = first,
                                                                      .n = p.in_dim,
                                                                      .panel = buffers.grad_y.data(),
                                                                      .start = total,
                                                                      .start_stride = stride,
                                                                      .sum = total});
      }
    }
  }
  for (std::int64_t f = begin; f < end; f += kSegmentColumns<A>) {
    const std::int64_t width = std::min(kSegmentColumns<A>, end - f), stride = round_up(width, kTileColumns<A>);
    write_transposed(buffers.sum.data() + padded_in * (f - begin), stride, p.in_dim, width,
                     sum + (f - begin) * p.in_dim);
  }
}

}  // namespace gmoe::core::GMOE_ISA
