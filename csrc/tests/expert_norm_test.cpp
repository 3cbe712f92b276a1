// The norm per expert and its gradient against loops over every slot, expert and column in double precision.
#include "core/expert_norm.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "tests/device.h"
#include "tests/inputs.h"

namespace gmoe::test {
namespace {

struct NormSizes {
  std::int64_t rows, experts, k, dim;
};
constexpr NormSizes kCpuSizes[] = {{0, 3, 2, 5},   {1, 1, 1, 1},     {2, 3, 3, 0},    {7, 5, 2, 3},
                                   {63, 8, 3, 17}, {13, 40, 1, 131}, {61, 4, 2, 300}, {1601, 7, 4, 31}};
// More slots than a chunk, more experts than a block takes, columns on both sides of a block's and a warp's.
constexpr NormSizes kCudaSizes[] = {{0, 3, 2, 5},   {1, 1, 1, 1},    {2, 3, 3, 0},   {7, 5, 2, 3},
                                    {29, 40, 3, 7}, {5, 35, 1, 131}, {11, 4, 2, 64}, {131, 3, 4, 5}};
constexpr std::span<const NormSizes> kSizes = kOnDevice ? std::span<const NormSizes>(kCudaSizes) : kCpuSizes;
constexpr double kNormEps = 0.1;  // far above the rounding of bfloat16, as the variance of two slots is not

template <typename T>
struct NormCase {
  std::vector<T> y, gate, weight, bias, running_mean, running_var, grad_out;
  std::vector<std::int64_t> index;
  core::ExpertSlots<T> slots;

  NormCase(Random& random, const NormSizes& s, bool combined)
      : y(random.values<T>(s.rows * s.k * s.dim)),
        gate(random.values<T>(s.rows * s.k)),
        weight(random.values<T>(s.experts * s.dim)),
        bias(random.values<T>(s.experts * s.dim)),
        running_mean(random.values<T>(s.experts * s.dim)),
        running_var(random.values<T>(s.experts * s.dim)),
        grad_out(random.values<T>((combined ? 1 : s.k) * s.rows * s.dim)),
        // The last expert gets no slots unless it is the only one.
        index(random.indices<std::int64_t>(s.rows * s.k, std::max<std::int64_t>(1, s.experts - 1))),
        slots{y.data(), index.data(), combined ? gate.data() : nullptr, s.rows, s.k, s.dim, s.experts} {
    for (T& value : running_var) value = core::narrow<T>(std::abs(core::widen(value)) + core::Accumulator<T>{0.5});
  }
};

// mean and var are what the rows are normalised by; a slot whose expert is not there adds nothing.
struct NormResult {
  std::vector<double> out, mean, var, grad_y, grad_weight, grad_bias, grad_gate;
  std::vector<std::int64_t> count;
};

// One expert and one column: its slots, and the statistics they are normalised by.
template <typename T>
struct Column {
  const NormCase<T>& c;
  std::int64_t e, d;
  std::vector<std::int64_t> slots = {};
  double mean = 0, var = 0;

  double y(std::int64_t s) const { return wide(c.y[s * c.slots.dim + d]); }
  double unit(std::int64_t s) const { return (y(s) - mean) / std::sqrt(var + kNormEps); }
  double gate(std::int64_t s) const { return c.slots.gate == nullptr ? 1 : wide(c.gate[s]); }
  // Where the slot's result is, and the gradient of it.
  std::int64_t out(std::int64_t s) const { return (c.slots.gate == nullptr ? s : s / c.slots.k) * c.slots.dim + d; }
  double grad(std::int64_t s) const { return wide(c.grad_out[out(s)]); }
};

template <typename T>
Column<T> column_of(const NormCase<T>& c, std::int64_t at) {
  Column<T> column{c, at / c.slots.dim, at % c.slots.dim};
  for (std::int64_t s = 0; s < c.slots.num_rows * c.slots.k; ++s) {
    if (c.index[s] == column.e) column.slots.push_back(s);
  }
  const double count = static_cast<double>(column.slots.size());
  if (count < 2) {
    column.mean = wide(c.running_mean[at]);
    column.var = wide(c.running_var[at]);
    return column;
  }
  double squares = 0;
  for (const std::int64_t s : column.slots) column.mean += column.y(s) / count;
  for (const std::int64_t s : column.slots) squares += std::pow(column.y(s) - column.mean, 2) / count;
  column.var = squares;
  return column;
}

template <typename T>
NormResult naive_norm(const NormCase<T>& c) {
  const auto& a = c.slots;
  const std::int64_t size = a.num_experts * a.dim, slots = a.num_rows * a.k;
  const bool combined = a.gate != nullptr;
  NormResult want;
  want.out = zeros((combined ? a.num_rows : slots) * a.dim);
  want.grad_y = zeros(slots * a.dim);
  want.grad_gate = zeros(combined ? slots : 0);
  want.grad_weight = want.grad_bias = zeros(size);
  want.count.assign(static_cast<std::size_t>(a.num_experts), 0);
  for (const std::int64_t e : c.index) want.count[e < 0 || e >= a.num_experts ? 0 : e] += e >= 0 && e < a.num_experts;
  for (std::int64_t at = 0; at < size; ++at) {
    const auto column = column_of(c, at);
    const double weight = wide(c.weight[at]), bias = wide(c.bias[at]);
    want.mean.push_back(column.mean);
    want.var.push_back(column.var);
    for (const std::int64_t s : column.slots) {
      const double result = column.unit(s) * weight + bias;
      want.out[column.out(s)] += column.gate(s) * result;
      want.grad_bias[at] += column.gate(s) * column.grad(s);
      want.grad_weight[at] += column.gate(s) * column.grad(s) * column.unit(s);
      if (combined) want.grad_gate[s] += column.grad(s) * result;
    }
    const double share = column.slots.size() > 1 ? 1.0 / static_cast<double>(column.slots.size()) : 0;
    for (const std::int64_t s : column.slots) {
      const double mean = share * (want.grad_bias[at] + column.unit(s) * want.grad_weight[at]);
      const double scale = weight / std::sqrt(column.var + kNormEps);
      want.grad_y[s * a.dim + column.d] = scale * (column.gate(s) * column.grad(s) - mean);
    }
  }
  return want;
}

// What the kernels write, and their arguments; naive statistics go into the gradient.
template <typename T>
struct NormOutputs {
  using A = core::Accumulator<T>;
  std::vector<T> out, grad_y, grad_weight, grad_bias, grad_gate;
  std::vector<A> mean, var, given_mean, given_var;
  std::vector<std::int64_t> count;

