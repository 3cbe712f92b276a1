// expert_linear and its gradients against loops over every slot.
#include "core/expert_linear.h"

#include <cmath>
#include <limits>

#include "tests/check.h"
#include "tests/expert_linear_case.h"

namespace gmoe::test {
namespace {

using Sizes = ExpertLinearSizes;

// Experts of up to 8 rows take the path without packing. 256 is a block of depth, 8192 slots a part of grad_weight.
// With many zeros and 2^22 multiply-adds zeros are skipped.
constexpr Sizes kSmall[] = {{0, 2, 3, 5, 7},
                            {1, 1, 1, 1, 1},
                            {2, 3, 5, 0, 4},
                            {2, 3, 5, 4, 0},
                            {3, 2, 4, 67, 131},
                            {40, 3, 3, 13, 31},
                            {61, 2, 7, 17, 33, Load::some_empty}};
constexpr Sizes kLarge[] = {{301, 2, 4, 67, 45, Load::some_empty},
                            {300, 1, 3, 40, 64, Load::one_has_all},
                            {71, 1, 2, 531, 37},
                            {8301, 1, 2, 3, 5, Load::one_has_all},
                            {601, 2, 3, 41, 131, Load::even, 3},
                            {91, 2, 2, 211, 130, Load::even, 1},
                            {1100, 1, 2, 30, 133, Load::one_has_all, 5}};

// f(arguments) for every case; the large ones with every optional argument given, then with none.
template <typename F>
void for_each_case(const F& f) {
  Random random(1);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    const auto run = [&](const Sizes& s, bool bias, bool gate, bool source) {
      const ExpertLinearCase<T> a(random, s, bias, gate, source);
      set_case(describe(a));
      f(a);
    };
    for (const Sizes& s : kSmall) {
      for (int with = 0; with < 8; ++with) run(s, (with & 1) != 0, (with & 2) != 0, (with & 4) != 0);
    }
    for (const Sizes& s : kLarge) {
      run(s, true, true, true);
      run(s, false, false, false);
    }
  });
}

GMOE_PARALLEL_TEST(expert_linear) {
  for_each_case([]<typename T>(const ExpertLinearCase<T>& a) {
    const ExpertLinearResults want = naive(a);
    std::vector<T> y = unwritten<T>(static_cast<std::int64_t>(want.y.size()));
    core::expert_linear(a.call, y.data());
    CHECK_CLOSE(y, want.y);
  });
}

GMOE_PARALLEL_TEST(expert_linear_grad_x_gate) {
  for_each_case([]<typename T>(const ExpertLinearCase<T>& a) {
    const ExpertLinearResults want = naive(a);
    const bool gated = a.call.gate != nullptr;
    std::vector<T> grad_x = unwritten<T>(a.num_sources * a.sizes.in), grad_gate = unwritten<T>(gated ? a.slots : 0);
    core::expert_linear_grad_x_gate<T>(a.call, a.grad_y.data(), grad_x.data(), nullptr);
    CHECK_CLOSE(grad_x, want.grad_x);
    if (!gated) return;
    // The gradient of the gate does not read the gate, so it may be asked for without one.
    core::ExpertLinear<T> without_gate = a.call;
    without_gate.gate = nullptr;
    core::expert_linear_grad_x_gate<T>(without_gate, a.grad_y.data(), nullptr, grad_gate.data());
    CHECK_CLOSE(grad_gate, want.grad_gate);
    std::vector<T> both_x = unwritten<T>(a.num_sources * a.sizes.in), both_gate = unwritten<T>(a.slots);
    core::expert_linear_grad_x_gate(a.call, a.grad_y.data(), both_x.data(), both_gate.data());
    CHECK_CLOSE(both_x, want.grad_x);
    CHECK_CLOSE(both_gate, want.grad_gate);
  });
}

GMOE_PARALLEL_TEST(expert_linear_grad_weight) {
  for_each_case([]<typename T>(const ExpertLinearCase<T>& a) {
    std::vector<T> grad_weight = unwritten<T>(static_cast<std::int64_t>(a.weight.size()));
    core::expert_linear_grad_weight(a.call, a.grad_y.data(), grad_weight.data());
    CHECK_CLOSE(grad_weight, naive(a).grad_weight);
  });
}

// Zeros are skipped where that changes nothing: zero times infinity is NaN.
GMOE_PARALLEL_TEST(expert_linear_skips_no_zero_times_infinity) {
  Random random(2);
  const ExpertLinearCase<float> a(random, {600, 1, 2, 60, 130, Load::even, 3}, true, true, false);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> weight = a.weight, grad_y = a.grad_y;
  weight[0] = grad_y[0] = kInfinity;
  core::ExpertLinear<float> call = a.call;
  call.weight = weight.data();
  std::vector<float> y = unwritten<float>(600 * 130), grad_weight = unwritten<float>(2 * 130 * 60);
  core::expert_linear(call, y.data());
  core::expert_linear_grad_weight(call, grad_y.data(), grad_weight.data());
  bool met_zero = false;
  for (std::int64_t i = 0; i < 600; ++i) {
    const bool read = a.index[i] == 0;
    met_zero = met_zero || (read && a.x[i * 60] == 0);
    CHECK(read == !std::isfinite(y[i * 130]));
    CHECK(std::isfinite(y[i * 130 + 1]));
  }
  CHECK(met_zero);
  for (std::int64_t d = 0; d < 60; ++d) CHECK(!std::isfinite(grad_weight[a.index[0] * 130 * 60 + d]));
}

GMOE_PARALLEL_TEST(expert_linear_grad_bias) {
  for_each_case([]<typename T>(const ExpertLinearCase<T>& a) {
    std::vector<T> grad_bias = unwritten<T>(a.sizes.experts * a.sizes.out);
    core::expert_linear_grad_bias(a.call, a.grad_y.data(), grad_bias.data());
    CHECK_CLOSE(grad_bias, naive(a).grad_bias);
  });
}

}  // namespace
}  // namespace gmoe::test
