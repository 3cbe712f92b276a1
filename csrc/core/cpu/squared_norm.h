#pragma once

#include <cstdint>

#include "core/simd.h"

namespace gmoe::core::GMOE_ISA {

template <typename T, typename A = Accumulator<T>>
A squared_norm(const T* x, std::int64_t dim) {
  Vector<A> sum = {};
  std::int64_t d = 0;
  for (; d + kLanes<A> <= dim; d += kLanes<A>) {
    const Vector<A> value = load(x + d);
    sum += value * value;
  }
  A total = horizontal_sum<A>(sum);
  for (; d < dim; ++d) total += widen(x[d]) * widen(x[d]);
  return total;
}

}  // namespace gmoe::core::GMOE_ISA