  explicit NormOutputs(const NormResult& want)
      : out(unwritten<T>(std::ssize(want.out))),
        grad_y(unwritten<T>(std::ssize(want.grad_y))),
        grad_weight(unwritten<T>(std::ssize(want.mean))),
        grad_bias(grad_weight),
        grad_gate(unwritten<T>(std::ssize(want.grad_gate))),
        mean(unwritten<A>(std::ssize(want.mean))),
        var(mean),
        count(unwritten_index(std::ssize(want.count))) {
    for (const double value : want.mean) given_mean.push_back(static_cast<A>(value));
    for (const double value : want.var) given_var.push_back(static_cast<A>(value));
  }

  core::ExpertNorm<T> forward(const NormCase<T>& c) {
    return {c.slots,    c.weight.data(), c.bias.data(), c.running_mean.data(), c.running_var.data(), kNormEps,
            out.data(), mean.data(),     var.data(),    count.data()};
  }
  core::ExpertNormGrad<T> backward(const NormCase<T>& c, const NormResult& want) {
    return {c.slots,           c.grad_out.data(),  c.weight.data(),   c.bias.data(),
            given_mean.data(), given_var.data(),   want.count.data(), kNormEps,
            grad_y.data(),     grad_weight.data(), grad_bias.data(),  grad_gate.data()};
  }
};

// f(case, what it must give, room for what it gives, device) for every type and size, with gates and without.
template <typename F>
void for_each_case(const F& f) {
  Random random(21);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    for (const NormSizes& s : kSizes) {
      for (const bool combined : {true, false}) {
        for (const bool bad : good_and_bad()) {
          if (bad && s.rows < 2) continue;
          set_case(s.rows, " rows, ", s.experts, " experts, k ", s.k, ", dim ", s.dim, combined ? ", gates" : "",
                   bad ? ", bad indices" : "");
          NormCase<T> c(random, s, combined);
          if (bad) c.index[s.k] = -1;
          if (bad) c.index.back() = s.experts;
          const NormResult want = naive_norm(c);
          NormOutputs<T> got(want);
          Device device;
          f(c, want, got, device);
          CHECK(device.bad_index() == (bad ? s.k : -1));
        }
      }
    }
  });
}

GMOE_PARALLEL_TEST(expert_norm) {
  for_each_case([]<typename T>(const NormCase<T>& c, const NormResult& want, NormOutputs<T>& got, Device& device) {
    if constexpr (kOnDevice) {
      core::cuda::expert_norm(got.forward(c), device.call(core::cuda::expert_norm_workspace(c.slots)));
    } else {
      core::expert_norm(got.forward(c));
    }
    CHECK_EQUAL(got.count, want.count);
    CHECK_CLOSE(got.mean, want.mean);
    CHECK_CLOSE(got.var, want.var);
    CHECK_CLOSE(got.out, want.out);
  });
}

GMOE_PARALLEL_TEST(expert_norm_grad) {
  for_each_case([]<typename T>(const NormCase<T>& c, const NormResult& want, NormOutputs<T>& got, Device& device) {
    if constexpr (kOnDevice) {
      core::cuda::expert_norm_grad(got.backward(c, want), device.call(core::cuda::expert_norm_workspace(c.slots)));
    } else {
      core::expert_norm_grad(got.backward(c, want));
    }
    CHECK_CLOSE(got.grad_y, want.grad_y);
    CHECK_CLOSE(got.grad_weight, want.grad_weight);
    CHECK_CLOSE(got.grad_bias, want.grad_bias);
    CHECK_CLOSE(got.grad_gate, want.grad_gate);
  });
}

}  // namespace
}  // namespace gmoe::test
