// The product of one input row with a weight matrix that is not packed: the path of experts with few rows, where
// reading the weights once is all there is to do. Floor: the time to read the weights.
#pragma once

#include <cstdint>
#include <utility>

#include "core/cpu/register_tile.h"

namespace gmoe::core::GMOE_ISA {

// Lanes of the result alternate in groups of `Step`: sums of neighbouring groups of a, then of b.
template <int Step, typename A, int... Lane>
[[gnu::always_inline]] inline Register<A> fold_pair(Register<A> a, Register<A> b, std::integer_sequence<int, Lane...>) {
  constexpr int kLanes = kRegisterLanes<A>;
  // Group g of the result comes from group g (even: of a; odd: of b, one back), added to that group's right neighbour.
  constexpr auto left = [](int lane) {
    const int group = lane / Step;
    return group % 2 == 0 ? lane : kLanes + lane - Step;
  };
#if defined(__clang__)
  return __builtin_shufflevector(a, b, left(Lane)...) + __builtin_shufflevector(a, b, (left(Lane) + Step)...);
#else
  typedef std::conditional_t<sizeof(A) == 4, std::int32_t, std::int64_t> Index
      __attribute__((vector_size(kRegisterBytes)));
  return __builtin_shuffle(a, b, Index{left(Lane)...}) + __builtin_shuffle(a, b, Index{left(Lane) + Step...});
#endif
}

// out[j] = sum of the lanes of sum[j], for as many sums as a register has lanes: log2(lanes) rounds of pairs.
template <int Step, typename A>
[[gnu::always_inline]] inline Register<A> sum_lanes(const Register<A>* sum) {
  constexpr auto lanes = std::make_integer_sequence<int, kRegisterLanes<A>>{};
  if constexpr (Step == 1) {
    return fold_pair<1, A>(sum[0], sum[1], lanes);
  } else {
    return fold_pair<Step, A>(sum_lanes<Step / 2, A>(sum), sum_lanes<Step / 2, A>(sum + Step), lanes);
  }
}

template <typename T, typename A>
A dot_row(const T* x, const A* y, std::int64_t n) {
  constexpr int kLanes = kRegisterLanes<A>;
  Register<A> sum[2] = {};
  std::int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    sum[0] += load_register(x + i) * at(y + i);
    sum[1] += load_register(x + i + kLanes) * at(y + i + kLanes);
  }
  sum[0] += sum[1];
  A total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += sum[0][lane];
  for (; i < n; ++i) total += widen(x[i]) * y[i];
  return total;
}

// value[c] = start[c] + weight[c] . row for columns [0, n); weight rows are `depth` long.
template <typename T, typename A>
void dot_columns(const T* weight, const A* row, std::int64_t depth, std::int64_t n, const A* start, A* value) {
  constexpr int kLanes = kRegisterLanes<A>;
  std::int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) {
    Register<A> sum[kLanes] = {};
    const T* w = weight + c * depth;
    std::int64_t d = 0;
    for (; d + kLanes <= depth; d += kLanes) {
      const Register<A> x = at(row + d);
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) sum[j] += x * load_register(w + j * depth + d);
    }
    Register<A> total = sum_lanes<kLanes / 2, A>(sum);
    for (; d < depth; ++d) {
      for (int j = 0; j < kLanes; ++j) total[j] += row[d] * widen(w[j * depth + d]);
    }
    at(value + c) = start != nullptr ? total + at(start + c) : total;
  }
  for (; c < n; ++c) {
    A total = start != nullptr ? start[c] : A{0};
    for (std::int64_t d = 0; d < depth; ++d) total += row[d] * widen(weight[c * depth + d]);
    value[c] = total;
  }
}

// value[c] = start[c] + sum_d row[d] weight[d][c] for columns [0, n); weight rows are `stride` apart.
template <typename T, typename A>
void add_weight_rows(const T* weight, std::int64_t stride, const A* row, std::int64_t depth, std::int64_t n,
                     const A* start, A* value) {
  for (std::int64_t c = 0; c < n; ++c) value[c] = start != nullptr ? start[c] : A{0};
  for (std::int64_t d = 0; d < depth; ++d) {
    const T* w = weight + d * stride;
    for (std::int64_t c = 0; c < n; ++c) value[c] += row[d] * widen(w[c]);
  }
}

}  // namespace gmoe::core::GMOE_ISA
