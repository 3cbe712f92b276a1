// Rows of any width as tiles of up to kMaxVectors vectors that stay in registers; only a row's last vector is partial.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "core/simd.h"

namespace gmoe::core::GMOE_ISA {

// Sums that stay in registers: half of what most sets have, enough to hide the latency of the addition. 16 on AVX-512
// would double the compile time of every kernel over tiles.
inline constexpr int kMaxVectors = 8;
#if defined(__AVX512F__)
inline constexpr bool kMaskedLoads = true;  // a masked load costs no more than a plain one
#else
inline constexpr bool kMaskedLoads = false;
#endif

// The first n lanes from p, zeros behind; nothing past p[n - 1] is touched.
template <typename T>
inline Vector<Accumulator<T>> load_first(const T* p, std::int64_t n) {
  T lane[kLanes<Accumulator<T>>] = {};
  std::memcpy(lane, p, static_cast<std::size_t>(n) * sizeof(T));
  return load(lane);
}
template <typename T>
inline void store_first(T* p, Vector<Accumulator<T>> v, std::int64_t n) {
  T lane[kLanes<Accumulator<T>>];
  store(lane, v);
  std::memcpy(p, lane, static_cast<std::size_t>(n) * sizeof(T));
}

#if defined(__AVX512F__)
template <>
inline FloatVector load_first<float>(const float* p, std::int64_t n) {
  return std::bit_cast<FloatVector>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p));
}
template <>
inline DoubleVector load_first<double>(const double* p, std::int64_t n) {
  return std::bit_cast<DoubleVector>(_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p));
}
template <>
inline FloatVector load_first<bfloat16>(const bfloat16* p, std::int64_t n) {
  const __m256i half = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p);
  const auto word = std::bit_cast<WordVector>(_mm512_maskz_cvtepu16_epi32(0xffff, half));
  return std::bit_cast<FloatVector>(word << 16);
}
template <>
inline void store_first<float>(float* p, FloatVector v, std::int64_t n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), std::bit_cast<__m512>(v));
}
template <>
inline void store_first<double>(double* p, DoubleVector v, std::int64_t n) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), std::bit_cast<__m512d>(v));
}
#endif

inline constexpr std::int64_t kEdgesAhead = 12;  // a row from L3 takes about this many edges' work at 128 columns

template <typename T>
inline void prefetch_row(const T* row, std::int64_t count) {
  constexpr std::int64_t kLineBytes = 64;
  const char* byte = reinterpret_cast<const char*>(row);
  for (std::int64_t b = 0; b < count * static_cast<std::int64_t>(sizeof(T)); b += kLineBytes) {
    __builtin_prefetch(byte + b);
  }
}

// The sum over d of a_d b_d, the partial last vector included.
template <typename T, typename A = Accumulator<T>>
inline A dot(const T* a, const T* b, std::int64_t dim) {
  Vector<A> sum = {};
  std::int64_t d = 0;
  for (; d + kLanes<A> <= dim; d += kLanes<A>) sum += load(a + d) * load(b + d);
  if (d < dim) sum += load_first(a + d, dim - d) * load_first(b + d, dim - d);
  return horizontal_sum<A>(sum);
}

// V vectors of a row from column `begin`; the last holds `last` lanes, which is kLanes unless it ends the row.
template <typename A, int V>
struct Tile {
  static constexpr int kVectors = V;
  std::int64_t begin;
  std::int64_t last;

  template <typename T>
  Vector<A> read(const T* row, int v) const {
    const T* p = row + begin + v * kLanes<A>;
    return v == V - 1 && (kMaskedLoads || last < kLanes<A>) ? load_first(p, last) : load(p);
  }
  template <typename T>
  void prefetch(const T* row) const {
    // By a constant count, which a loop over the columns there are would not have.
    constexpr int kVectorsPerLine = std::max<int>(1, 64 / static_cast<int>(kLanes<A> * sizeof(T)));
#pragma GCC unroll 16
    for (int v = 0; v < V; v += kVectorsPerLine) __builtin_prefetch(row + begin + v * kLanes<A>);
  }
  template <typename T>
  void write(T* row, int v, Vector<A> value) const {
    T* p = row + begin + v * kLanes<A>;
    if (v == V - 1 && last < kLanes<A>) {
      store_first(p, value, last);
    } else {
      store(p, value);
    }
  }
  template <typename T>
  void write_all(T* row, const Vector<A> (&value)[V]) const {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) write(row, v, value[v]);
  }
};

template <typename A, typename F, int... V>
void call_tile(std::int64_t begin, std::int64_t last, int vectors, const F& f, std::integer_sequence<int, V...>) {
  ((vectors == V + 1 ? f(Tile<A, V + 1>{begin, last}) : void()), ...);
}

// f(tile) for tiles that cover [begin, dim), as equal in width as whole vectors allow.
template <typename A, typename F>
void for_each_tile(std::int64_t begin, std::int64_t dim, const F& f) {
  std::int64_t vectors = (dim - begin + kLanes<A> - 1) / kLanes<A>;
  for (std::int64_t tiles = (vectors + kMaxVectors - 1) / kMaxVectors; tiles > 0; --tiles) {
    const std::int64_t width = (vectors + tiles - 1) / tiles;
    const std::int64_t end = begin + width * kLanes<A>;
    const std::int64_t last = end <= dim ? kLanes<A> : dim - (end - kLanes<A>);
    call_tile<A>(begin, last, static_cast<int>(width), f, std::make_integer_sequence<int, kMaxVectors>{});
    begin = end;
    vectors -= width;
  }
}
template <typename A, typename F>
void for_each_tile(std::int64_t dim, const F& f) {
  for_each_tile<A>(0, dim, f);
}

}  // namespace gmoe::core::GMOE_ISA
