// Dropout, for one or several slots of a row. Element j of the result, counted through, is kept if level j is at least
// `dropped`. Levels are 16 bits: word w = splitmix64(splitmix64(seed) + w * kSplitmixIncrement) holds those of elements
// 4w to 4w + 3, the lowest bits first.
#pragma once

#include <cstdint>

#include "core/cuda/launch.h"
#include "core/isa.h"
#include "core/types.h"

namespace gmoe::core {

// All arrays are dense and row-major.
template <typename T>
struct DropoutMask {
  std::int64_t num_rows, width, slots;
  const std::int64_t* seed;  // [1]
  std::uint16_t dropped;     // of 2^16 levels
  Accumulator<T> scale;      // of what is kept
};

template <typename T>
struct Dropout {
  DropoutMask<T> mask;
  const T* x;  // [num_rows, width]
  T* y;        // [num_rows, slots, width] out
};

template <typename T>
struct DropoutGradX {
  DropoutMask<T> mask;
  const T* grad_y;  // [num_rows, slots, width]
  T* grad_x;        // [num_rows, width] out
};

GMOE_DECLARE_PER_ISA(template <typename T> void dropout(const Dropout<T>& a))
GMOE_DECLARE_PER_ISA(template <typename T> void dropout_grad_x(const DropoutGradX<T>& a))

template <typename T>
void dropout(const Dropout<T>& a) {
  GMOE_CALL_ACTIVE_ISA(dropout(a));
}
template <typename T>
void dropout_grad_x(const DropoutGradX<T>& a) {
  GMOE_CALL_ACTIVE_ISA(dropout_grad_x(a));
}

}  // namespace gmoe::core

// Arguments point to device memory. The same elements are dropped as on the CPU.
namespace gmoe::core::cuda {

template <typename T>
void dropout(const Dropout<T>& a, const Call& call);
template <typename T>
void dropout_grad_x(const DropoutGradX<T>& a, const Call& call);

}  // namespace gmoe::core::cuda
