// Floats that matrix instructions multiply with 10 bits of their fraction; sums are floats.
#pragma once

#include <cstring>

#include "core/cuda/primitives.cuh"

namespace gmoe::core {

// In memory a float; a type of its own, so that kernels are chosen by it.
struct tfloat32 {
  float value;
};
template <>
struct AccumulatorOf<tfloat32> {
  using type = float;
};

namespace cuda {

// What arguments and results of a product of T are.
template <typename T>
struct ElementOf {
  using type = T;
};
template <>
struct ElementOf<tfloat32> {
  using type = float;
};
template <typename T>
using Element = typename ElementOf<T>::type;

// As the instructions want it.
template <typename T>
__device__ __forceinline__ T factor(Element<T> value) {
  if constexpr (std::is_same_v<T, tfloat32>) {
    const unsigned bits = rounded_to_tf32(value);
    T rounded;
    std::memcpy(&rounded, &bits, sizeof bits);
    return rounded;
  } else {
    return value;
  }
}

// multiply_m16n8k16 or multiply_m16n8k8: 4 bytes of a row of depths a lane and register.
template <typename T>
__device__ __forceinline__ void multiply_words(float& c0, float& c1, float& c2, float& c3, unsigned a0, unsigned a1,
                                               unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  if constexpr (std::is_same_v<T, tfloat32>) {
    multiply_m16n8k8(c0, c1, c2, c3, a0, a1, a2, a3, b0, b1);
  } else {
    multiply_m16n8k16(c0, c1, c2, c3, a0, a1, a2, a3, b0, b1);
  }
}

template <typename T>
struct Operand {
  using type = T;
};
// f(Operand<T>{}) with the type that products of Element are made in.
template <typename Element, typename F>
auto dispatch_operand(bool tf32, const F& f) {
  if constexpr (std::is_same_v<Element, float>) {
    if (tf32) return f(Operand<tfloat32>{});
  }
  return f(Operand<Element>{});
}

}  // namespace cuda
}  // namespace gmoe::core
