// expert_linear and its gradients against loops over every slot.
#include <algorithm>

#include "core/cpu/expert_linear.h"
#include "core/cpu/expert_plan.h"
#include "tests/check.h"
#include "tests/inputs.h"

namespace gmoe::test {
namespace {

enum class Load { even, some_empty, one_has_all };

struct Sizes {
  std::int64_t rows, k, experts, in, out;
  Load load = Load::even;
};

// Experts of up to 8 rows take the path without packing. 256 is a block of depth, 8192 slots a part of grad_weight.
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
                            {8301, 1, 2, 3, 5, Load::one_has_all}};

template <typename T>
struct Arguments {
  Arguments(Random& random, const Sizes& s, bool with_bias, bool with_gate, bool with_source)
      : sizes(s),
        num_sources(with_source ? s.rows / 2 + 1 : s.rows),
        slots(s.rows * s.k),
        x(random.values<T>(num_sources * s.in)),
        weight(random.values<T>(s.experts * s.out * s.in)),
        bias(random.values<T>(with_bias ? s.experts * s.out : 0)),
        gate(random.values<T>(with_gate ? slots : 0)),
        grad_y(random.values<T>((with_gate ? s.rows : slots) * s.out)),
        source(random.indices<std::int64_t>(with_source ? slots : 0, num_sources)),
        index(random.indices<std::int64_t>(slots, s.experts)),
        offsets(unwritten_index(s.experts + 1)),
        order(unwritten_index(slots)) {
    for (std::int64_t& e : index) {
      if (s.load == Load::some_empty && e % 2 == 1) e -= 1;
      if (s.load == Load::one_has_all) e = s.experts - 1;
    }
    core::expert_plan<std::int64_t>({index.data(), slots, s.experts, offsets.data(), order.data()});
    call = {x.data(),
            weight.data(),
            with_bias ? bias.data() : nullptr,
            with_gate ? gate.data() : nullptr,
            {offsets.data(), order.data(), s.experts, s.rows, s.k},
            with_source ? source.data() : nullptr,
            num_sources,
            s.in,
            s.out};
  }
  Arguments(const Arguments&) = delete;

  Sizes sizes;
  std::int64_t num_sources, slots;
  std::vector<T> x, weight, bias, gate, grad_y;
  std::vector<std::int64_t> source, index, offsets, order;
  core::ExpertLinear<T> call;
};

// f(arguments) for every case; the large ones with every optional argument given, then with none.
template <typename F>
void for_each_case(const F& f) {
  Random random(1);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    const auto run = [&](const Sizes& s, bool bias, bool gate, bool source) {
      set_case(sizeof(T), " bytes, ", s.rows, " rows, k ", s.k, ", ", s.experts, " experts, ", s.in, " to ", s.out,
               bias ? ", bias" : "", gate ? ", gate" : "", source ? ", source" : "");
      f(Arguments<T>(random, s, bias, gate, source));
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

// Everything at once, slot by slot, in double precision.
struct Naive {
  std::vector<double> y, grad_x, grad_gate, grad_weight, grad_bias;
};

template <typename T>
Naive naive(const Arguments<T>& a) {
  const Sizes& s = a.sizes;
  const bool gated = a.call.gate != nullptr;
  Naive n{zeros((gated ? s.rows : a.slots) * s.out), zeros(a.num_sources * s.in), zeros(gated ? a.slots : 0),
          zeros(s.experts * s.out * s.in), zeros(s.experts * s.out)};
  for (std::int64_t slot = 0; slot < a.slots; ++slot) {
    const std::int64_t e = a.index[slot], row = gated ? slot / s.k : slot;
    const std::int64_t source = a.call.source != nullptr ? a.source[slot] : slot / s.k;
    const double gate = gated ? wide(a.gate[slot]) : 1;
    for (std::int64_t f = 0; f < s.out; ++f) {
      const T* w = a.weight.data() + (e * s.out + f) * s.in;
      const T* x = a.x.data() + source * s.in;
      const double grad = wide(a.grad_y[row * s.out + f]);
      double z = a.call.bias != nullptr ? wide(a.bias[e * s.out + f]) : 0;
      for (std::int64_t d = 0; d < s.in; ++d) {
        z += wide(w[d]) * wide(x[d]);
        n.grad_x[source * s.in + d] += gate * grad * wide(w[d]);
        n.grad_weight[(e * s.out + f) * s.in + d] += gate * grad * wide(x[d]);
      }
      n.y[row * s.out + f] += gate * z;
      n.grad_bias[e * s.out + f] += gate * grad;
      if (gated) n.grad_gate[slot] += grad * z;
    }
  }
  return n;
}

GMOE_PARALLEL_TEST(expert_linear) {
  for_each_case([]<typename T>(const Arguments<T>& a) {
    const Naive want = naive(a);
    std::vector<T> y = unwritten<T>(static_cast<std::int64_t>(want.y.size()));
    core::expert_linear(a.call, y.data());
    CHECK_CLOSE(y, want.y);
  });
}

GMOE_PARALLEL_TEST(expert_linear_grad_x_gate) {
  for_each_case([]<typename T>(const Arguments<T>& a) {
    const Naive want = naive(a);
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
  for_each_case([]<typename T>(const Arguments<T>& a) {
    std::vector<T> grad_weight = unwritten<T>(static_cast<std::int64_t>(a.weight.size()));
    core::expert_linear_grad_weight(a.call, a.grad_y.data(), grad_weight.data());
    CHECK_CLOSE(grad_weight, naive(a).grad_weight);
  });
}

GMOE_PARALLEL_TEST(expert_linear_grad_bias) {
  for_each_case([]<typename T>(const Arguments<T>& a) {
    std::vector<T> grad_bias = unwritten<T>(a.sizes.experts * a.sizes.out);
    core::expert_linear_grad_bias(a.call, a.grad_y.data(), grad_bias.data());
    CHECK_CLOSE(grad_bias, naive(a).grad_bias);
  });
}

}  // namespace
}  // namespace gmoe::test
