// Products of rows that are mostly zeros: bags of words, and what a ReLU leaves.
//
// Rows are kept as their non-zero values, in segments of a block of depth. A segment multiplies panels of the other
// matrix that lie in the first-level cache: a value is broadcast against as many columns as registers hold sums, so a
// multiply-add costs one load of the panel, and zeros cost nothing. Loads are the limit: 10 for 8 multiply-adds, where
// the dense tile needs 16 for 28, so it pays where fewer than about six values in ten are not zero.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/cpu/register_tile.h"
#include "core/cpu/tile.h"

namespace gmoe::core::GMOE_ISA {

inline constexpr std::int64_t kSegmentPanels = 4;  // 8 sums hide the latency of a multiply-add
template <typename A>
inline constexpr std::int64_t kSegmentColumns = kSegmentPanels * kTileColumns<A>;
template <typename A>  // rows of the panels that fill 32 KiB, first-level cache
inline constexpr std::int64_t kSegmentDepth = (32 << 10) / (kSegmentColumns<A> * static_cast<std::int64_t>(sizeof(A)));
inline constexpr std::int64_t kLongestSegment = 8;       // in kSegmentDepth: panels of 256 KiB, second-level cache
inline constexpr double kSegmentValues = 24;             // wished for, so that reading and writing sums costs little
inline constexpr double kMostDense = 0.55;               // share of values that are not zero
inline constexpr std::int64_t kMinSparseWork = 1 << 22;  // multiply-adds; below, looking for zeros would not pay
inline constexpr std::int64_t kSparseEntries = 1 << 21;  // values at a time: 12 MiB if none is zero
inline constexpr std::int64_t kSegmentsAhead = 3;        // segments that are used need not be neighbours
inline constexpr std::int64_t kSampledRows = 64;

// The share of non-zero values in up to kSampledRows of n rows, row_of(0) to row_of(n - 1).
template <typename T, typename RowOf>
double sampled_density(std::int64_t n, std::int64_t dim, const RowOf& row_of) {
  const std::int64_t rows = std::min(n, kSampledRows);
  std::int64_t kept = 0;
  for (std::int64_t i = 0; i < rows; ++i) {
    const T* row = row_of(i * n / rows);
    for (std::int64_t d = 0; d < dim; ++d) kept += widen(row[d]) != 0;
  }
  return static_cast<double>(kept) / static_cast<double>(std::max<std::int64_t>(1, rows * dim));
}

// 0, or NaN if one of n values is NaN or infinite: zero times those is no zero.
template <typename T, typename A = Accumulator<T>>
A zero_times(const T* values, std::int64_t n) {
  Register<A> sum[4] = {};
  std::int64_t i = 0;
  for (; i + 4 * kRegisterLanes<A> <= n; i += 4 * kRegisterLanes<A>) {
    for (int j = 0; j < 4; ++j) sum[j] += A{0} * load_register(values + i + j * kRegisterLanes<A>);
  }
  sum[0] += sum[1] + sum[2] + sum[3];
  A total = 0;
  for (int lane = 0; lane < kRegisterLanes<A>; ++lane) total += sum[0][lane];
  for (; i < n; ++i) total += A{0} * widen(values[i]);
  return total;
}

// As long as the density asks for, in a few steps: two samples of one matrix mostly agree.
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
  explicit Segments(std::int64_t capacity)
      : value_(capacity + kRegisterLanes<A>), place_(capacity + kRegisterLanes<A>), begin_{0} {}

  void clear() {
    begin_.assign(1, 0);
    count_ = 0;
  }
  // Appends the non-zero ones of n values as a segment, and zeros where `kept` is not zero; it may be null.
  template <typename T>
  void append(const T* from, std::int64_t n, const A* kept) {
    std::int64_t i = 0;
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<A, float>) {
      // Packed in registers and stored whole: what lies behind the packed lanes is written over by the next.
      const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
      for (; i + kRegisterLanes<A> <= n; i += kRegisterLanes<A>) {
        const auto v = std::bit_cast<__m512>(load_register(from + i));
        __mmask16 keep = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
        if (kept != nullptr) keep |= _mm512_cmp_ps_mask(_mm512_loadu_ps(kept + i), _mm512_setzero_ps(), _CMP_NEQ_UQ);
        const __m512i at = _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int>(i)));
        const __m512i packed = _mm512_maskz_compress_epi32(keep, at);
        _mm512_storeu_ps(value_.data() + count_, _mm512_maskz_compress_ps(keep, v));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(place_.data() + count_),
                            _mm512_maskz_cvtepi32_epi16(0xffff, packed));
        count_ += __builtin_popcount(keep);
      }
    }
#endif
    for (; i < n; ++i) {
      value_.data()[count_] = widen(from[i]);
      place_.data()[count_] = static_cast<std::uint16_t>(i);
      count_ += widen(from[i]) != 0 || (kept != nullptr && kept[i] != 0);
    }
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
  const std::int32_t* line;
  std::int64_t n;
  const A* panel;  // [depth][Panels * kTileColumns]
  const A* start;  // rows start_stride apart
  std::int64_t start_stride;
  A* sum;  // [n][Panels * kTileColumns]
};

template <int Panels, typename A>
void multiply_segments(const SegmentProduct<A>& p) {
  constexpr int kLanes = kRegisterLanes<A>;
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
    Register<A> c[2 * Panels] = {};
    for (std::uint32_t j = begin[line]; j < begin[line + 1]; ++j) {
      const A value = values[j];
      const A* row = p.panel + std::int64_t{places[j]} * Panels * kTileColumns<A>;
#pragma GCC unroll 8
      for (int r = 0; r < 2 * Panels; ++r) c[r] += value * at(row + r * kLanes);
    }
    const A* start = p.start + m * p.start_stride;
    A* sum = p.sum + m * Panels * kTileColumns<A>;
#pragma GCC unroll 8
    for (int r = 0; r < 2 * Panels; ++r) {
      const Register<A> total = at(start + r * kLanes) + c[r];
      at(sum + r * kLanes) = total;
    }
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

}  // namespace gmoe::core::GMOE_ISA
