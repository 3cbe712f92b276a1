// The noisy gate and its gradient against loops over every row and expert in double precision.
#include "core/noisy_topk.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <span>

#include "tests/device.h"
#include "tests/inputs.h"

namespace gmoe::test {
namespace {

struct NoisySizes {
  std::int64_t rows, experts, k;
};
constexpr NoisySizes kCpuSizes[] = {{0, 3, 2},   {1, 1, 1},    {2, 3, 3},  {33, 5, 2},
                                    {7, 67, 66}, {2101, 8, 4}, {65, 17, 1}};
// Fewer and more experts than lanes, sums of more than one block, warps with and without a second step, k = E.
constexpr NoisySizes kCudaSizes[] = {{0, 3, 2},  {1, 1, 1},   {2, 3, 3},   {33, 5, 2}, {7, 67, 66},
                                     {65, 8, 4}, {19, 17, 1}, {3, 130, 5}, {2, 33, 33}};
constexpr std::span<const NoisySizes> kSizes = kOnDevice ? std::span<const NoisySizes>(kCudaSizes) : kCpuSizes;

// Arguments and results of both directions.
template <typename T>
struct NoisyCase {
  using A = core::Accumulator<T>;

  std::vector<T> clean, sigma, noise, grad_gate, gate, grad_clean, grad_sigma;
  std::vector<A> grad_importance, grad_load, importance, load;
  std::vector<std::int64_t> index;
  core::NoisyLogits<T> logits;

  NoisyCase(Random& random, const NoisySizes& s)
      : clean(random.values<T>(s.rows * s.experts)),
        sigma(random.values<T>(s.rows * s.experts)),
        noise(random.values<T>(s.rows * s.experts)),
        grad_gate(random.values<T>(s.rows * s.k)),
        gate(unwritten<T>(s.rows * s.k)),
        grad_clean(unwritten<T>(s.rows * s.experts)),
        grad_sigma(grad_clean),
        grad_importance(random.values<A>(s.experts)),
        grad_load(random.values<A>(s.experts)),
        importance(unwritten<A>(s.experts)),
        load(importance),
        index(unwritten_index(s.rows * s.k)),
        logits{clean.data(), sigma.data(), noise.data(), s.rows, s.experts, s.k} {
    for (T& value : sigma) value = core::narrow<T>(std::abs(core::widen(value)) + A{0.25});
    // Of every other row, quarters: many of the noisy logits are equal, and exact in every type.
    for (std::int64_t j = 0; j < s.rows * s.experts; ++j) {
      if (j / s.experts % 2 == 0) continue;
      for (std::vector<T>* values : {&clean, &sigma, &noise}) {
        (*values)[j] = core::narrow<T>(std::round(4 * core::widen((*values)[j])) / 4);
      }
    }
  }

  core::NoisyTopk<T> forward() { return {logits, gate.data(), index.data(), importance.data(), load.data()}; }
  core::NoisyTopkGrad<T> backward() {
    return {logits,           gate.data(),       index.data(),     grad_gate.data(), grad_importance.data(),
            grad_load.data(), grad_clean.data(), grad_sigma.data()};
  }
};

// One row: its noisy logits and their order, NaN first, ties to the lower expert.
struct NoisyRow {
  std::vector<double> clean, sigma, noise, noisy;
  std::vector<std::int64_t> order;

