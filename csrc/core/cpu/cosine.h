// The pieces of cosine routing that the operator and the serving path share. Include only from files under core/cpu.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/cpu/register_tile.h"
#include "core/cpu/squared_norm.h"
#include "core/simd.h"

namespace gmoe::core::GMOE_ISA {

// Rows divided by their norms, or by eps where that is larger. They start at a cache line: read for every row routed, a
// register that lies across two lines would cost two loads.
template <typename T, typename A = Accumulator<T>>
Workspace<A> unit_rows(const T* rows, std::int64_t n, std::int64_t dim, A eps) {
  Workspace<A> memory(n * dim);
  A* unit = memory.data();
  for (std::int64_t i = 0; i < n; ++i) {
    const A scale = A{1} / std::fmax(std::sqrt(squared_norm(rows + i * dim, dim)), eps);
    for (std::int64_t d = 0; d < dim; ++d) unit[i * dim + d] = widen(rows[i * dim + d]) * scale;
  }
  return memory;
}

constexpr int kExpertsPerPass = 4;  // independent sums that hide the latency of the multiply-add

// out[b] = x . rows[b] for B rows of `dim` accumulator values.
template <int B, typename T, typename A>
void dot(const T* x, const A* const* rows, std::int64_t dim, A* out) {
  Vector<A> sum[B] = {};
  std::int64_t d = 0;
  for (; d + kLanes<A> <= dim; d += kLanes<A>) {
    const Vector<A> value = load(x + d);
    for (int b = 0; b < B; ++b) sum[b] += value * load(rows[b] + d);
  }
  for (int b = 0; b < B; ++b) out[b] = horizontal_sum<A>(sum[b]);
  for (; d < dim; ++d) {
    for (int b = 0; b < B; ++b) out[b] += widen(x[d]) * rows[b][d];
  }
}

template <typename T, typename A>
void cosines(const T* x, const A* unit, std::int64_t num_experts, std::int64_t dim, A scale, A* out) {
  std::int64_t e = 0;
  for (; e + kExpertsPerPass <= num_experts; e += kExpertsPerPass) {
    const A* rows[kExpertsPerPass];
    for (int b = 0; b < kExpertsPerPass; ++b) rows[b] = unit + (e + b) * dim;
    dot<kExpertsPerPass>(x, rows, dim, out + e);
  }
  for (; e < num_experts; ++e) {
    const A* row = unit + e * dim;
    dot<1>(x, &row, dim, out + e);
  }
  for (std::int64_t i = 0; i < num_experts; ++i) out[i] *= scale;
}

// In place; cosines are bounded, so exp cannot overflow.
template <typename A>
void softmax_bounded(A* value, std::int64_t k) {
  A sum = 0;
  for (std::int64_t r = 0; r < k; ++r) sum += value[r] = std::exp(value[r]);
  for (std::int64_t r = 0; r < k; ++r) value[r] /= sum;
}

}  // namespace gmoe::core::GMOE_ISA
