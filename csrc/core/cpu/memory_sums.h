// Sums for the moving average of the expert embeddings: for each expert, the sums of share * row and of share, in
// chunks of rows. Include only from files under core/cpu.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "core/counting_sort.h"
#include "core/cpu/row_tile.h"
#include "core/parallel.h"
#include "core/simd.h"

namespace gmoe::core::GMOE_ISA {

inline constexpr std::int64_t kBlockRows = 16;  // 16 rows of 256 floats are a third of the first-level cache

template <typename A>
class MemorySums {
 public:
  MemorySums(std::int64_t num_rows, std::int64_t num_experts, std::int64_t dim)
      : num_experts_(num_experts),
        dim_(dim),
        chunks_(num_rows, kRowsPerChunk, num_experts * dim),
        numerator_(static_cast<std::size_t>(chunks_.count() * num_experts * dim), A{0}),
        denominator_(static_cast<std::size_t>(chunks_.count() * num_experts), A{0}) {}

  const RowChunks& chunks() const { return chunks_; }

  // Adds share[i, r] * scale[i] * x[i] to the chunk's sums of expert[i, r], for rows i < count <= kBlockRows of x and
  // r < k. The slots are sorted by expert first: a sum is then loaded and stored once per block, and stays in registers
  // over its rows. One thread per chunk.
  template <typename T>
  void add(std::int64_t chunk, const T* x, std::int64_t count, const A* scale, const A* share,
           const std::int64_t* expert, std::int64_t k, SlotOrder& order) {
    order.sort(expert, count * k);
    for (std::int64_t e = 0; e < num_experts_; ++e) {
      const std::int64_t begin = order.begin(e), end = order.end(e);
      if (begin == end) continue;
      A* sum = numerator_.data() + (chunk * num_experts_ + e) * dim_;
      for_each_tile<A>(dim_, [&](const auto& tile) {
        constexpr int kVectors = std::remove_cvref_t<decltype(tile)>::kVectors;
        Vector<A> part[kVectors];
        tile.read_all(sum, part);
        for (std::int64_t s = begin; s < end; ++s) {
          const std::int64_t slot = order.slot(s), row = slot / k;
          const A factor = share[slot] * scale[row];
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) part[v] += factor * tile.read(x + row * dim_, v);
        }
        tile.write_all(sum, part);
      });
      for (std::int64_t s = begin; s < end; ++s) denominator_[chunk * num_experts_ + e] += share[order.slot(s)];
    }
  }

  // out = rate * memory / |memory| + (1 - rate) * numerator / denominator, without the second term for an expert
  // without rows.
  template <typename T>
  void average(const T* memory, double rate, A eps, T* out) {
    parallel_for(num_experts_, grain_rows(dim_ * (chunks_.count() + 2)), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t e = begin; e < end; ++e) average_one(memory + e * dim_, e, rate, eps, out + e * dim_);
    });
  }

 private:
  static constexpr std::int64_t kRowsPerChunk = 1024;

  template <typename T>
  void average_one(const T* memory, std::int64_t e, double rate, A eps, T* out) {
    A* sum = numerator_.data() + e * dim_;
    A total = denominator_[e];
    for (std::int64_t c = 1; c < chunks_.count(); ++c) {
      const A* part = numerator_.data() + (c * num_experts_ + e) * dim_;
      for (std::int64_t d = 0; d < dim_; ++d) sum[d] += part[d];
      total += denominator_[c * num_experts_ + e];
    }
    const A norm = std::sqrt(squared_norm(memory, dim_));
    const A keep = static_cast<A>(rate) / (norm < eps ? eps : norm);
    // A row's share is positive, so only an expert without rows has total 0; NaN stays NaN.
    const A move = total == 0 ? A{0} : static_cast<A>(1 - rate) / total;
    for (std::int64_t d = 0; d < dim_; ++d) out[d] = narrow<T>(keep * widen(memory[d]) + move * sum[d]);
  }

  std::int64_t num_experts_, dim_;
  RowChunks chunks_;
  std::vector<A> numerator_, denominator_;  // [chunks, num_experts, dim] and [chunks, num_experts]
};

}  // namespace gmoe::core::GMOE_ISA
