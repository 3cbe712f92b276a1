// The standard normal distribution on vectors: its density and the probability below a value. Include only from files
// under core/cpu.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <numbers>

#include "core/simd.h"

namespace gmoe::core::GMOE_ISA {

// exp(x) for x <= 0 within 1e-7 of its value, 0 below -87; NaN stays NaN.
inline FloatVector exp_of_negative(FloatVector x) {
  constexpr float kShift = 0x1.8p23f;                            // adding it leaves an integer in the low bits
  constexpr float kHigh = 0x1.62e4p-1f, kLow = 0x1.7f7d1cp-20f;  // of ln 2
  const FloatVector held = x < -87.0f ? FloatVector{} - 87.0f : x;
  const FloatVector shifted = held * std::numbers::log2e_v<float> + kShift;
  const FloatVector n = shifted - kShift;
  const FloatVector r = held - n * kHigh - n * kLow;
  FloatVector sum = r * (1.0f / 720) + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  const WordVector power = (std::bit_cast<WordVector>(shifted) + 127u) << 23;
  return x < -87.0f ? FloatVector{} : sum * std::bit_cast<FloatVector>(power);
}

template <typename A>
struct Normal {
  Vector<A> density, below;
};

// Abramowitz and Stegun, 26.2.17: within 7.5e-8.
inline Normal<float> standard_normal(FloatVector z) {
  const FloatVector size = z < 0.0f ? -z : z;
  const FloatVector density =
      exp_of_negative(z * z * -0.5f) * static_cast<float>(std::numbers::inv_sqrtpi / std::numbers::sqrt2);
  const FloatVector t = 1.0f / (1.0f + 0.2316419f * size);
  FloatVector sum = t * 1.330274429f - 1.821255978f;
  sum = sum * t + 1.781477937f;
  sum = sum * t - 0.356563782f;
  sum = sum * t + 0.319381530f;
  const FloatVector tail = density * sum * t;
  return {density, z < 0.0f ? tail : 1.0f - tail};
}

// float64 is for tests: exact, a lane at a time.
inline Normal<double> standard_normal(DoubleVector z) {
  Normal<double> normal{};
  for (std::int64_t i = 0; i < kLanes<double>; ++i) {
    normal.density[i] = std::exp(-0.5 * z[i] * z[i]) * std::numbers::inv_sqrtpi / std::numbers::sqrt2;
    normal.below[i] = 0.5 * std::erfc(-z[i] / std::numbers::sqrt2);
  }
  return normal;
}

}  // namespace gmoe::core::GMOE_ISA
