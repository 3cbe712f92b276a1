// Vectors of one register (64 bytes on AVX-512, 32 on AVX2, 16 on SSE and NEON) through the compiler's vector
// extension. Wider ones would live in memory: GCC does not split them over registers. Everything sits in the
// instruction set's namespace, so that no inline function compiled for a newer processor can be picked by the linker
// for an older one. Include only from files under core/cpu.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "core/types.h"

#ifndef GMOE_ISA
#error "compile with -DGMOE_ISA=baseline|avx2|avx512"
#endif

#if defined(__AVX512F__)
#define GMOE_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define GMOE_VECTOR_BYTES 32
#else
#define GMOE_VECTOR_BYTES 16
#endif
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace gmoe::core::GMOE_ISA {

typedef float FloatVector __attribute__((vector_size(GMOE_VECTOR_BYTES)));
typedef double DoubleVector __attribute__((vector_size(GMOE_VECTOR_BYTES)));

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
inline constexpr std::int64_t kLanes = GMOE_VECTOR_BYTES / sizeof(A);

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
typedef std::uint32_t WordVector __attribute__((vector_size(GMOE_VECTOR_BYTES)));
// The intrinsics are one instruction; GCC's generic conversion takes five. Their zeroing forms avoid false warnings.
inline FloatVector load(const bfloat16* p) {
#if defined(__AVX512F__)
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const WordVector word = std::bit_cast<WordVector>(_mm512_maskz_cvtepu16_epi32(0xffff, half));
#elif defined(__AVX2__)
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const WordVector word = std::bit_cast<WordVector>(_mm256_cvtepu16_epi32(half));
#else
  typedef std::uint16_t HalfVector __attribute__((vector_size(GMOE_VECTOR_BYTES / 2)));
  HalfVector half;
  std::memcpy(&half, p, sizeof half);
  const WordVector word = __builtin_convertvector(half, WordVector);
#endif
  return std::bit_cast<FloatVector>(word << 16);
}

inline FloatVector load(const std::int8_t* p) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, bytes));
#elif defined(__AVX2__)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
#else
  typedef std::int8_t ByteVector __attribute__((vector_size(GMOE_VECTOR_BYTES / 4)));
  ByteVector bytes;
  std::memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(bytes, FloatVector);
#endif
}

inline void store(float* p, FloatVector v) { std::memcpy(p, &v, sizeof v); }
inline void store(double* p, DoubleVector v) { std::memcpy(p, &v, sizeof v); }
// to_bfloat16 on all lanes, in the upper half of each: round to nearest even, NaN stays NaN.
inline WordVector round_to_bfloat16(FloatVector v) {
  const WordVector bits = std::bit_cast<WordVector>(v);
  const WordVector rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return v != v ? bits | 0x400000u : rounded;
}
inline void store(bfloat16* p, FloatVector v) {
  const WordVector word = round_to_bfloat16(v) >> 16;
#if defined(__AVX512F__)
  const __m256i half = _mm512_maskz_cvtepi32_epi16(0xffff, std::bit_cast<__m512i>(word));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half);
#else
  typedef std::uint16_t HalfVector __attribute__((vector_size(GMOE_VECTOR_BYTES / 2)));
  const HalfVector half = __builtin_convertvector(word, HalfVector);
  std::memcpy(p, &half, sizeof half);
#endif
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
