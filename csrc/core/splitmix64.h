// Counter-based random numbers (Steele, Lea, Flood 2014, with Stafford's mix 13): a word depends on its state alone, so
// that the same words come out for any number of threads, on the CPU and on a device.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace gmoe::core {

inline constexpr std::uint64_t kSplitmixIncrement = 0x9E3779B97F4A7C15u;

// Of one state or a vector of them. Static: every instruction set keeps its own.
template <typename Word>
GMOE_HOST_DEVICE static inline Word splitmix64(Word state) {
  Word z = state + kSplitmixIncrement;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

}  // namespace gmoe::core
