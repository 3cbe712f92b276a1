// Tiles of bfloat16 rows that take their columns in pairs. A lane holds two of them: a shift widens the one, a mask the
// other, where widening them one by one costs a shuffle each, on the only unit that shuffles. So a tile's vectors hold
// even and odd columns in turn, and rounding back is a shift and a mask too.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/cpu/tile.h"
#include "core/simd.h"

namespace gmoe::core::GMOE_ISA {

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
    constexpr int kMaxPairs = kMaxVectors / 2;
    for (std::int64_t pairs = dim / kPairedColumns; pairs > 0; pairs -= kMaxPairs) {
      const std::int64_t taken = pairs < kMaxPairs ? pairs : kMaxPairs;
      call_pair_tile(begin, taken, f, std::make_integer_sequence<int, kMaxPairs>{});
      begin += taken * kPairedColumns;
    }
  }
  for_each_tile<Accumulator<T>>(begin, dim, f);
}

}  // namespace gmoe::core::GMOE_ISA
