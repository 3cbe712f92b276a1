// Cosine routing: expert embeddings as unit rows, cosines and gates of one row, and of a block of rows.
//
// A block has as many rows as a register has lanes. Its dot products are computed in tiles of rows x experts whose sums
// stay in registers, so that an element of x or of the memory is loaded once per tile, not once per product; from there
// on a row is a lane: top-k, softmax and scale need no loop over rows. A row's arithmetic does not depend on its
// neighbours. Include only from files under core/cpu.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/cosine_topk.h"
#include "core/cpu/top_k.h"
#include "core/simd.h"
#include "core/workspace.h"

namespace gmoe::core::GMOE_ISA {

// Rows divided by their norms, or by eps where that is larger. They start at a cache line: they are read for
// every row, and a vector across two lines costs two loads.
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

// In place; cosines are bounded, so exp cannot overflow.
template <typename A>
void softmax_bounded(A* value, std::int64_t k) {
  A sum = 0;
  for (std::int64_t r = 0; r < k; ++r) sum += value[r] = std::exp(value[r]);
  for (std::int64_t r = 0; r < k; ++r) value[r] /= sum;
}

// ---- a block of rows

// A tile has as many sums as a vector has lanes: 4 x 4 on AVX-512, 4 x 2 on AVX2.
template <typename A>
inline constexpr int kTiledExperts = kLanes<A> >= 16 ? 4 : 2;
template <typename A>
inline constexpr int kTiledRows = static_cast<int>(kLanes<A>) / kTiledExperts<A>;

// exp on [-1, 1] by its series. Outside it is less exact, but finite if the argument is, and NaN for NaN.
template <typename A>
inline Vector<A> exp_bounded(Vector<A> x) {
  constexpr int kTerms = sizeof(A) == 4 ? 11 : 19;
  Vector<A> sum = x * (A{1} / kTerms) + A{1};
#pragma GCC unroll 20
  for (int n = kTerms - 1; n >= 1; --n) sum = x * (A{1} / n) * sum + A{1};
  return sum;
}

template <typename T, typename A>
void exp_bounded(const T* x, std::int64_t n, A* out) {
  std::int64_t i = 0;
  for (; i + kLanes<A> <= n; i += kLanes<A>) store(out + i, exp_bounded<A>(load(x + i)));
  if (i < n) store_first(out + i, exp_bounded<A>(load_first(x + i, n - i)), n - i);
}

// Routes one block after another in the same buffers.
template <typename T>
class CosineBlock {
 public:
  using A = Accumulator<T>;
  static constexpr std::int64_t kRows = kLanes<A>;
  static constexpr std::int64_t kInRegisters = 4;  // choices per row

  // unit [num_experts, dim]: embeddings of norm 1, as accumulators.
  CosineBlock(const A* unit, std::int64_t num_experts, std::int64_t dim, std::int64_t k, A eps)
      : unit_(unit),
        num_experts_(num_experts),
        dim_(dim),
        k_(k),
        eps_(eps),
        cosine_(static_cast<std::size_t>(num_experts)),
        gate_(static_cast<std::size_t>(k > kInRegisters ? k : 0)),
        index_(static_cast<std::size_t>(k > kInRegisters ? k : 0)) {}

  // Routes up to kRows rows from `first` on, before `end`, and returns their number.
  std::int64_t route(const CosineTopk<T>& a, std::int64_t first, std::int64_t end) {
    const std::int64_t count = std::min(kRows, end - first);
    // Short blocks repeat their last row.
    const T* rows[kRows];
    for (std::int64_t i = 0; i < kRows; ++i) rows[i] = a.x + (first + std::min(i, count - 1)) * dim_;
    multiply(rows, count, end - first >= 2 * kRows ? a.x + (first + kRows) * dim_ : nullptr);
    switch (k_) {  // up to kInRegisters
      case 1: choose<1>(a, first, count); break;
      case 2: choose<2>(a, first, count); break;
      case 3: choose<3>(a, first, count); break;
      case 4: choose<4>(a, first, count); break;
      default: choose<0>(a, first, count);
    }
    return count;
  }

  A inverse_norm(std::int64_t row) const { return scale_[row]; }

 private:
  static Vector<A> broadcast(A value) { return Vector<A>{} + value; }
  static Vector<A> square_root(Vector<A> v) {
    for (std::int64_t i = 0; i < kRows; ++i) v[i] = std::sqrt(v[i]);
    return v;
  }

