// The k best of a short list, for routers: descending, NaN first, ties to the lower position.
#pragma once

#include <cmath>
#include <cstdint>

#ifndef GMOE_ISA
#error "compile with -DGMOE_ISA=baseline|avx2|avx512"
#endif

namespace gmoe::core::GMOE_ISA {

// NaN ranks above every number, as in torch.sort.
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

}  // namespace gmoe::core::GMOE_ISA
