// 64-byte vectors through the compiler's vector extension: one register on AVX-512, two on AVX2, four on SSE and NEON.
// Everything sits in the instruction set's namespace, so that no inline function compiled for a newer processor can be
// picked by the linker for an older one. Include only from files under core/cpu.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "core/types.h"

#ifndef GMOE_ISA
#error "compile with -DGMOE_ISA=baseline|avx2|avx512"
#endif

namespace gmoe::core::GMOE_ISA {

typedef float FloatVector __attribute__((vector_size(64)));
typedef double DoubleVector __attribute__((vector_size(64)));

template <typename A>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = FloatVector;
};
template <>
struct VectorOf<double> {
  using type = DoubleVector;
};
// A is the accumulator type: float or double.
template <typename A>
using Vector = typename VectorOf<A>::type;
template <typename A>
inline constexpr std::int64_t kLanes = 64 / sizeof(A);

inline FloatVector load(const float* p) {
  FloatVector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline DoubleVector load(const double* p) {
  DoubleVector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline FloatVector load(const bfloat16* p) {
  typedef std::uint16_t Half __attribute__((vector_size(32)));
  typedef std::uint32_t Word __attribute__((vector_size(64)));
  Half half;
  std::memcpy(&half, p, sizeof half);
  const Word word = __builtin_convertvector(half, Word) << 16;
  return std::bit_cast<FloatVector>(word);
}

inline void store(float* p, FloatVector v) { std::memcpy(p, &v, sizeof v); }
inline void store(double* p, DoubleVector v) { std::memcpy(p, &v, sizeof v); }
inline void store(bfloat16* p, FloatVector v) {
  for (int lane = 0; lane < 16; ++lane) p[lane] = to_bfloat16(v[lane]);
}

// A fixed tree: halves are added, so the order does not depend on the instruction set.
template <typename A>
inline A horizontal_sum(Vector<A> v) {
  A lane[kLanes<A>];
  std::memcpy(lane, &v, sizeof v);
  for (std::int64_t width = kLanes<A> / 2; width > 0; width /= 2) {
    for (std::int64_t i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

}  // namespace gmoe::core::GMOE_ISA
