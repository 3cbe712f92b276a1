// Rows are lanes: a block of as many rows as a vector has lanes is transposed once; after that every step, including
// the choice of experts, is the same for all its rows and free of branches. Floor: reading three arrays of [num_rows,
// num_experts] and the arithmetic of exp.
#include "core/noisy_topk.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>
#include <type_traits>
#include <vector>

#include "core/cpu/top_k.h"
#include "core/parallel.h"
#include "core/simd.h"

namespace gmoe::core::GMOE_ISA {
namespace {

constexpr std::int64_t kRowsPerChunk = 1024;
constexpr std::int64_t kWorkPerLogit = 16;  // units of parallel.h

// ---- exp and the standard normal distribution; float64 is for tests: exact, a lane at a time

// exp(x) for x <= 0: within 1e-7 of its value, 0 below -87; NaN stays NaN.
inline FloatVector exp_of_negative(FloatVector x) {
  constexpr float kShift = 0x1.8p23f;                            // adding it leaves an integer in the low bits
  constexpr float kHigh = 0x1.62e4p-1f, kLow = 0x1.7f7d1cp-20f;  // of ln 2
  const FloatVector held = x < -87.0f ? FloatVector{} - 87.0f : x;
  const FloatVector shifted = held * std::numbers::log2e_v<float> + kShift;
  const FloatVector n = shifted - kShift;
  const FloatVector r = held - n * kHigh - n * kLow;
  FloatVector sum = r * (1.0f / 720) + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  const WordVector power = (std::bit_cast<WordVector>(shifted) + 127u) << 23;
  return x < -87.0f ? FloatVector{} : sum * std::bit_cast<FloatVector>(power);
}

inline DoubleVector exp_of_negative(DoubleVector x) {
  for (std::int64_t i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

// The density at a value and the probability below it.
template <typename A>
struct Normal {
  Vector<A> density, below;
};

// Abramowitz and Stegun, 26.2.17: within 7.5e-8.
inline Normal<float> standard_normal(FloatVector z) {
  const FloatVector size = z < 0.0f ? -z : z;
  const FloatVector density =
      exp_of_negative(z * z * -0.5f) * static_cast<float>(std::numbers::inv_sqrtpi / std::numbers::sqrt2);
  const FloatVector t = 1.0f / (1.0f + 0.2316419f * size);
  FloatVector sum = t * 1.330274429f - 1.821255978f;
  sum = sum * t + 1.781477937f;
  sum = sum * t - 0.356563782f;
  sum = sum * t + 0.319381530f;
  const FloatVector tail = density * sum * t;
  return {density, z < 0.0f ? tail : 1.0f - tail};
}

inline Normal<double> standard_normal(DoubleVector z) {
  Normal<double> normal{};
  for (std::int64_t i = 0; i < kLanes<double>; ++i) {
    normal.density[i] = std::exp(-0.5 * z[i] * z[i]) * std::numbers::inv_sqrtpi / std::numbers::sqrt2;
    normal.below[i] = 0.5 * std::erfc(-z[i] / std::numbers::sqrt2);
  }
  return normal;
}

// ---- blocks of rows

// Columns of up to kLanes rows as one vector each. Short blocks repeat their last row.
template <typename T, typename A = Accumulator<T>>
void to_lanes(const T* rows, std::int64_t columns, std::int64_t count, Vector<A>* out) {
  A* lane = reinterpret_cast<A*>(out);
  for (std::int64_t i = 0; i < kLanes<A>; ++i) {
    const T* row = rows + std::min(i, count - 1) * columns;
    for (std::int64_t e = 0; e < columns; ++e) lane[e * kLanes<A> + i] = widen(row[e]);
  }
}
template <typename A>
void to_lanes(const std::int64_t* rows, std::int64_t columns, std::int64_t count, Lanes<A>* out) {
  Lane<A>* lane = reinterpret_cast<Lane<A>*>(out);
  for (std::int64_t i = 0; i < kLanes<A>; ++i) {
    const std::int64_t* row = rows + std::min(i, count - 1) * columns;
    for (std::int64_t r = 0; r < columns; ++r) lane[r * kLanes<A> + i] = static_cast<Lane<A>>(row[r]);
  }
}
template <typename T, typename A = Accumulator<T>>
void to_rows(const Vector<A>* vectors, std::int64_t columns, std::int64_t count, T* rows) {
  const A* lane = reinterpret_cast<const A*>(vectors);
  for (std::int64_t i = 0; i < count; ++i) {
    for (std::int64_t e = 0; e < columns; ++e) rows[i * columns + e] = narrow<T>(lane[e * kLanes<A> + i]);
  }
}

// The logits of a block of rows.
template <typename T>
struct Block {
  using A = Accumulator<T>;

  explicit Block(const NoisyLogits<T>& logits)
      : num_experts(logits.num_experts), k(logits.k), clean(size()), sigma(size()), noise(size()), noisy(size()) {}

  void load_rows(const NoisyLogits<T>& a, std::int64_t first, std::int64_t count) {
    const std::int64_t begin = first * num_experts;
    to_lanes(a.clean + begin, num_experts, count, clean.data());
    to_lanes(a.sigma + begin, num_experts, count, sigma.data());
    to_lanes(a.noise + begin, num_experts, count, noise.data());
    for (std::int64_t e = 0; e < num_experts; ++e) noisy[e] = clean[e] + noise[e] * sigma[e];
  }
  bool all() const { return k == num_experts; }
  std::size_t size() const { return static_cast<std::size_t>(num_experts); }

  std::int64_t num_experts, k;
  std::vector<Vector<A>> clean, sigma, noise, noisy;
};

template <typename A>
Lanes<A> lanes_of(const Lanes<A>* index, std::int64_t k, std::int64_t expert) {
  Lanes<A> found = {};
  for (std::int64_t r = 0; r < k; ++r) found |= index[r] == static_cast<Lane<A>>(expert);
  return found;
}

// The values of the lanes that chose the expert, 0 in the others.
template <typename A>
Vector<A> given(const Vector<A>* value, const Lanes<A>* index, std::int64_t k, std::int64_t expert) {
  Vector<A> sum = {};
  for (std::int64_t r = 0; r < k; ++r) sum = index[r] == static_cast<Lane<A>>(expert) ? value[r] : sum;
  return sum;
}

// An expert is chosen when it beats the k-th best of the others: `inside`, the (k+1)-th of all, for the chosen ones and
// `outside`, the k-th, for the rest.
template <typename A>
struct Threshold {
  Vector<A> inside, outside;
};

template <typename T>
class Forward {
 public:
  using A = Accumulator<T>;

  explicit Forward(const NoisyTopk<T>& call)
      : a_(call),
        block_(call.logits),
        top_(static_cast<std::size_t>(call.logits.k + 1)),
        order_(top_.size()),
        importance_(block_.size()),
        load_(block_.size()) {}

  // Routes rows [first, last) and writes their two sums per expert.
  void run(std::int64_t first, std::int64_t last, A* sums) {
    std::fill(importance_.begin(), importance_.end(), Vector<A>{});
    std::fill(load_.begin(), load_.end(), Vector<A>{});
    for (std::int64_t i = first; i < last; i += kLanes<A>) route(i, std::min(kLanes<A>, last - i));
    for (std::int64_t e = 0; e < block_.num_experts; ++e) {
      sums[e] = horizontal_sum<A>(importance_[e]);
      sums[block_.num_experts + e] = horizontal_sum<A>(load_[e]);
    }
  }

 private:
  void route(std::int64_t first, std::int64_t count) {
    const std::int64_t k = block_.k;
    block_.load_rows(a_.logits, first, count);
    select_top<A>(block_.noisy.data(), block_.num_experts, block_.all() ? k : k + 1, top_.data(), order_.data());
    const Threshold<A> threshold{block_.all() ? Vector<A>{} : top_[k], top_[k - 1]};
    const Vector<A> largest = top_[0];  // or NaN, which makes all gates NaN
    Vector<A> sum = {};
    for (std::int64_t r = 0; r < k; ++r) sum += top_[r] = exp_of_negative(top_[r] - largest);
    for (std::int64_t r = 0; r < k; ++r) top_[r] /= sum;
    write_choices(top_.data(), order_.data(), k, count, a_.gate + first * k, a_.index + first * k);
    Lanes<A> real;
    for (std::int64_t i = 0; i < kLanes<A>; ++i) real[i] = i < count ? -1 : 0;
    for (std::int64_t e = 0; e < block_.num_experts; ++e) {
      importance_[e] += real ? given<A>(top_.data(), order_.data(), k, e) : Vector<A>{};
      load_[e] += real ? chance(e, threshold) : Vector<A>{};
    }
  }
  // The probability of being chosen.
  Vector<A> chance(std::int64_t e, const Threshold<A>& threshold) const {
    if (block_.all()) return Vector<A>{} + A{1};
    const Lanes<A> chosen = lanes_of<A>(order_.data(), block_.k, e);
    const Vector<A> rival = chosen ? threshold.inside : threshold.outside;
    return standard_normal((block_.clean[e] - rival) / block_.sigma[e]).below;
  }

  const NoisyTopk<T>& a_;
  Block<T> block_;
  std::vector<Vector<A>> top_;
  std::vector<Lanes<A>> order_;
  std::vector<Vector<A>> importance_, load_;
};

// With a_e = grad_load_e phi(z_e) / sigma_e, the gradients of clean and sigma through z are a_e and -a_e z_e, and that
// of the logit that is the threshold -a_e. The gradient of a noisy logit, through the gates or as a
// threshold, is passed to clean unchanged and to sigma times the noise.
template <typename T>
class Backward {
 public:
  using A = Accumulator<T>;

  explicit Backward(const NoisyTopkGrad<T>& call)
      : g_(call),
        block_(call.logits),
        gate_(static_cast<std::size_t>(call.logits.k)),
        grad_gate_(gate_.size()),
        chosen_(gate_.size()),
        clean_(block_.size()),
        sigma_(block_.size()),
        noisy_(block_.size()) {}

  // Rows [first, first + count), at most kLanes.
  void run(std::int64_t first, std::int64_t count) {
    const std::int64_t k = block_.k, experts = block_.num_experts;
    block_.load_rows(g_.logits, first, count);
    to_lanes(g_.gate + first * k, k, count, gate_.data());
    to_lanes(g_.grad_gate + first * k, k, count, grad_gate_.data());
    to_lanes<A>(g_.index + first * k, k, count, chosen_.data());
    through_gates();
    std::fill(clean_.begin(), clean_.end(), Vector<A>{});
    std::fill(sigma_.begin(), sigma_.end(), Vector<A>{});
    if (!block_.all()) through_chances();
    for (std::int64_t e = 0; e < experts; ++e) {
      clean_[e] += noisy_[e];
      sigma_[e] += noisy_[e] * block_.noise[e];
    }
    to_rows(clean_.data(), experts, count, g_.grad_clean + first * experts);
    to_rows(sigma_.data(), experts, count, g_.grad_sigma + first * experts);
  }

 private:
  void through_gates() {
    for (std::int64_t e = 0; e < block_.num_experts; ++e) {
      const Vector<A> shared = Vector<A>{} + g_.grad_importance[e];
      for (std::int64_t r = 0; r < block_.k; ++r) {
        grad_gate_[r] += chosen_[r] == static_cast<Lane<A>>(e) ? shared : Vector<A>{};
      }
    }
    Vector<A> mean = {}, sum = {};
    for (std::int64_t r = 0; r < block_.k; ++r) {
      mean += gate_[r] * grad_gate_[r];
      sum += gate_[r];
    }
    // Gates that were rounded do not add up to 1; the difference would carry that error of the whole grad_gate.
    if constexpr (std::is_same_v<T, bfloat16>) mean /= sum;
    for (std::int64_t r = 0; r < block_.k; ++r) gate_[r] *= grad_gate_[r] - mean;
    for (std::int64_t e = 0; e < block_.num_experts; ++e) {
      noisy_[e] = given<A>(gate_.data(), chosen_.data(), block_.k, e);
    }
  }

  void through_chances() {
    const std::int64_t experts = block_.num_experts;
    const Lanes<A>& last = chosen_[block_.k - 1];
    Threshold<A> threshold{};
    Lanes<A> next = Lanes<A>{} - 1;  // the best expert that is not chosen; none yet
    for (std::int64_t e = 0; e < experts; ++e) {
      const Lanes<A> chosen = lanes_of<A>(chosen_.data(), block_.k, e);
      const Vector<A> value = block_.noisy[e];
      threshold.outside = last == static_cast<Lane<A>>(e) ? value : threshold.outside;
      const Lanes<A> better = ~chosen & ((next < 0) | ranks_above<A>(value, threshold.inside));
      threshold.inside = better ? value : threshold.inside;
      next = better ? Lanes<A>{} + static_cast<Lane<A>>(e) : next;
    }
    Vector<A> inside = {}, outside = {};  // sums of a
    for (std::int64_t e = 0; e < experts; ++e) {
      const Lanes<A> chosen = lanes_of<A>(chosen_.data(), block_.k, e);
      const Vector<A> z = (block_.clean[e] - (chosen ? threshold.inside : threshold.outside)) / block_.sigma[e];
      clean_[e] = g_.grad_load[e] * standard_normal(z).density / block_.sigma[e];
      sigma_[e] = -clean_[e] * z;
      inside += chosen ? clean_[e] : Vector<A>{};
      outside += chosen ? Vector<A>{} : clean_[e];
    }
    for (std::int64_t e = 0; e < experts; ++e) {
      noisy_[e] -= next == static_cast<Lane<A>>(e) ? inside : Vector<A>{};
      noisy_[e] -= last == static_cast<Lane<A>>(e) ? outside : Vector<A>{};
    }
  }

  const NoisyTopkGrad<T>& g_;
  Block<T> block_;
  std::vector<Vector<A>> gate_, grad_gate_;       // k each
  std::vector<Lanes<A>> chosen_;                  // k
  std::vector<Vector<A>> clean_, sigma_, noisy_;  // num_experts each: gradients
};

}  // namespace

template <typename T>
void noisy_topk(const NoisyTopk<T>& a) {
  using A = Accumulator<T>;
  const std::int64_t width = 2 * a.logits.num_experts;
  const RowChunks chunks(a.logits.num_rows, kRowsPerChunk, width);
  std::vector<A> sums(static_cast<std::size_t>(chunks.count() * width), A{0});
  parallel_for(chunks.count(), 1, [&](std::int64_t c, std::int64_t last) {
    Forward<T> forward(a);
    for (; c < last; ++c) forward.run(chunks.begin(c), chunks.end(c), &sums[c * width]);
  });
  for (std::int64_t c = 1; c < chunks.count(); ++c) {
    for (std::int64_t j = 0; j < width; ++j) sums[j] += sums[c * width + j];
  }
  std::copy_n(sums.begin(), a.logits.num_experts, a.importance);
  std::copy_n(sums.begin() + a.logits.num_experts, a.logits.num_experts, a.load);
}

template <typename T>
void noisy_topk_grad(const NoisyTopkGrad<T>& g) {
  constexpr std::int64_t kRows = kLanes<Accumulator<T>>;
  const NoisyLogits<T>& l = g.logits;
  parallel_for(l.num_rows, grain_rows(l.num_experts * kWorkPerLogit), [&](std::int64_t begin, std::int64_t end) {
    Backward<T> backward(g);
    for (std::int64_t i = begin; i < end; i += kRows) backward.run(i, std::min(kRows, end - i));
  });
}

template void noisy_topk(const NoisyTopk<float>&);
template void noisy_topk(const NoisyTopk<double>&);
template void noisy_topk(const NoisyTopk<bfloat16>&);
template void noisy_topk_grad(const NoisyTopkGrad<float>&);
template void noisy_topk_grad(const NoisyTopkGrad<double>&);
template void noisy_topk_grad(const NoisyTopkGrad<bfloat16>&);

}  // namespace gmoe::core::GMOE_ISA