  template <typename T>
  NoisyRow(const core::NoisyLogits<T>& a, std::int64_t row) {
    for (std::int64_t j = row * a.num_experts; j < (row + 1) * a.num_experts; ++j) {
      clean.push_back(wide(a.clean[j]));
      sigma.push_back(wide(a.sigma[j]));
      noise.push_back(wide(a.noise[j]));
      noisy.push_back(clean.back() + noise.back() * sigma.back());
    }
    order.resize(noisy.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](auto x, auto y) {
      return noisy[x] > noisy[y] || (std::isnan(noisy[x]) && !std::isnan(noisy[y]));
    });
  }
};

// Gates, choices and sums of the case as a kernel left them.
template <typename T>
void check_noisy_topk(const NoisyCase<T>& c) {
  const std::int64_t experts = c.logits.num_experts, k = c.logits.k;
  std::vector<double> want_gate, want_importance = zeros(experts), want_load = zeros(experts);
  for (std::int64_t i = 0; i < c.logits.num_rows; ++i) {
    const NoisyRow row(c.logits, i);
    std::vector<double> gate;
    double sum = 0;
    for (std::int64_t r = 0; r < k; ++r) gate.push_back(std::exp(row.noisy[row.order[r]] - row.noisy[row.order[0]]));
    for (const double g : gate) sum += g;
    for (std::int64_t r = 0; r < k; ++r) {
      const std::int64_t e = row.order[r], chosen = c.index[i * k + r];
      // Logits that are equal up to rounding may stand in either order; those of the odd rows have none.
      CHECK(chosen == e ||
            (i % 2 == 0 && chosen >= 0 && chosen < experts && std::fabs(row.noisy[chosen] - row.noisy[e]) < 1e-5));
      want_gate.push_back(gate[r] / sum);
      want_importance[e] += gate[r] / sum;
    }
    for (std::int64_t rank = 0; rank < experts; ++rank) {
      const std::int64_t e = row.order[rank];
      const double rival = k == experts ? 0 : row.noisy[row.order[rank < k ? k : k - 1]];
      const double z = (row.clean[e] - rival) / row.sigma[e];
      want_load[e] += k == experts ? 1 : 0.5 * std::erfc(-z / std::numbers::sqrt2);
    }
  }
  CHECK_CLOSE(c.gate, want_gate);
  CHECK_CLOSE(c.importance, want_importance);
  CHECK_CLOSE(c.load, want_load);
}

// Gradients of the case as a kernel left them. A choice whose index is no expert takes no part, and no expert of its
// row that is not chosen has a logit to beat if it is the last one.
template <typename T>
void check_noisy_topk_grad(const NoisyCase<T>& c) {
  const std::int64_t experts = c.logits.num_experts, k = c.logits.k;
  std::vector<double> want_clean, want_sigma;
  for (std::int64_t i = 0; i < c.logits.num_rows; ++i) {
    const NoisyRow row(c.logits, i);
    const std::int64_t* index = c.index.data() + i * k;
    const auto chosen = [&](std::int64_t e) { return std::find(index, index + k, e) != index + k; };
    const auto is_expert = [&](std::int64_t e) { return e >= 0 && e < experts; };
    const auto next = std::find_if_not(row.order.begin(), row.order.end(), chosen);
    std::vector<double> noisy = zeros(experts), own = noisy, z = noisy;
    double mean = 0;
    const auto grad = [&](std::int64_t r) {
      const double importance = is_expert(index[r]) ? wide(c.grad_importance[index[r]]) : 0;
      return wide(c.grad_gate[i * k + r]) + importance;
    };
    for (std::int64_t r = 0; r < k; ++r) mean += wide(c.gate[i * k + r]) * grad(r);
    for (std::int64_t r = 0; r < k; ++r) {
      if (is_expert(index[r])) noisy[index[r]] = wide(c.gate[i * k + r]) * (grad(r) - mean);
    }
    for (std::int64_t e = 0; e < experts && k < experts; ++e) {
      const std::int64_t rival = chosen(e) ? *next : index[k - 1];
      z[e] = (row.clean[e] - (is_expert(rival) ? row.noisy[rival] : 0)) / row.sigma[e];
      const double density = std::exp(-z[e] * z[e] / 2) * std::numbers::inv_sqrtpi / std::numbers::sqrt2;
      own[e] = wide(c.grad_load[e]) * density / row.sigma[e];
      if (is_expert(rival)) noisy[rival] -= own[e];
    }
    for (std::int64_t e = 0; e < experts; ++e) {
      want_clean.push_back(own[e] + noisy[e]);
      want_sigma.push_back(noisy[e] * row.noise[e] - own[e] * z[e]);
    }
  }
  CHECK_CLOSE(c.grad_clean, want_clean);
  CHECK_CLOSE(c.grad_sigma, want_sigma);
}

template <typename T>
void route(NoisyCase<T>& c) {
  if constexpr (kOnDevice) {
    const std::int64_t bytes = core::cuda::noisy_topk_workspace<T>(c.logits.num_rows, c.logits.num_experts);
    core::cuda::noisy_topk(c.forward(), Device().call(bytes));
  } else {
    core::noisy_topk(c.forward());
  }
}

// Notes the first bad index, at that position or -1.
template <typename T>
void differentiate(NoisyCase<T>& c, std::int64_t bad = -1) {
  Device device;
  if constexpr (kOnDevice) {
    core::cuda::noisy_topk_grad(c.backward(), device.call());
  } else {
    core::noisy_topk_grad(c.backward());
  }
  CHECK(device.bad_index() == bad);
}

template <typename F>
void for_each_case(std::uint64_t seed, const F& f) {
  Random random(seed);
  for_each_floating([&](auto type) {
    for (const NoisySizes& s : kSizes) {
      set_case(s.rows, " rows, ", s.experts, " experts, k ", s.k);
      NoisyCase<typename decltype(type)::type> c(random, s);
      f(c);
    }
  });
}

GMOE_PARALLEL_TEST(noisy_topk) {
  for_each_case(31, [](auto& c) {
    route(c);
    check_noisy_topk(c);
  });
}

GMOE_PARALLEL_TEST(noisy_topk_puts_nan_first) {
  for_each_case(33, [](auto& c) {
    using T = typename std::remove_reference_t<decltype(c.clean)>::value_type;
    if (c.logits.num_rows < 2) return;
    const std::int64_t middle = c.logits.num_rows / 2 * c.logits.num_experts;
    c.clean[middle + c.logits.num_experts - 1] = unwritten<T>(1)[0];
    route(c);
    check_noisy_topk(c);
  });
}

// 32 rows a warp, 3 blocks on each of 132 processors.
GMOE_PARALLEL_TEST(noisy_topk_of_more_rows_than_its_blocks_take_at_once) {
  Random random(34);
  NoisyCase<float> c(random, {3 * 132 * 32 + 77, 2, 1});
  route(c);
  check_noisy_topk(c);
}

GMOE_PARALLEL_TEST(noisy_topk_grad) {
  for_each_case(32, [](auto& c) {
    route(c);
    differentiate(c);
    check_noisy_topk_grad(c);
  });
}

#ifdef GMOE_TEST_CUDA
GMOE_PARALLEL_TEST(noisy_topk_grad_leaves_bad_indices_out) {
  for_each_case(35, [](auto& c) {
    if (c.logits.num_rows < 2) return;
    route(c);
    c.index[c.logits.k] = -1;
    c.index.back() = c.logits.num_experts;
    differentiate(c, c.logits.k);
    check_noisy_topk_grad(c);
  });
}
#endif

}  // namespace
}  // namespace gmoe::test
