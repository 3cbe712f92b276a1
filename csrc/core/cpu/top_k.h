// The k best of a short list, for routers: descending, NaN first as in torch.sort, ties to the lower expert. For one
// row, and with rows as lanes, where no step depends on the choices. Include only from files under core/cpu.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/simd.h"
#include "core/types.h"

namespace gmoe::core::GMOE_ISA {

template <typename A>
inline bool ranks_above(A a, A b) {
  return a > b || (std::isnan(a) && !std::isnan(b));
}

// The k best by insertion: a later equal value never passes an earlier one, so ties go to the lower expert.
template <typename A>
void select_top(const A* value, std::int64_t n, std::int64_t k, A* top, std::int64_t* index) {
  std::int64_t count = 0;
  for (std::int64_t e = 0; e < n; ++e) {
    if (count == k && !ranks_above(value[e], top[k - 1])) continue;
    std::int64_t slot = count < k ? count++ : k - 1;
    for (; slot > 0 && ranks_above(value[e], top[slot - 1]); --slot) {
      top[slot] = top[slot - 1];
      index[slot] = index[slot - 1];
    }
    top[slot] = value[e];
    index[slot] = e;
  }
}

// ---- rows as lanes

// Where a ranks above b: NaN above every number, as in torch.sort.
template <typename A>
[[gnu::always_inline]] inline Lanes<A> ranks_above(const Vector<A>& a, const Vector<A>& b) {
  return ~(a <= b) & (b == b);
}

// Inserts an expert's values into lists of `held` choices in descending order. A later equal value never passes an
// earlier one, so ties go to the lower expert; everything below the inserted value moves down. The last of k choices
// drops out.
template <typename A>
[[gnu::always_inline]] inline void insert(Vector<A> value, std::int64_t of, std::int64_t held, std::int64_t k,
                                          Vector<A>* top, Lanes<A>* index) {
  const Vector<A> offered = value;
  Lanes<A> expert = Lanes<A>{} + static_cast<Lane<A>>(of);
#pragma GCC unroll 4
  for (std::int64_t r = 0; r < held; ++r) {
    const Vector<A> other = top[r];
    const Lanes<A> holder = index[r], above = ranks_above<A>(offered, other);
    top[r] = above ? value : other;
    index[r] = above ? expert : holder;
    value = above ? other : value;
    expert = above ? holder : expert;
  }
  if (held < k) top[held] = value, index[held] = expert;
}

// The k best of values[num_experts] in each lane.
template <typename A>
[[gnu::always_inline]] inline void select_top(const Vector<A>* values, std::int64_t num_experts, std::int64_t k,
                                              Vector<A>* top, Lanes<A>* index) {
#pragma GCC unroll 4
  for (std::int64_t e = 0; e < k; ++e) insert<A>(values[e], e, e, k, top, index);
  for (std::int64_t e = k; e < num_experts; ++e) insert<A>(values[e], e, k, k, top, index);
}

// Gates and experts of the first `count` lanes into rows of k.
template <typename T, typename A = Accumulator<T>>
inline void write_choices(const Vector<A>* gate, const Lanes<A>* index, std::int64_t k, std::int64_t count, T* gates,
                          std::int64_t* experts) {
  for (std::int64_t i = 0; i < count; ++i) {
    for (std::int64_t r = 0; r < k; ++r) {
      gates[i * k + r] = narrow<T>(gate[r][i]);
      experts[i * k + r] = index[r][i];
    }
  }
}

}  // namespace gmoe::core::GMOE_ISA
