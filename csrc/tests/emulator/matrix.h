// Instructions by which a warp multiplies matrices, as the PTX manual lays out their fragments.
#pragma once

#include "tests/emulator/executor.h"

namespace gmoe::emulator {

// Of a lane: c += a b with a [16, 16] and b [16, 8] in bfloat16, or [16, 8] and [8, 8] in floats whose fraction has 10
// bits; c [16, 8] in float.
struct MatrixFragments {
  unsigned a[4], b[2];
  float c[4];
};
void multiply_m16n8k16(MatrixFragments& own, const Place& place);
void multiply_m16n8k8(MatrixFragments& own, const Place& place);
unsigned rounded_to_tf32(float value);

// Of a lane: row lane % 8 of the 8 x 8 matrix lane / 8, and its fragments of the four matrices transposed.
struct MatrixRow {
  std::uint16_t row[8];
  unsigned fragment[4];
};
void transpose_8x8(MatrixRow& own, const Place& place);

}  // namespace gmoe::emulator
