// x is read once: while a row is in the first-level cache its norm is taken and it is added, times exp(gate), to the
// numerators of its experts. The largest gate of each expert is found first, in a pass over [num_rows, k] that costs a
// few percent, so any finite gate is safe. Chunks of rows have sums of their own, which are added in order at the end:
// the result does not depend on the number of threads. Floor: the time to read x.
#include "core/cpu/memory_update.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/cpu/squared_norm.h"
#include "core/parallel.h"

namespace gmoe::core::GMOE_ISA {
namespace {

constexpr std::int64_t kRowsPerChunk = 1024;
constexpr std::int64_t kMaxSums = 1 << 22;  // 16 MiB of partial numerators

// Fixed by the sizes alone.
std::int64_t rows_per_chunk(std::int64_t num_rows, std::int64_t sums_per_chunk) {
  const std::int64_t most_chunks = std::max<std::int64_t>(1, kMaxSums / std::max<std::int64_t>(1, sums_per_chunk));
  return std::max(kRowsPerChunk, (num_rows + most_chunks - 1) / most_chunks);
}

template <typename T, typename A = Accumulator<T>>
std::vector<A> largest_gate(const MemoryUpdate<T>& a) {
  std::vector<A> largest(static_cast<std::size_t>(a.num_experts), -std::numeric_limits<A>::infinity());
  for (std::int64_t s = 0; s < a.num_rows * a.k; ++s) {
    largest[a.index[s]] = std::max(largest[a.index[s]], A{widen(a.gate[s])});
  }
  return largest;
}

template <typename T, typename A = Accumulator<T>>
void add_rows(const MemoryUpdate<T>& a, std::int64_t begin, std::int64_t end, const A* largest, A* numerator,
              A* denominator) {
  const A eps = static_cast<A>(a.eps);
  for (std::int64_t i = begin; i < end; ++i) {
    const T* x = a.x + i * a.dim;
    const A norm = a.normalize ? std::sqrt(squared_norm(x, a.dim)) : A{1};
    const A scale = a.normalize ? A{1} / (norm < eps ? eps : norm) : A{1};
    for (std::int64_t r = 0; r < a.k; ++r) {
      const std::int64_t e = a.index[i * a.k + r];
      const A share = std::exp(A{widen(a.gate[i * a.k + r])} - largest[e]);
      const A factor = share * scale;
      A* sum = numerator + e * a.dim;
      for (std::int64_t d = 0; d < a.dim; ++d) sum[d] += factor * widen(x[d]);
      denominator[e] += share;
    }
  }
}

// One expert: its partial sums in order of the chunks, then the average with the old direction.
template <typename T, typename A = Accumulator<T>>
void finish(const MemoryUpdate<T>& a, std::int64_t e, std::int64_t num_chunks, A* numerators, const A* denominators) {
  A* sum = numerators + e * a.dim;
  A total = denominators[e];
  for (std::int64_t c = 1; c < num_chunks; ++c) {
    const A* part = numerators + (c * a.num_experts + e) * a.dim;
    for (std::int64_t d = 0; d < a.dim; ++d) sum[d] += part[d];
    total += denominators[c * a.num_experts + e];
  }
  const A eps = static_cast<A>(a.eps);
  const A norm = std::sqrt(squared_norm(a.memory + e * a.dim, a.dim));
  const A keep = static_cast<A>(a.rate) / (norm < eps ? eps : norm);
  // The largest gate contributes 1, so only an expert without rows has total 0; NaN stays NaN.
  const A move = total == 0 ? A{0} : static_cast<A>(1 - a.rate) / total;
  for (std::int64_t d = 0; d < a.dim; ++d) {
    a.out[e * a.dim + d] = narrow<T>(keep * widen(a.memory[e * a.dim + d]) + move * sum[d]);
  }
}

}  // namespace

template <typename T>
void memory_update(const MemoryUpdate<T>& a) {
  using A = Accumulator<T>;
  const std::int64_t sums = a.num_experts * a.dim;
  const std::int64_t chunk = rows_per_chunk(a.num_rows, sums);
  const std::int64_t num_chunks = std::max<std::int64_t>(1, (a.num_rows + chunk - 1) / chunk);
  const std::vector<A> largest = largest_gate(a);
  std::vector<A> numerators(static_cast<std::size_t>(num_chunks * sums), A{0});
  std::vector<A> denominators(static_cast<std::size_t>(num_chunks * a.num_experts), A{0});
  parallel_for(num_chunks, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = begin; c < end; ++c) {
      add_rows(a, c * chunk, std::min(a.num_rows, (c + 1) * chunk), largest.data(), numerators.data() + c * sums,
               denominators.data() + c * a.num_experts);
    }
  });
  parallel_for(a.num_experts, grain_rows(a.dim * (num_chunks + 2)), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t e = begin; e < end; ++e) finish(a, e, num_chunks, numerators.data(), denominators.data());
  });
}

template void memory_update(const MemoryUpdate<float>&);
template void memory_update(const MemoryUpdate<double>&);
template void memory_update(const MemoryUpdate<bfloat16>&);

}  // namespace gmoe::core::GMOE_ISA
