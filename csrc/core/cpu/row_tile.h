// Rows of any width as tiles of up to kMaxVectors<A> vectors that stay in registers; only a row's last vector is
// partial.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/simd.h"

namespace gmoe::core::GMOE_ISA {

// Sums that stay in registers: half the registers of most instruction sets, enough to hide the latency of an addition.
// 16 on AVX-512 would double the compile time of every kernel over tiles.
#ifdef GMOE_FEW_INSTANCES
inline constexpr int kMostVectors = 3;
#else
inline constexpr int kMostVectors = 8;
#endif
// Of doubles, which are there to check gradients, few: wide tiles would be a fifth of the build.
template <typename A>
inline constexpr int kMaxVectors = sizeof(A) == 4 ? kMostVectors : 2;
#if defined(__AVX512F__)
inline constexpr bool kMaskedLoads = true;  // a masked load costs no more than a plain one
#else
inline constexpr bool kMaskedLoads = false;
#endif

inline constexpr std::int64_t kEdgesAhead = 12;  // a row from L3 takes about as long as this many edges of 128 columns

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
  void read_all(const T* row, Vector<A> (&value)[V]) const {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) value[v] = read(row, v);
  }
  template <typename T>
  void prefetch(const T* row) const {
    // A constant number of prefetches, unlike a loop over the actual columns.
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
  std::int64_t vectors = divide_up(dim - begin, kLanes<A>);
  for (std::int64_t tiles = divide_up(vectors, kMaxVectors<A>); tiles > 0; --tiles) {
    const std::int64_t width = divide_up(vectors, tiles);
    const std::int64_t end = begin + width * kLanes<A>;
    const std::int64_t last = end <= dim ? kLanes<A> : dim - (end - kLanes<A>);
    call_tile<A>(begin, last, static_cast<int>(width), f, std::make_integer_sequence<int, kMaxVectors<A>>{});
    begin = end;
    vectors -= width;
  }
}
template <typename A, typename F>
void for_each_tile(std::int64_t dim, const F& f) {
  for_each_tile<A>(0, dim, f);
}

// ---- tiles of bfloat16 rows that take their columns in pairs
//
// A lane holds two columns: a shift widens the one, a mask the other. Widening them one by one would cost a shuffle
// each, on the only unit that shuffles. So the vectors of such a tile hold even and odd columns in turn, and rounding
// back is a shift and a mask too.

inline constexpr std::int64_t kPairedColumns = 2 * kLanes<float>;
inline constexpr std::uint32_t kOdd = 0xffff0000u;  // the half of a lane that holds the odd column

// Columns [begin, begin + P * kPairedColumns).
template <int P>
struct PairTile {
  static constexpr int kVectors = 2 * P;
  std::int64_t begin;

  FloatVector read(const bfloat16* row, int v) const {
    WordVector both;
    std::memcpy(&both, row + begin + v / 2 * kPairedColumns, sizeof both);
    return std::bit_cast<FloatVector>(v % 2 == 0 ? both << 16 : both & kOdd);
  }
  void prefetch(const bfloat16* row) const { prefetch_row(row + begin, P * kPairedColumns); }
  void write_all(bfloat16* row, const FloatVector (&value)[kVectors]) const {
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      const WordVector both = (round_to_bfloat16(value[2 * p]) >> 16) | (round_to_bfloat16(value[2 * p + 1]) & kOdd);
      std::memcpy(row + begin + p * kPairedColumns, &both, sizeof both);
    }
  }
  void write_all(float* row, const FloatVector (&value)[kVectors]) const {
    for (int v = 0; v < kVectors; ++v) {
      float* to = row + begin + v / 2 * kPairedColumns + v % 2;
      for (int lane = 0; lane < kLanes<float>; ++lane) to[2 * lane] = value[v][lane];
    }
  }
};

template <typename F, int... P>
void call_pair_tile(std::int64_t begin, std::int64_t pairs, const F& f, std::integer_sequence<int, P...>) {
  ((pairs == P + 1 ? f(PairTile<P + 1>{begin}) : void()), ...);
}

// f(tile) for tiles that cover [0, dim) of rows of T: pairs of columns as far as they go where T is bfloat16.
template <typename T, typename F>
void for_each_tile_of(std::int64_t dim, const F& f) {
  std::int64_t begin = 0;
  if constexpr (std::is_same_v<T, bfloat16>) {
    constexpr int kMaxPairs = kMaxVectors<float> / 2;
    for (std::int64_t pairs = dim / kPairedColumns; pairs > 0; pairs -= kMaxPairs) {
      const std::int64_t taken = pairs < kMaxPairs ? pairs : kMaxPairs;
      call_pair_tile(begin, taken, f, std::make_integer_sequence<int, kMaxPairs>{});
      begin += taken * kPairedColumns;
    }
  }
  for_each_tile<Accumulator<T>>(begin, dim, f);
}

}  // namespace gmoe::core::GMOE_ISA
