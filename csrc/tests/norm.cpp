// The norm per expert and its gradient against loops over every slot.
#include <cmath>

#include "core/cpu/expert_norm.h"
#include "tests/check.h"
#include "tests/inputs.h"

namespace gmoe::test {
namespace {

struct Sizes {
  std::int64_t rows, experts, k, dim;
};
constexpr Sizes kSizes[] = {{0, 3, 2, 5},   {1, 1, 1, 1},     {2, 3, 3, 0},    {7, 5, 2, 3},
                            {63, 8, 3, 17}, {13, 40, 1, 131}, {61, 4, 2, 300}, {1601, 7, 4, 31}};
constexpr double kEps = 0.1;  // far above the rounding of bfloat16, as the variances of a slot or two are not

template <typename T>
struct Case {
  std::vector<T> y, gate, weight, bias, running_mean, running_var;
  std::vector<std::int64_t> index;
  core::ExpertSlots<T> slots;

  Case(Random& random, const Sizes& s, bool combined)
      : y(random.values<T>(s.rows * s.k * s.dim)),
        gate(random.values<T>(s.rows * s.k)),
        weight(random.values<T>(s.experts * s.dim)),
        bias(random.values<T>(s.experts * s.dim)),
        running_mean(random.values<T>(s.experts * s.dim)),
        running_var(random.values<T>(s.experts * s.dim)),
        // The last expert gets no slots unless it is the only one.
        index(random.indices<std::int64_t>(s.rows * s.k, std::max<std::int64_t>(1, s.experts - 1))),
        slots{y.data(), index.data(), combined ? gate.data() : nullptr, s.rows, s.k, s.dim, s.experts} {
    for (T& value : running_var) value = core::narrow<T>(std::abs(core::widen(value)) + core::Accumulator<T>{0.5});
  }
};

// One expert's statistics and one column, as the definition has them.
struct Column {
  double mean = 0, var = 0, count = 0;
};

template <typename T>
Column column_of(const Case<T>& c, std::int64_t e, std::int64_t d) {
  const auto& a = c.slots;
  Column column;
  for (std::int64_t s = 0; s < a.num_rows * a.k; ++s) {
    if (a.index[s] != e) continue;
    ++column.count;
    column.mean += wide(a.y[s * a.dim + d]);
  }
  const std::int64_t at = e * a.dim + d;
  if (column.count < 2) return {wide(c.running_mean[at]), wide(c.running_var[at]), column.count};
  column.mean /= column.count;
  for (std::int64_t s = 0; s < a.num_rows * a.k; ++s) {
    if (a.index[s] == e) column.var += std::pow(wide(a.y[s * a.dim + d]) - column.mean, 2) / column.count;
  }
  return column;
}

GMOE_PARALLEL_TEST(expert_norm) {
  Random random(21);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    using A = core::Accumulator<T>;
    for (const Sizes& s : kSizes) {
      for (const bool combined : {true, false}) {
        set_case(s.rows, " rows, ", s.experts, " experts, k ", s.k, ", dim ", s.dim, combined ? ", gates" : "");
        const Case<T> c(random, s, combined);
        std::vector<T> out = unwritten<T>(s.rows * s.dim * (combined ? 1 : s.k));
        std::vector<A> mean = unwritten<A>(s.experts * s.dim), var = mean;
        std::vector<std::int64_t> count = unwritten_index(s.experts);
        core::expert_norm<T>({c.slots, c.weight.data(), c.bias.data(), c.running_mean.data(), c.running_var.data(),
                              kEps, out.data(), mean.data(), var.data(), count.data()});
        std::vector<double> want_out = zeros(static_cast<std::int64_t>(out.size())), want_mean, want_var;
        for (std::int64_t at = 0; at < s.experts * s.dim; ++at) {
          const std::int64_t e = at / s.dim, d = at % s.dim;
          const Column column = column_of(c, e, d);
          want_mean.push_back(column.mean);
          want_var.push_back(column.var);
          CHECK(count[e] == static_cast<std::int64_t>(column.count));
          for (std::int64_t slot = 0; slot < s.rows * s.k; ++slot) {
            if (c.index[slot] != e) continue;
            const double unit = (wide(c.y[slot * s.dim + d]) - column.mean) / std::sqrt(column.var + kEps);
            const double gate = combined ? wide(c.gate[slot]) : 1;
            want_out[(combined ? slot / s.k : slot) * s.dim + d] +=
                gate * (unit * wide(c.weight[at]) + wide(c.bias[at]));
          }
        }
        CHECK_CLOSE(out, want_out);
        CHECK_CLOSE(mean, want_mean);
        CHECK_CLOSE(var, want_var);
      }
    }
  });
}

