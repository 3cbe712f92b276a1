// Element types of the kernels. Torch-free: bfloat16 is two bytes with explicit conversions.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

namespace gmoe::core {

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