  // Cosines of the first `count` rows with all experts. The first two tiles of each row also prefetch the block
  // `ahead`, if any: evenly and in the order of addresses, which the hardware prefetcher follows.
  void multiply(const T* const* rows, std::int64_t count, const T* ahead) {
    constexpr int kR = kTiledRows<A>, kE = kTiledExperts<A>;
    Vector<A> squares[kRows] = {};
    for (std::int64_t i = 0; i < count; i += kR) {
      const T* next = ahead != nullptr ? ahead + i * dim_ : nullptr;
      if (num_experts_ <= kE) {
        multiply_tile<true, kR>(rows + i, i, 0, squares, next);
        continue;
      }
      multiply_tile<true, kR / 2>(rows + i, i, 0, squares, next);
      multiply_tile<false, kR / 2>(rows + i, i, kE, squares, next != nullptr ? next + kR / 2 * dim_ : nullptr);
      for (std::int64_t e = 2 * kE; e < num_experts_; e += kE) {
        multiply_tile<false, 0>(rows + i, i, e, squares, nullptr);
      }
    }
    const Vector<A> norm = square_root(sum_lanes<A>(squares));
    // Written so that a NaN norm stays NaN: fmax would drop it.
    scale_ = A{1} / (norm < eps_ ? broadcast(eps_) : norm);
    for (auto& c : cosine_) c *= scale_;
  }

  // Fetches RowsAhead rows from `ahead` on.
  template <bool Squares, int RowsAhead>
  void multiply_tile(const T* const* rows, std::int64_t first_row, std::int64_t first_expert, Vector<A>* squares,
                     const T* ahead) {
    constexpr int kR = kTiledRows<A>, kE = kTiledExperts<A>;
    constexpr std::int64_t kStep = RowsAhead * kLanes<A>, kLine = 64 / sizeof(T);
    const std::int64_t step = ahead != nullptr ? kStep : 0;  // without a block ahead, the same lines again
    if (ahead == nullptr) ahead = rows[0];
    const A* unit[kE];
    for (int e = 0; e < kE; ++e) unit[e] = unit_ + std::min(first_expert + e, num_experts_ - 1) * dim_;
    Vector<A> sum[kE * kR] = {};
    Vector<A> square[kR] = {};
    const auto add = [&](const Vector<A>(&x)[kR], const Vector<A>(&q)[kE]) {
#pragma GCC unroll 16
      for (int e = 0; e < kE; ++e) {
#pragma GCC unroll 16
        for (int r = 0; r < kR; ++r) sum[e * kR + r] += x[r] * q[e];
      }
      if constexpr (Squares) {
#pragma GCC unroll 16
        for (int r = 0; r < kR; ++r) square[r] += x[r] * x[r];
      }
    };
    std::int64_t d = 0;
    for (; d + kLanes<A> <= dim_; d += kLanes<A>) {
      Vector<A> x[kR], q[kE];
#pragma GCC unroll 16
      for (int r = 0; r < kR; ++r) x[r] = load(rows[r] + d);
      // Into the second level: the first allows few outstanding requests.
      for (std::int64_t i = 0; i < kStep; i += kLine) __builtin_prefetch(ahead + i, 0, 2);
      ahead += step;
#pragma GCC unroll 16
      for (int e = 0; e < kE; ++e) q[e] = load(unit[e] + d);
      add(x, q);
    }
    if (d < dim_) {
      Vector<A> x[kR], q[kE];
      for (int r = 0; r < kR; ++r) x[r] = load_first(rows[r] + d, dim_ - d);
      for (int e = 0; e < kE; ++e) q[e] = load_first(unit[e] + d, dim_ - d);
      add(x, q);
    }
    alignas(64) A total[kRows];
    store(total, sum_lanes<A>(sum));
    for (int e = 0; e < kE && first_expert + e < num_experts_; ++e) {
      std::copy(total + e * kR, total + (e + 1) * kR, lanes(cosine_[first_expert + e]) + first_row);
    }
    if constexpr (Squares) {
      std::copy(square, square + kR, squares + first_row);
    }
  }

  static A* lanes(Vector<A>& v) { return reinterpret_cast<A*>(&v); }

  // Top-k, softmax and results of a block. K > 0 choices stay in registers; K = 0 means any number, in memory.
  template <int K>
  void choose(const CosineTopk<T>& a, std::int64_t first, std::int64_t count) {
    if constexpr (K > 0) {
      Vector<A> gate[K];
      Lanes<A> index[K];
      choose_into<K>(gate, index);
      write_choices(gate, index, K, count, a.gate + first * k_, a.index + first * k_);
    } else {
      choose_into<0>(gate_.data(), index_.data());
      write_choices(gate_.data(), index_.data(), k_, count, a.gate + first * k_, a.index + first * k_);
    }
  }

  template <int K>
  void choose_into(Vector<A>* gate, Lanes<A>* index) const {
    const std::int64_t k = K > 0 ? K : k_;
    select_top<A>(cosine_.data(), num_experts_, k, gate, index);
    // Cosines are in [-1, 1], so no maximum is subtracted.
    Vector<A> sum = {};
#pragma GCC unroll 4
    for (std::int64_t r = 0; r < k; ++r) sum += gate[r] = exp_bounded<A>(gate[r]);
#pragma GCC unroll 4
    for (std::int64_t r = 0; r < k; ++r) gate[r] /= sum;
  }

  const A* unit_;
  std::int64_t num_experts_, dim_, k_;
  A eps_;
  std::vector<Vector<A>> cosine_, gate_;
  std::vector<Lanes<A>> index_;
  Vector<A> scale_ = {};
};

}  // namespace gmoe::core::GMOE_ISA
