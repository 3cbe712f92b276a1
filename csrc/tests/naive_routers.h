// Routers by loops over every row and expert, in double precision.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "core/cosine_topk.h"
#include "tests/check.h"
#include "tests/device.h"
#include "tests/inputs.h"

namespace gmoe::test {

struct RouterSizes {
  std::int64_t rows, experts, k, dim;
};
inline constexpr RouterSizes kRouterSizes[] = {{0, 3, 2, 5},      {1, 1, 1, 1},    {2, 3, 3, 0},    {7, 5, 5, 3},
                                               {63, 8, 3, 17},    {5, 67, 67, 2},  {11, 4, 1, 131}, {61, 9, 2, 512},
                                               {1501, 13, 4, 31}, {1500, 2, 1, 64}};
inline void set_router_case(const RouterSizes& s, const char* variant = "") {
  set_case(s.rows, " rows, ", s.experts, " experts, k ", s.k, ", dim ", s.dim, variant);
}

// Positions of the k largest, NaN first, ties to the lower one.
inline std::vector<std::int64_t> best(const double* value, std::int64_t n, std::int64_t k) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return value[a] > value[b] || (std::isnan(value[a]) && !std::isnan(value[b]));
  });
  order.resize(static_cast<std::size_t>(k));
  return order;
}

inline std::vector<double> softmax(std::vector<double> value) {
  double sum = 0;
  const double largest = value.empty() ? 0 : value[0];
  for (double& v : value) sum += v = std::exp(v - largest);
  for (double& v : value) v /= sum;
  return value;
}

struct Routes {
  std::vector<std::int64_t> index;
  std::vector<double> gate;
};

// The k best of each row of scores [N, E], and their softmax.
inline Routes naive_routes(const RouterSizes& s, const std::vector<double>& scores) {
  Routes routes;
  for (std::int64_t i = 0; i < s.rows; ++i) {
    const double* row = scores.data() + i * s.experts;
    std::vector<double> top;
    for (const std::int64_t e : best(row, s.experts, s.k)) {
      routes.index.push_back(e);
      top.push_back(row[e]);
    }
    for (const double g : softmax(top)) routes.gate.push_back(g);
  }
  return routes;
}

// Random logits; of every other row, quarters: many of them are equal.
template <typename T>
std::vector<T> logits_with_ties(Random& random, const RouterSizes& s) {
  std::vector<T> logits = random.values<T>(s.rows * s.experts);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (i / s.experts % 2 == 1) logits[i] = core::narrow<T>(std::round(4 * core::widen(logits[i])) / 4);
  }
  return logits;
}

// An index that is no expert takes no part.
template <typename T>
std::vector<double> naive_topk_softmax_grad_logits(const RouterSizes& s, const std::vector<T>& grad_gate,
                                                   const std::vector<T>& gate, const std::vector<std::int64_t>& index) {
  std::vector<double> want = zeros(s.rows * s.experts);
  for (std::int64_t i = 0; i < s.rows; ++i) {
    double mean = 0;
    for (std::int64_t r = i * s.k; r < (i + 1) * s.k; ++r) mean += wide(gate[r]) * wide(grad_gate[r]);
    for (std::int64_t r = i * s.k; r < (i + 1) * s.k; ++r) {
      if (index[r] < 0 || index[r] >= s.experts) continue;
      want[i * s.experts + index[r]] = wide(gate[r]) * (wide(grad_gate[r]) - mean);
    }
  }
  return want;
}

template <typename T>
double norm(const std::vector<T>& rows, std::int64_t row, std::int64_t dim) {
  double sum = 0;
  for (std::int64_t d = 0; d < dim; ++d) sum += wide(rows[row * dim + d]) * wide(rows[row * dim + d]);
  return std::sqrt(sum);
}

