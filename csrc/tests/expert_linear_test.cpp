// expert_linear and its gradients against loops over every slot in double precision.
#include "core/expert_linear.h"

#include <cmath>
#include <limits>
#include <string>

#include "tests/device.h"
#include "tests/inputs.h"

namespace gmoe::test {
namespace {

enum class Load { even, some_empty, one_has_all };

struct Sizes {
  std::int64_t rows, k, experts, in, out;
  Load load = Load::even;
  std::int64_t kept_of_10 = 10;  // how many in ten values of x and grad_y are not zero
};

template <typename T>
struct Case {
  Case(Random& random, const Sizes& s, bool with_bias, bool with_gate, bool with_source)
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
    for (std::vector<T>* rows : {&x, &grad_y}) {
      for (T& value : *rows) {
        if (s.kept_of_10 < 10 && random.below(10) >= s.kept_of_10) value = core::narrow<T>(0);
      }
    }
    std::int64_t at = offsets[0] = 0;
    for (std::int64_t e = 0; e < s.experts; ++e) {
      for (std::int64_t slot = 0; slot < slots; ++slot) {
        if (index[slot] == e) order[at++] = slot;
      }
      offsets[e + 1] = at;
    }
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
  Case(const Case&) = delete;

  Sizes sizes;
  std::int64_t num_sources, slots;
  std::vector<T> x, weight, bias, gate, grad_y;
  std::vector<std::int64_t> source, index, offsets, order;
  core::ExpertLinear<T> call;
};

template <typename T>
std::string describe(const Case<T>& a) {
  const Sizes& s = a.sizes;
  return join(sizeof(T), " bytes, ", s.rows, " rows, k ", s.k, ", ", s.experts, " experts, ", s.in, " to ", s.out,
              a.call.bias != nullptr ? ", bias" : "", a.call.gate != nullptr ? ", gate" : "",
              a.call.source != nullptr ? ", source" : "");
}

// Everything at once, slot by slot, in double precision.
struct Results {
  std::vector<double> y, grad_x, grad_gate, grad_weight, grad_bias;
};

template <typename T>
Results naive(const Case<T>& a) {
  const Sizes& s = a.sizes;
  const bool gated = a.call.gate != nullptr;
  Results n{zeros((gated ? s.rows : a.slots) * s.out), zeros(a.num_sources * s.in), zeros(gated ? a.slots : 0),
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

// ---- cases

enum : unsigned { kBias = 1, kGate = 2, kSource = 4, kAll = 7 };

struct Given {
  Sizes sizes;
  unsigned with;
};

#ifdef GMOE_TEST_CUDA
// A tile has 96 rows, a batch 64 slots, a panel 32 columns and a block 4 of them, a stage 16 to 64 depths.
constexpr Given kCases[] = {
    {{0, 2, 3, 5, 7}, kBias | kGate},
    {{1, 1, 1, 1, 1}, 0},
    {{1, 1, 1, 1, 1}, kAll},
    {{2, 3, 5, 0, 4}, kBias | kGate},
    {{2, 3, 5, 4, 0}, kBias | kGate},
    {{3, 2, 4, 67, 131}, kBias | kSource},
    {{40, 3, 3, 13, 31}, kGate},
    {{37, 3, 41, 16, 8}, kBias | kGate},
    {{61, 2, 7, 17, 33, Load::some_empty}, kAll},
    {{131, 2, 4, 24, 136, Load::some_empty}, kBias | kGate},
    {{101, 1, 3, 72, 24, Load::one_has_all}, kBias},
    {{71, 3, 2, 8, 16, Load::one_has_all}, kBias | kGate},
    {{2, 600, 41, 3, 2}, kGate | kSource},
    {{9, 2, 2, 203, 130}, kBias | kGate},
};
std::vector<Given> cases() { return {std::begin(kCases), std::end(kCases)}; }
#else
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
// The small ones with every choice of optional arguments, the large ones with all and with none.
std::vector<Given> cases() {
  std::vector<Given> all;
  for (const Sizes& s : kSmall) {
    for (unsigned with = 0; with <= kAll; ++with) all.push_back({s, with});
  }
  for (const Sizes& s : kLarge) {
    for (const unsigned with : {unsigned{kAll}, 0u}) all.push_back({s, with});
  }
  return all;
}
#endif

template <typename T>
Case<T> make(Random& random, const Given& c) {
  return Case<T>(random, c.sizes, (c.with & kBias) != 0, (c.with & kGate) != 0, (c.with & kSource) != 0);
}

// f(arguments) for every case and type.
template <typename F>
void for_each_case(const F& f) {
  Random random(1);
  for_each_floating([&](auto type) {
    for (const Given& c : cases()) {
      const auto a = make<typename decltype(type)::type>(random, c);
      set_case(describe(a));
      f(a);
    }
  });
}

// ---- kernels: tf32 is for a device alone

template <typename T>
void run(const core::ExpertLinear<T>& a, T* y, Device& device, [[maybe_unused]] bool tf32 = false) {
  if constexpr (kOnDevice) {
    core::cuda::expert_linear(a, y, tf32, device.call(core::cuda::expert_linear_workspace(a)));
  } else {
    core::expert_linear(a, y);
  }
}
template <typename T>
void run_grad_x_gate(const core::ExpertLinear<T>& a, const T* grad_y, T* grad_x, T* grad_gate, Device& device,
                     [[maybe_unused]] bool tf32 = false) {
  if constexpr (kOnDevice) {
    const auto bytes = core::cuda::expert_linear_grad_x_gate_workspace(a, grad_x != nullptr, grad_gate != nullptr);
    core::cuda::expert_linear_grad_x_gate(a, grad_y, grad_x, grad_gate, tf32, device.call(bytes));
  } else {
    core::expert_linear_grad_x_gate(a, grad_y, grad_x, grad_gate);
  }
}
template <typename T>
void run_grad_weight(const core::ExpertLinear<T>& a, const T* grad_y, T* grad_weight, Device& device,
                     [[maybe_unused]] bool tf32 = false) {
  if constexpr (kOnDevice) {
    core::cuda::expert_linear_grad_weight(a, grad_y, grad_weight, tf32,
                                          device.call(core::cuda::expert_linear_grad_weight_workspace(a)));
  } else {
    core::expert_linear_grad_weight(a, grad_y, grad_weight);
  }
}
template <typename T>
void run_grad_bias(const core::ExpertLinear<T>& a, const T* grad_y, T* grad_bias, Device& device) {
  if constexpr (kOnDevice) {
    core::cuda::expert_linear_grad_bias(a, grad_y, grad_bias,
                                        device.call(core::cuda::expert_linear_grad_bias_workspace(a)));
  } else {
    core::expert_linear_grad_bias(a, grad_y, grad_bias);
  }
}

// ---- checks

// Factors of tf32 have as many bits as those of half precision, and errors of a row's products may add up.
template <typename T>
double tolerance(bool tf32) {
  return tf32 ? 2e-3 : 2 * kTolerance<T>;
}
#define CHECK_PRODUCTS(got, want, tf32) check_close(__FILE__, __LINE__, #got, got, want, tolerance<T>(tf32))

template <typename T>
void check_forward(const Case<T>& a, bool tf32 = false) {
  const Results want = naive(a);
  std::vector<T> y = unwritten<T>(std::ssize(want.y));
  Device device;
  run(a.call, y.data(), device, tf32);
  CHECK(device.bad_index() == -1);
  CHECK_PRODUCTS(y, want.y, tf32);
}

template <typename T>
void check_grad_x_gate(const Case<T>& a, const core::ExpertLinear<T>& call, const Results& want, bool with_x,
                       bool with_gate, bool tf32 = false) {
  std::vector<T> grad_x = unwritten<T>(a.num_sources * a.sizes.in), grad_gate = unwritten<T>(a.slots);
  Device device;
  run_grad_x_gate(call, a.grad_y.data(), with_x ? grad_x.data() : nullptr, with_gate ? grad_gate.data() : nullptr,
                  device, tf32);
  CHECK(device.bad_index() == -1);
  if (with_x) CHECK_PRODUCTS(grad_x, want.grad_x, tf32);
  if (with_gate) CHECK_PRODUCTS(grad_gate, want.grad_gate, tf32);
}

template <typename T>
void check_grad_weight_and_bias(const Case<T>& a, bool tf32 = false) {
  const Results want = naive(a);
  std::vector<T> grad_weight = unwritten<T>(std::ssize(a.weight));
  std::vector<T> grad_bias = unwritten<T>(a.sizes.experts * a.sizes.out);
  Device device;
  run_grad_weight(a.call, a.grad_y.data(), grad_weight.data(), device, tf32);
  CHECK(device.bad_index() == -1);
  CHECK_PRODUCTS(grad_weight, want.grad_weight, tf32);
  run_grad_bias(a.call, a.grad_y.data(), grad_bias.data(), device);
  CHECK(device.bad_index() == -1);
  CHECK_CLOSE(grad_bias, want.grad_bias);
}

// ---- tests

GMOE_PARALLEL_TEST(expert_linear) {
  for_each_case([](const auto& a) { check_forward(a); });
}

GMOE_PARALLEL_TEST(expert_linear_grad_x_gate) {
  for_each_case([]<typename T>(const Case<T>& a) {
    const Results want = naive(a);
    check_grad_x_gate(a, a.call, want, true, false);
    if (a.call.gate == nullptr) return;
    check_grad_x_gate(a, a.call, want, true, true);
    // The gradient of the gate does not read the gate, so it may be asked for without one.
    core::ExpertLinear<T> without_gate = a.call;
    without_gate.gate = nullptr;
    check_grad_x_gate(a, without_gate, want, false, true);
  });
}

GMOE_PARALLEL_TEST(expert_linear_grad_weight_and_bias) {
  for_each_case([](const auto& a) { check_grad_weight_and_bias(a); });
}

// Zeros are skipped where that changes nothing: zero times infinity is NaN.
GMOE_PARALLEL_TEST(expert_linear_skips_no_zero_times_infinity) {
  Random random(2);
  constexpr Sizes s{kOnDevice ? 60 : 600, 1, 2, 60, 130, Load::even, 3};
  const Case<float> a(random, s, true, true, false);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> weight = a.weight, grad_y = a.grad_y;
  weight[0] = grad_y[0] = kInfinity;
  core::ExpertLinear<float> call = a.call;
  call.weight = weight.data();
  std::vector<float> y = unwritten<float>(s.rows * s.out), grad_weight = unwritten<float>(2 * s.out * s.in);
  Device device;
  run(call, y.data(), device);
  run_grad_weight(call, grad_y.data(), grad_weight.data(), device);
  bool met_zero = false;
  for (std::int64_t i = 0; i < s.rows; ++i) {
    const bool read = a.index[i] == 0;
    met_zero = met_zero || (read && a.x[i * s.in] == 0);
    CHECK(read == !std::isfinite(y[i * s.out]));
    CHECK(std::isfinite(y[i * s.out + 1]));
  }
  CHECK(met_zero);
  for (std::int64_t d = 0; d < s.in; ++d) CHECK(!std::isfinite(grad_weight[a.index[0] * s.out * s.in + d]));
}

#ifdef GMOE_TEST_CUDA

GMOE_PARALLEL_TEST(expert_linear_grad_x_of_more_sources_than_a_digit_has) {
  Random random(3);
  const Case<float> a(random, {2111, 1, 2, 3, 2}, false, true, true);
  check_grad_x_gate(a, a.call, naive(a), true, false);
}

// Parts have 512 slots, lists 256; experts are not cut where they alone give blocks enough.
GMOE_PARALLEL_TEST(expert_linear_grad_weight_of_many_slots) {
  Random random(4);
  for (const Sizes& s : {Sizes{1400, 1, 3, 8, 4, Load::some_empty}, {300, 1, 1024, 4, 2}}) {
    const Case<float> a(random, s, false, true, false);
    set_case(describe(a));
    check_grad_weight_and_bias(a);
  }
}

GMOE_PARALLEL_TEST(expert_linear_by_tf32) {
  Random random(5);
  for (const Given& c : cases()) {
    const auto a = make<float>(random, c);
    set_case(describe(a));
    check_forward(a, true);
    check_grad_x_gate(a, a.call, naive(a), true, a.call.gate != nullptr, true);
    check_grad_weight_and_bias(a, true);
  }
}

GMOE_PARALLEL_TEST(expert_linear_by_tf32_rounds_factors_to_ten_bits_of_fraction) {
  Random random(6);
  Case<float> a(random, {4, 1, 1, 1, 1}, false, false, false);
  a.weight[0] = 1;
  a.x = {1 + 0x1p-12f, 1 + 0x1p-11f, -1 - 0x1p-11f, std::numeric_limits<float>::infinity()};
  for (const bool tf32 : {false, true}) {
    std::vector<float> y = unwritten<float>(a.sizes.rows);
    Device device;
    run(a.call, y.data(), device, tf32);
    CHECK_EQUAL(y, (tf32 ? std::vector<float>{1, 1 + 0x1p-10f, -1 - 0x1p-10f, a.x[3]} : a.x));
  }
}

// What is wrong with the arguments, and the word that it leaves.
struct Damage {
  const char* name;
  void (*make)(Case<float>& a);
  std::int64_t (*noted)(const Case<float>& a);
};
constexpr auto kNotesPlan = [](const Case<float>& a) { return a.slots; };
constexpr Damage kDamages[] = {
    {", a slot twice", [](auto& a) { a.order[3] = a.order[a.slots - 1]; }, kNotesPlan},
    {", a slot past the end", [](auto& a) { a.order[a.slots / 2] = a.slots; }, kNotesPlan},
    {", a negative slot", [](auto& a) { a.order[1] = -5; }, kNotesPlan},
    {", offsets that stop early", [](auto& a) { a.offsets.back() -= 3; }, kNotesPlan},
    {", offsets past the end", [](auto& a) { a.offsets[1] = 1 << 30; }, kNotesPlan},
    {", a negative offset", [](auto& a) { a.offsets[2] = -(1 << 30); }, kNotesPlan},
    {", bad sources",
     [](auto& a) {
       a.source[70] = a.num_sources;
       a.source[41] = -1;
     },
     [](const auto&) { return std::int64_t{41}; }},
};

template <typename F>
void for_each_damage(const F& f) {
  for (const Damage& damage : kDamages) {
    Random random(2);
    Case<float> a(random, {101, 2, 4, 9, 11}, true, true, true);
    damage.make(a);
    set_case(describe(a), damage.name);
    f(a, damage.noted(a));
  }
}

GMOE_PARALLEL_TEST(expert_linear_follows_no_bad_index) {
  for_each_damage([](const Case<float>& a, std::int64_t noted) {
    std::vector<float> y(static_cast<std::size_t>(a.sizes.rows * a.sizes.out));
    std::vector<float> grad_x(static_cast<std::size_t>(a.num_sources * a.sizes.in));
    std::vector<float> grad_gate(static_cast<std::size_t>(a.slots));
    std::vector<float> grad_weight(a.weight.size()), grad_bias(a.bias.size());
    Device device;
    run(a.call, y.data(), device);
    CHECK(device.bad_index() == noted);
    run_grad_x_gate(a.call, a.grad_y.data(), grad_x.data(), grad_gate.data(), device);
    CHECK(device.bad_index() == noted);
    run_grad_weight(a.call, a.grad_y.data(), grad_weight.data(), device);
    run_grad_bias(a.call, a.grad_y.data(), grad_bias.data(), device);
  });
}

#endif

}  // namespace
}  // namespace gmoe::test