template <typename T>
struct Grads {
  std::vector<double> y, weight, bias, gate;
};

template <typename T>
Grads<T> naive_grads(const Case<T>& c, const std::vector<T>& grad_out, bool combined) {
  const auto& a = c.slots;
  const std::int64_t size = a.num_experts * a.dim, slots = a.num_rows * a.k;
  Grads<T> want{zeros(slots * a.dim), zeros(size), zeros(size), zeros(combined ? slots : 0)};
  for (std::int64_t at = 0; at < size; ++at) {
    const std::int64_t e = at / a.dim, d = at % a.dim;
    const Column column = column_of(c, e, d);
    const double inverse = 1 / std::sqrt(column.var + kEps), weight = wide(c.weight[at]);
    const auto unit = [&](std::int64_t s) { return (wide(a.y[s * a.dim + d]) - column.mean) * inverse; };
    const auto grad = [&](std::int64_t s) { return wide(grad_out[(combined ? s / a.k : s) * a.dim + d]); };
    const auto gate = [&](std::int64_t s) { return combined ? wide(a.gate[s]) : 1; };
    for (std::int64_t s = 0; s < slots; ++s) {
      if (a.index[s] != e) continue;
      want.bias[at] += gate(s) * grad(s);
      want.weight[at] += gate(s) * grad(s) * unit(s);
      if (combined) want.gate[s] += grad(s) * (unit(s) * weight + wide(c.bias[at]));
    }
    const double share = column.count > 1 ? 1 / column.count : 0;
    for (std::int64_t s = 0; s < slots; ++s) {
      if (a.index[s] != e) continue;
      const double mean = share * (want.bias[at] + unit(s) * want.weight[at]);
      want.y[s * a.dim + d] = weight * inverse * (gate(s) * grad(s) - mean);
    }
  }
  return want;
}

GMOE_PARALLEL_TEST(expert_norm_grad) {
  Random random(22);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    using A = core::Accumulator<T>;
    for (const Sizes& s : kSizes) {
      for (const bool combined : {true, false}) {
        set_case(s.rows, " rows, ", s.experts, " experts, k ", s.k, ", dim ", s.dim, combined ? ", gates" : "");
        const Case<T> c(random, s, combined);
        const std::int64_t size = s.experts * s.dim, slots = s.rows * s.k;
        const auto grad_out = random.values<T>((combined ? s.rows : slots) * s.dim);
        std::vector<A> mean, var;
        std::vector<std::int64_t> count(static_cast<std::size_t>(s.experts), 0);
        for (const std::int64_t e : c.index) ++count[e];
        for (std::int64_t at = 0; at < size; ++at) {
          const Column column = column_of(c, at / s.dim, at % s.dim);
          mean.push_back(static_cast<A>(column.mean));
          var.push_back(static_cast<A>(column.var));
        }
        std::vector<T> grad_y = unwritten<T>(slots * s.dim), grad_weight = unwritten<T>(size), grad_bias = grad_weight;
        std::vector<T> grad_gate = unwritten<T>(combined ? slots : 0);
        core::expert_norm_grad<T>({c.slots, grad_out.data(), c.weight.data(), c.bias.data(), mean.data(), var.data(),
                                   count.data(), kEps, grad_y.data(), grad_weight.data(), grad_bias.data(),
                                   grad_gate.data()});
        const Grads<T> want = naive_grads(c, grad_out, combined);
        CHECK_CLOSE(grad_bias, want.bias);
        CHECK_CLOSE(grad_weight, want.weight);
        CHECK_CLOSE(grad_gate, want.gate);
        CHECK_CLOSE(grad_y, want.y);
      }
    }
  });
}

}  // namespace
}  // namespace gmoe::test
