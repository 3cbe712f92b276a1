// The noisy gate and its gradient against loops over every row and expert.
#include "core/cpu/noisy_topk.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "tests/check.h"
#include "tests/inputs.h"

namespace gmoe::test {
namespace {

struct Sizes {
  std::int64_t rows, experts, k;
};
constexpr Sizes kSizes[] = {{0, 3, 2}, {1, 1, 1}, {2, 3, 3}, {33, 5, 2}, {7, 67, 66}, {2101, 8, 4}, {65, 17, 1}};

template <typename T>
struct Case {
  std::vector<T> clean, sigma, noise, grad_gate;
  std::vector<core::Accumulator<T>> grad_importance, grad_load;
  core::NoisyLogits<T> logits;

  Case(Random& random, const Sizes& s)
      : clean(random.values<T>(s.rows * s.experts)),
        sigma(random.values<T>(s.rows * s.experts)),
        noise(random.values<T>(s.rows * s.experts)),
        grad_gate(random.values<T>(s.rows * s.k)),
        grad_importance(random.values<core::Accumulator<T>>(s.experts)),
        grad_load(random.values<core::Accumulator<T>>(s.experts)),
        logits{clean.data(), sigma.data(), noise.data(), s.rows, s.experts, s.k} {
    for (T& value : sigma) value = core::narrow<T>(std::abs(core::widen(value)) + core::Accumulator<T>{0.25});
  }
};

// One row: its noisy logits, their order, and the softmax of the first k.
template <typename T>
struct Row {
  std::vector<double> noisy, gate;
  std::vector<std::int64_t> order;

  Row(const core::NoisyLogits<T>& a, std::int64_t i) {
    for (std::int64_t j = i * a.num_experts; j < (i + 1) * a.num_experts; ++j) {
      noisy.push_back(wide(a.clean[j]) + wide(a.noise[j]) * wide(a.sigma[j]));
    }
    order.resize(noisy.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](auto x, auto y) { return noisy[x] > noisy[y]; });
    double sum = 0;
    for (std::int64_t r = 0; r < a.k; ++r) gate.push_back(std::exp(noisy[order[r]] - noisy[order[0]]));
    for (const double g : gate) sum += g;
    for (double& g : gate) g /= sum;
  }
  bool chose(std::int64_t e, std::int64_t k) const { return std::find(&order[0], &order[0] + k, e) != &order[0] + k; }
  // The expert whose logit e is measured against, if k < E.
  std::int64_t rival(std::int64_t e, std::int64_t k) const { return chose(e, k) ? order[k] : order[k - 1]; }
};

GMOE_PARALLEL_TEST(noisy_topk) {
  Random random(31);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    using A = core::Accumulator<T>;
    for (const Sizes& s : kSizes) {
      set_case(s.rows, " rows, ", s.experts, " experts, k ", s.k);
      const Case<T> c(random, s);
      std::vector<T> gate = unwritten<T>(s.rows * s.k);
      std::vector<std::int64_t> index = unwritten_index(s.rows * s.k);
      std::vector<A> importance = unwritten<A>(s.experts), load = importance;
      core::noisy_topk<T>({c.logits, gate.data(), index.data(), importance.data(), load.data()});
      std::vector<double> want_gate, want_importance = zeros(s.experts), want_load = zeros(s.experts);
      for (std::int64_t i = 0; i < s.rows; ++i) {
        const Row<T> row(c.logits, i);
        for (std::int64_t r = 0; r < s.k; ++r) {
          // Logits that are equal up to rounding may stand in either order.
          const std::int64_t chosen = index[i * s.k + r];
          CHECK(chosen >= 0 && chosen < s.experts);
          CHECK(std::abs(row.noisy[chosen] - row.noisy[row.order[r]]) < 1e-5);
          want_gate.push_back(row.gate[r]);
          want_importance[row.order[r]] += row.gate[r];
        }
        for (std::int64_t e = 0; e < s.experts; ++e) {
          const std::int64_t j = i * s.experts + e;
          const double z = s.k == s.experts ? 0 : (wide(c.clean[j]) - row.noisy[row.rival(e, s.k)]) / wide(c.sigma[j]);
          want_load[e] += s.k == s.experts ? 1 : 0.5 * std::erfc(-z / std::numbers::sqrt2);
        }
      }
      CHECK_CLOSE(gate, want_gate);
      CHECK_CLOSE(importance, want_importance);
      CHECK_CLOSE(load, want_load);
    }
  });
}

GMOE_PARALLEL_TEST(noisy_topk_grad) {
  Random random(32);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    for (const Sizes& s : kSizes) {
      set_case(s.rows, " rows, ", s.experts, " experts, k ", s.k);
      const Case<T> c(random, s);
      std::vector<T> gate, grad_clean = unwritten<T>(s.rows * s.experts), grad_sigma = grad_clean;
      std::vector<std::int64_t> index;
      std::vector<double> want_clean, want_sigma;
      for (std::int64_t i = 0; i < s.rows; ++i) {
        const Row<T> row(c.logits, i);
        std::vector<double> noisy = zeros(s.experts), own = noisy, z = noisy;
        double mean = 0;
        const auto grad = [&](std::int64_t r) {
          return wide(c.grad_gate[i * s.k + r]) + wide(c.grad_importance[row.order[r]]);
        };
        for (std::int64_t r = 0; r < s.k; ++r) {
          gate.push_back(core::narrow<T>(static_cast<core::Accumulator<T>>(row.gate[r])));
          index.push_back(row.order[r]);
          mean += wide(gate.back()) * grad(r);
        }
        for (std::int64_t r = 0; r < s.k; ++r) noisy[row.order[r]] = wide(gate[i * s.k + r]) * (grad(r) - mean);
        for (std::int64_t e = 0; e < s.experts && s.k < s.experts; ++e) {
          const std::int64_t j = i * s.experts + e;
          z[e] = (wide(c.clean[j]) - row.noisy[row.rival(e, s.k)]) / wide(c.sigma[j]);
          const double density = std::exp(-z[e] * z[e] / 2) * std::numbers::inv_sqrtpi / std::numbers::sqrt2;
          own[e] = wide(c.grad_load[e]) * density / wide(c.sigma[j]);
          noisy[row.rival(e, s.k)] -= own[e];
        }
        for (std::int64_t e = 0; e < s.experts; ++e) {
          want_clean.push_back(own[e] + noisy[e]);
          want_sigma.push_back(noisy[e] * wide(c.noise[i * s.experts + e]) - own[e] * z[e]);
        }
      }
      core::noisy_topk_grad<T>({c.logits, gate.data(), index.data(), c.grad_gate.data(), c.grad_importance.data(),
                                c.grad_load.data(), grad_clean.data(), grad_sigma.data()});
      CHECK_CLOSE(grad_clean, want_clean);
      CHECK_CLOSE(grad_sigma, want_sigma);
    }
  });
}

}  // namespace
}  // namespace gmoe::test
