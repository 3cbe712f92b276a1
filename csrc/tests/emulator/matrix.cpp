// This file is compiled without ThreadSanitizer: the variables of other lanes are registers on the device.
#include "tests/emulator/matrix.h"

#include <bit>
#include <cmath>

#include "core/types.h"

namespace gmoe::emulator {
namespace {

constexpr int kWarp = 32;

// Element `half` (0 or 1) of a register that holds two.
float element(unsigned pair, int half) {
  return core::to_float(core::bfloat16{static_cast<std::uint16_t>(half == 0 ? pair & 0xffffu : pair >> 16)});
}

template <int Depth>
void add_products(const float (&a)[16][Depth], const float (&b)[Depth][8], void* const (&lane)[kWarp]) {
  for (int l = 0; l < kWarp; ++l) {
    auto& own = *static_cast<MatrixFragments*>(lane[l]);
    for (int i = 0; i < 4; ++i) {
      const int row = l / 4 + i / 2 * 8, column = l % 4 * 2 + i % 2;
      for (int k = 0; k < Depth; ++k) own.c[i] += a[row][k] * b[k][column];
    }
  }
}

void multiply(void* const (&lane)[kWarp]) {
  float a[16][16], b[16][8];
  for (int l = 0; l < kWarp; ++l) {
    const auto& own = *static_cast<const MatrixFragments*>(lane[l]);
    const int group = l / 4, pair = l % 4 * 2;
    for (int half = 0; half < 2; ++half) {
      for (int r = 0; r < 4; ++r) a[group + r % 2 * 8][pair + half + r / 2 * 8] = element(own.a[r], half);
      for (int r = 0; r < 2; ++r) b[pair + half + r * 8][group] = element(own.b[r], half);
    }
  }
  add_products(a, b, lane);
}

// All but what the instruction ignores of its factors.
constexpr unsigned kTf32Bits = ~0x1fffu;

void multiply_tf32(void* const (&lane)[kWarp]) {
  float a[16][8], b[8][8];
  for (int l = 0; l < kWarp; ++l) {
    const auto& own = *static_cast<const MatrixFragments*>(lane[l]);
    const int group = l / 4, in_group = l % 4;
    for (int r = 0; r < 4; ++r) a[group + r % 2 * 8][in_group + r / 2 * 4] = std::bit_cast<float>(own.a[r] & kTf32Bits);
    for (int r = 0; r < 2; ++r) b[in_group + r * 4][group] = std::bit_cast<float>(own.b[r] & kTf32Bits);
  }
  add_products(a, b, lane);
}

void transpose(void* const (&lane)[kWarp]) {
  const auto row = [&](int matrix, int r) { return static_cast<const MatrixRow*>(lane[matrix * 8 + r])->row; };
  for (int l = 0; l < kWarp; ++l) {
    const int column = l / 4, pair = l % 4 * 2;
    for (int m = 0; m < 4; ++m) {
      static_cast<MatrixRow*>(lane[l])->fragment[m] = row(m, pair)[column] | unsigned{row(m, pair + 1)[column]} << 16;
    }
  }
}

}  // namespace

void transpose_8x8(MatrixRow& own, const Place& place) { together(transpose, &own, place); }
void multiply_m16n8k16(MatrixFragments& own, const Place& place) { together(multiply, &own, place); }
void multiply_m16n8k8(MatrixFragments& own, const Place& place) { together(multiply_tf32, &own, place); }

unsigned rounded_to_tf32(float value) {
  constexpr unsigned kNan = 0x7fffffffu, kHalf = 0x1000u;
  return std::isnan(value) ? kNan : (std::bit_cast<unsigned>(value) + kHalf) & kTf32Bits;
}

}  // namespace gmoe::emulator