// cosines[N, E] with norms of at least eps.
template <typename T>
std::vector<double> naive_cosines(const RouterSizes& s, const std::vector<T>& x, const std::vector<T>& memory,
                                  double eps) {
  std::vector<double> cosines = zeros(s.rows * s.experts);
  for (std::int64_t i = 0; i < s.rows; ++i) {
    for (std::int64_t e = 0; e < s.experts; ++e) {
      double sum = 0;
      for (std::int64_t d = 0; d < s.dim; ++d) sum += wide(x[i * s.dim + d]) * wide(memory[e * s.dim + d]);
      const double size = std::max(norm(x, i, s.dim), eps), memory_size = std::max(norm(memory, e, s.dim), eps);
      cosines[i * s.experts + e] = sum / size / memory_size;
    }
  }
  return cosines;
}

// Each row of an index holds different experts.
inline void check_choices(const RouterSizes& s, const std::vector<std::int64_t>& index) {
  for (std::int64_t i = 0; i < s.rows; ++i) {
    std::vector<std::int64_t> chosen(index.begin() + i * s.k, index.begin() + (i + 1) * s.k);
    std::sort(chosen.begin(), chosen.end());
    CHECK(chosen.front() >= 0 && chosen.back() < s.experts);
    CHECK(std::adjacent_find(chosen.begin(), chosen.end()) == chosen.end());
  }
}

// What cosine_topk made of the rows. Cosines that are equal up to rounding may stand in either order.
template <typename T>
void check_cosine_topk(const RouterSizes& s, const std::vector<double>& cosines, const std::vector<T>& gate,
                       const std::vector<std::int64_t>& index) {
  const Routes want = naive_routes(s, cosines);
  check_choices(s, index);
  add_bits(index);
  for (std::int64_t r = 0; r < s.rows * s.k; ++r) {
    const double* row = cosines.data() + r / s.k * s.experts;
    CHECK(!(std::fabs(row[index[r]] - row[want.index[r]]) >= 1e-5));
  }
  CHECK_CLOSE(gate, want.gate);
}

// dx of the gates of the chosen experts, which are given; an index that is no expert takes no part.
template <typename T>
std::vector<double> naive_cosine_topk_grad_x(const RouterSizes& s, const std::vector<T>& x,
                                             const std::vector<T>& memory, const std::vector<T>& grad_gate,
                                             const std::vector<std::int64_t>& index, double eps) {
  const std::vector<double> cosines = naive_cosines(s, x, memory, eps);
  const auto is_expert = [&](std::int64_t e) { return e >= 0 && e < s.experts; };
  std::vector<double> want = zeros(s.rows * s.dim);
  for (std::int64_t i = 0; i < s.rows; ++i) {
    const double size = norm(x, i, s.dim), scale = 1 / std::max(size, eps);
    std::vector<double> top;
    for (std::int64_t r = i * s.k; r < (i + 1) * s.k; ++r) {
      top.push_back(is_expert(index[r]) ? cosines[i * s.experts + index[r]] : 0);
    }
    const std::vector<double> gate = softmax(top);
    double mean = 0;
    for (std::int64_t r = 0; r < s.k; ++r) mean += gate[r] * wide(grad_gate[i * s.k + r]);
    for (std::int64_t r = 0; r < s.k; ++r) {
      const std::int64_t e = index[i * s.k + r];
      if (!is_expert(e)) continue;
      const double grad = gate[r] * (wide(grad_gate[i * s.k + r]) - mean);
      const double memory_scale = 1 / std::max(norm(memory, e, s.dim), eps);
      for (std::int64_t d = 0; d < s.dim; ++d) {
        const double along = size < eps ? 0 : top[r] * wide(x[i * s.dim + d]) * scale;
        want[i * s.dim + d] += grad * (wide(memory[e * s.dim + d]) * memory_scale - along) * scale;
      }
    }
  }
  return want;
}

template <typename T>
void run(const core::CosineTopk<T>& a, Device& device) {
  if constexpr (kOnDevice) {
    core::cuda::cosine_topk(a, device.call());
  } else {
    core::cosine_topk(a);
  }
}

}  // namespace gmoe::test
