// The moving average of the expert embeddings by loops over every slot, in double precision.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/memory_update.h"
#include "tests/inputs.h"

namespace gmoe::test {

// Slots whose index is no expert are left out.
template <typename T>
std::vector<double> naive_memory_update(const core::MemoryUpdate<T>& a) {
  const auto scale = [&](const T* row) {
    double sum = 0;
    for (std::int64_t d = 0; d < a.dim; ++d) sum += wide(row[d]) * wide(row[d]);
    return 1 / std::max(std::sqrt(sum), a.eps);
  };
  std::vector<double> want;
  for (std::int64_t e = 0; e < a.num_experts; ++e) {
    std::vector<double> mean = zeros(a.dim);
    double total = 0, largest = 0;
    for (std::int64_t s = 0; s < a.num_rows * a.k; ++s) {
      if (a.index[s] == e) largest = std::max(largest, wide(a.gate[s]));
    }
    for (std::int64_t s = 0; s < a.num_rows * a.k; ++s) {
      if (a.index[s] != e) continue;
      const T* row = a.x + s / a.k * a.dim;
      const double share = std::exp(wide(a.gate[s]) - largest);
      total += share;
      for (std::int64_t d = 0; d < a.dim; ++d) mean[d] += share * (a.normalize ? scale(row) : 1) * wide(row[d]);
    }
    const T* memory = a.memory + e * a.dim;
    for (std::int64_t d = 0; d < a.dim; ++d) {
      const double move = total == 0 ? 0 : (1 - a.rate) * mean[d] / total;
      want.push_back(a.rate * scale(memory) * wide(memory[d]) + move);
    }
  }
  return want;
}

}  // namespace gmoe::test
