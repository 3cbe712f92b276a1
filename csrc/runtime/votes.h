// Soft voting: the logarithm of the mean of the members' probabilities, without an underflow.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace gmoe::runtime {

// sum[c] becomes the logarithm of the sum of the members' probabilities of class c so far, given a member's logits. A
// NaN stays one.
inline void add_vote(const float* logits, std::int64_t classes, bool first, float* sum) {
  const float top = *std::max_element(logits, logits + classes);
  float total = 0;
  for (std::int64_t c = 0; c < classes; ++c) total += std::exp(logits[c] - top);
  const float size = top + std::log(total);
  for (std::int64_t c = 0; c < classes; ++c) {
    const float vote = logits[c] - size;
    if (first) {
      sum[c] = vote;
      continue;
    }
    const float more = vote > sum[c] ? vote : sum[c], less = vote > sum[c] ? sum[c] : vote;
    sum[c] = more + std::log1p(std::exp(less - more));
  }
}

inline void end_votes(std::int64_t members, std::int64_t classes, float* sum) {
  const float all = std::log(static_cast<float>(members));
  for (std::int64_t c = 0; c < classes; ++c) sum[c] -= all;
}

}  // namespace gmoe::runtime
