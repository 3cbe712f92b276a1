// Element types of the kernels, and the integer arithmetic they share. Torch-free: bfloat16 is two bytes with explicit
// conversions.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#if defined(__CUDACC__)
#define GMOE_HOST_DEVICE __host__ __device__
#else
#define GMOE_HOST_DEVICE
#endif

// The types that kernels over a graph are compiled for: rows of three element types, column indices of two widths. With
// GMOE_FEW_INSTANCES, those pairs that the C++ tests run.
#ifdef GMOE_FEW_INSTANCES
#define GMOE_FOR_ROWS(F)  \
  F(float, std::int32_t)  \
  F(float, std::int64_t)  \
  F(double, std::int64_t) \
  F(bfloat16, std::int32_t)
#else
#define GMOE_FOR_ROWS(F)    \
  F(float, std::int32_t)    \
  F(float, std::int64_t)    \
  F(double, std::int32_t)   \
  F(double, std::int64_t)   \
  F(bfloat16, std::int32_t) \
  F(bfloat16, std::int64_t)
#endif

namespace gmoe::core {

GMOE_HOST_DEVICE constexpr std::int64_t divide_up(std::int64_t n, std::int64_t d) { return (n + d - 1) / d; }
GMOE_HOST_DEVICE constexpr std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return divide_up(n, multiple) * multiple;
}

struct bfloat16 {
  std::uint16_t bits;
};
static_assert(sizeof(bfloat16) == 2);

inline float to_float(bfloat16 v) { return std::bit_cast<float>(static_cast<std::uint32_t>(v.bits) << 16); }

// Round to nearest, ties to even; every NaN stays a NaN.
inline bfloat16 to_bfloat16(float v) {
  const auto bits = std::bit_cast<std::uint32_t>(v);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// The type a kernel accumulates in: float for bfloat16 and float, double for double.
template <typename T>
struct AccumulatorOf {
  using type = T;
};
template <>
struct AccumulatorOf<bfloat16> {
  using type = float;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;

inline float widen(bfloat16 v) { return to_float(v); }
inline float widen(std::int8_t v) { return v; }
inline float widen(float v) { return v; }
inline double widen(double v) { return v; }

template <typename T>
inline T narrow(Accumulator<T> v) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    return to_bfloat16(v);
  } else {
    return v;
  }
}

}  // namespace gmoe::core
