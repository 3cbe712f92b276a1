// Cosines and routing of a block of rows, as many as a register has lanes. Dot products are worked out in tiles of rows
// x experts whose sums stay in registers, so that an element of x or of the memory is loaded once per tile, not once
// per product; from there on a row is a lane: top-k, softmax and scale need no loop over rows. A row's arithmetic does
// not depend on its neighbours. Include only from files under core/cpu.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "core/cpu/cosine_topk.h"
#include "core/cpu/few_rows.h"
#include "core/cpu/tile.h"
#include "core/simd.h"

namespace gmoe::core::GMOE_ISA {

// A tile gives one register full of sums: 4 x 4 on AVX-512, 4 x 2 on AVX2, with the rows and experts it reads beside.
template <typename A>
inline constexpr int kTiledExperts = kLanes<A> >= 16 ? 4 : 2;
template <typename A>
inline constexpr int kTiledRows = static_cast<int>(kLanes<A>) / kTiledExperts<A>;

// exp on [-1, 1] by its series; beyond it stays finite or NaN as the argument does, only less exact.
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

// One block's worth of work space and the routine that fills it.
template <typename T>
class CosineBlock {
 public:
  using A = Accumulator<T>;
  using Lanes = decltype(Vector<A>{} < Vector<A>{});  // integers as wide as A
  using Lane = std::conditional_t<sizeof(A) == 4, std::int32_t, std::int64_t>;
  static constexpr std::int64_t kRows = kLanes<A>;

  // unit [num_experts, dim]: embeddings of norm 1, as accumulators.
  CosineBlock(const A* unit, std::int64_t num_experts, std::int64_t dim, std::int64_t k, A eps)
      : unit_(unit),
        num_experts_(num_experts),
        dim_(dim),
        k_(k),
        eps_(eps),
        cosine_(static_cast<std::size_t>(num_experts)),
        gate_(static_cast<std::size_t>(k)),
        index_(static_cast<std::size_t>(k)) {}

  // Routes up to kRows rows from `first` on, none at or behind `end`, and returns how many.
  std::int64_t route(const CosineTopk<T>& a, std::int64_t first, std::int64_t end) {
    const std::int64_t count = std::min(kRows, end - first);
    // Short blocks repeat their last row.
    const T* rows[kRows];
    for (std::int64_t i = 0; i < kRows; ++i) rows[i] = a.x + (first + std::min(i, count - 1)) * dim_;
    multiply(rows, count, end - first - count);
    select_top();
    softmax();
    for (std::int64_t i = 0; i < count; ++i) {
      for (std::int64_t r = 0; r < k_; ++r) {
        a.gate[(first + i) * k_ + r] = narrow<T>(gate_[r][i]);
        a.index[(first + i) * k_ + r] = index_[r][i];
      }
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

  // Cosines of the first `count` rows with all experts; of as many rows `ahead` the memory is asked for early.
  void multiply(const T* const* rows, std::int64_t count, std::int64_t ahead) {
    Register<A> squares[kRows] = {};
    for (std::int64_t i = 0; i < count; i += kTiledRows<A>) {
      multiply_tile<true>(rows + i, i, 0, squares, i < ahead ? kRows * dim_ : 0);
      for (std::int64_t e = kTiledExperts<A>; e < num_experts_; e += kTiledExperts<A>) {
        multiply_tile<false>(rows + i, i, e, squares, 0);
      }
    }
    const Vector<A> norm = square_root(sum_lanes<kRows / 2, A>(squares));
    // Written so that a NaN norm stays NaN: fmax would drop it.
    scale_ = A{1} / (norm < eps_ ? broadcast(eps_) : norm);
    for (auto& c : cosine_) c *= scale_;
  }

  template <bool Squares>
  void multiply_tile(const T* const* rows, std::int64_t first_row, std::int64_t first_expert, Register<A>* squares,
                     std::int64_t ahead) {
    constexpr int kR = kTiledRows<A>, kE = kTiledExperts<A>;
    const A* unit[kE];
    for (int e = 0; e < kE; ++e) unit[e] = unit_ + std::min(first_expert + e, num_experts_ - 1) * dim_;
    Register<A> sum[kE * kR] = {};
    Register<A> square[kR] = {};
    const auto step = [&](const Vector<A>(&x)[kR], const Vector<A>(&q)[kE]) {
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
      for (int r = 0; r < kR; ++r) {
        x[r] = load(rows[r] + d);
        if constexpr (Squares) __builtin_prefetch(rows[r] + d + ahead);
      }
#pragma GCC unroll 16
      for (int e = 0; e < kE; ++e) q[e] = load(unit[e] + d);
      step(x, q);
    }
    if (d < dim_) {
      Vector<A> x[kR], q[kE];
      for (int r = 0; r < kR; ++r) x[r] = load_first(rows[r] + d, dim_ - d);
      for (int e = 0; e < kE; ++e) q[e] = load_first(unit[e] + d, dim_ - d);
      step(x, q);
    }
    alignas(64) A total[kRows];
    at(total) = sum_lanes<kRows / 2, A>(sum);
    for (int e = 0; e < kE && first_expert + e < num_experts_; ++e) {
      std::copy(total + e * kR, total + (e + 1) * kR, lanes(cosine_[first_expert + e]) + first_row);
    }
    if constexpr (Squares) {
      std::copy(square, square + kR, squares + first_row);
    }
  }

  static A* lanes(Vector<A>& v) { return reinterpret_cast<A*>(&v); }

  // The k best of each lane by insertion: a later equal value never passes an earlier one, so ties go to the lower
  // expert; NaN ranks above every number, as in torch.sort.
  void select_top() {
    for (std::int64_t e = 0; e < num_experts_; ++e) {
      Vector<A> value = cosine_[e];
      Lanes expert = Lanes{} + static_cast<Lane>(e);
      const std::int64_t held = std::min(e, k_);
      for (std::int64_t r = 0; r < held; ++r) {
        const Vector<A> top = gate_[r];
        const Lanes holder = index_[r];
        const Lanes above = ~(value <= top) & (top == top);
        gate_[r] = above ? value : top;
        index_[r] = above ? expert : holder;
        value = above ? top : value;
        expert = above ? holder : expert;
      }
      if (held < k_) gate_[held] = value, index_[held] = expert;
    }
  }

  // Cosines lie in [-1, 1]: no maximum is needed.
  void softmax() {
    Vector<A> sum = {};
    for (auto& g : gate_) sum += g = exp_bounded<A>(g);
    for (auto& g : gate_) g /= sum;
  }

  const A* unit_;
  std::int64_t num_experts_, dim_, k_;
  A eps_;
  std::vector<Vector<A>> cosine_, gate_;
  std::vector<Lanes> index_;
  Vector<A> scale_ = {};
};

}  // namespace gmoe::core::GMOE_ISA
