// x is read once: while a row is in the first-level cache its norm is taken and it is added, times exp(gate), to the
// sums of its experts. The largest gate of each expert is found first, in a pass over [num_rows, k] that costs a few
// percent, so that no finite gate can overflow. Floor: the time to read x.
#include "core/memory_update.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/cpu/memory_sums.h"
#include "core/parallel.h"

namespace gmoe::core::GMOE_ISA {
namespace {

template <typename T, typename A = Accumulator<T>>
std::vector<A> largest_gate(const MemoryUpdate<T>& a) {
  std::vector<A> largest(static_cast<std::size_t>(a.num_experts), -std::numeric_limits<A>::infinity());
  for (std::int64_t s = 0; s < a.num_rows * a.k; ++s) {
    largest[a.index[s]] = std::max(largest[a.index[s]], A{widen(a.gate[s])});
  }
  return largest;
}

}  // namespace

template <typename T>
void memory_update(const MemoryUpdate<T>& a) {
  using A = Accumulator<T>;
  const A eps = static_cast<A>(a.eps);
  const std::vector<A> largest = largest_gate(a);
  MemorySums<A> sums(a.num_rows, a.num_experts, a.dim);
  parallel_for(sums.chunks().count(), 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<A> share(static_cast<std::size_t>(kBlockRows * a.k));
    A scale[kBlockRows];
    SlotOrder order(a.num_experts, kBlockRows * a.k);
    for (std::int64_t chunk = begin; chunk < end; ++chunk) {
      for (std::int64_t i = sums.chunks().begin(chunk); i < sums.chunks().end(chunk); i += kBlockRows) {
        const std::int64_t count = std::min(kBlockRows, sums.chunks().end(chunk) - i);
        const T* x = a.x + i * a.dim;
        const std::int64_t* index = a.index + i * a.k;
        for (std::int64_t s = 0; s < count * a.k; ++s) {
          share[s] = std::exp(A{widen(a.gate[i * a.k + s])} - largest[index[s]]);
        }
        for (std::int64_t row = 0; row < count; ++row) {
          const A norm = a.normalize ? std::sqrt(squared_norm(x + row * a.dim, a.dim)) : A{1};
          scale[row] = A{1} / (a.normalize && norm < eps ? eps : norm);
        }
        sums.add(chunk, x, count, scale, share.data(), index, a.k, order);
      }
    }
  });
  sums.average(a.memory, a.rate, eps, a.out);
}

template void memory_update(const MemoryUpdate<float>&);
template void memory_update(const MemoryUpdate<double>&);
template void memory_update(const MemoryUpdate<bfloat16>&);

}  // namespace gmoe::core::GMOE_ISA
