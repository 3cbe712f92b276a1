// CUDA expert_linear and its gradients against loops over every slot.
#include "core/expert_linear.h"

#include "tests/cuda/device.h"
#include "tests/expert_linear_case.h"

namespace gmoe::test {
namespace {

namespace cuda = core::cuda;

enum : unsigned { kBias = 1, kGate = 2, kSource = 4 };

struct Case {
  ExpertLinearSizes sizes;
  unsigned with;
};
// A tile has 96 rows, a batch 64 slots, a panel 32 columns and a block 4 of them, a stage 16 to 64 depths.
constexpr Case kCases[] = {
    {{0, 2, 3, 5, 7}, kBias | kGate},
    {{1, 1, 1, 1, 1}, 0},
    {{1, 1, 1, 1, 1}, kBias | kGate | kSource},
    {{2, 3, 5, 0, 4}, kBias | kGate},
    {{2, 3, 5, 4, 0}, kBias | kGate},
    {{3, 2, 4, 67, 131}, kBias | kSource},
    {{40, 3, 3, 13, 31}, kGate},
    {{37, 3, 41, 16, 8}, kBias | kGate},
    {{61, 2, 7, 17, 33, Load::some_empty}, kBias | kGate | kSource},
    {{197, 2, 4, 40, 152, Load::some_empty}, kBias | kGate},
    {{131, 1, 3, 72, 24, Load::one_has_all}, kBias},
    {{71, 3, 2, 8, 16, Load::one_has_all}, kBias | kGate},
    {{2, 600, 41, 3, 2}, kGate | kSource},
    {{9, 2, 2, 523, 130}, kBias | kGate},
};

// f(arguments) for every case and type.
template <typename F>
void for_each_case(const F& f) {
  Random random(1);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    for (const Case& c : kCases) {
      const ExpertLinearCase<T> a(random, c.sizes, (c.with & kBias) != 0, (c.with & kGate) != 0,
                                  (c.with & kSource) != 0);
      set_case(describe(a));
      f(a);
    }
  });
}

// Factors of tf32 have as many bits as those of half precision, and errors of a row's products may add up.
template <typename T>
double tolerance(bool tf32) {
  return tf32 ? 2e-3 : 2 * kTolerance<T>;
}
#define CHECK_PRODUCTS(got, want, tf32) check_close(__FILE__, __LINE__, #got, got, want, tolerance<T>(tf32))

template <typename T>
void check_forward(const ExpertLinearCase<T>& a, bool tf32) {
  const ExpertLinearResults want = naive(a);
  std::vector<T> y = unwritten<T>(static_cast<std::int64_t>(want.y.size()));
  Device device;
  cuda::expert_linear(a.call, y.data(), tf32, device.call(cuda::expert_linear_workspace(a.call)));
  CHECK(device.bad_index() == -1);
  CHECK_PRODUCTS(y, want.y, tf32);
}

GMOE_PARALLEL_TEST(expert_linear) {
  for_each_case([](const auto& a) { check_forward(a, false); });
}

template <typename T>
void check_grad_x_gate(const ExpertLinearCase<T>& a, const core::ExpertLinear<T>& call, const ExpertLinearResults& want,
                       bool with_x, bool with_gate, bool tf32 = false) {
  std::vector<T> grad_x = unwritten<T>(with_x ? a.num_sources * a.sizes.in : 0);
  std::vector<T> grad_gate = unwritten<T>(with_gate ? a.slots : 0);
  Device device;
  cuda::expert_linear_grad_x_gate(call, a.grad_y.data(), with_x ? grad_x.data() : nullptr,
                                  with_gate ? grad_gate.data() : nullptr, tf32,
                                  device.call(cuda::expert_linear_grad_x_gate_workspace(call, with_x, with_gate)));
  CHECK(device.bad_index() == -1);
  if (with_x) CHECK_PRODUCTS(grad_x, want.grad_x, tf32);
  if (with_gate) CHECK_PRODUCTS(grad_gate, want.grad_gate, tf32);
}

GMOE_PARALLEL_TEST(expert_linear_grad_x_gate) {
  for_each_case([]<typename T>(const ExpertLinearCase<T>& a) {
    const ExpertLinearResults want = naive(a);
    check_grad_x_gate(a, a.call, want, true, false);
    if (a.call.gate == nullptr) return;
    check_grad_x_gate(a, a.call, want, true, true);
    // The gradient of the gate does not read the gate, so it may be asked for without one.
    core::ExpertLinear<T> without_gate = a.call;
    without_gate.gate = nullptr;
    check_grad_x_gate(a, without_gate, want, false, true);
  });
}

GMOE_PARALLEL_TEST(expert_linear_grad_x_of_more_sources_than_a_digit_has) {
  Random random(3);
  const ExpertLinearCase<float> a(random, {2111, 1, 2, 3, 2}, false, true, true);
  check_grad_x_gate(a, a.call, naive(a), true, false);
}

template <typename T>
void check_grad_weight_and_bias(const ExpertLinearCase<T>& a, bool tf32 = false) {
  const ExpertLinearResults want = naive(a);
  std::vector<T> grad_weight = unwritten<T>(static_cast<std::int64_t>(a.weight.size()));
  std::vector<T> grad_bias = unwritten<T>(a.sizes.experts * a.sizes.out);
  Device device;
  cuda::expert_linear_grad_weight(a.call, a.grad_y.data(), grad_weight.data(), tf32,
                                  device.call(cuda::expert_linear_grad_weight_workspace(a.call)));
  CHECK(device.bad_index() == -1);
  CHECK_PRODUCTS(grad_weight, want.grad_weight, tf32);
  cuda::expert_linear_grad_bias(a.call, a.grad_y.data(), grad_bias.data(),
                                device.call(cuda::expert_linear_grad_bias_workspace(a.call)));
  CHECK(device.bad_index() == -1);
  CHECK_CLOSE(grad_bias, want.grad_bias);
}

GMOE_PARALLEL_TEST(expert_linear_grad_weight_and_bias) {
  for_each_case([](const auto& a) { check_grad_weight_and_bias(a); });
}

// Parts have 512 slots, lists 256; experts are not cut where they alone give blocks enough.
GMOE_PARALLEL_TEST(expert_linear_grad_weight_of_many_slots) {
  Random random(4);
  for (const ExpertLinearSizes& s : {ExpertLinearSizes{1400, 1, 3, 8, 4, Load::some_empty}, {300, 1, 1024, 4, 2}}) {
    const ExpertLinearCase<float> a(random, s, false, true, false);
    set_case(describe(a));
    check_grad_weight_and_bias(a);
  }
}

GMOE_PARALLEL_TEST(expert_linear_by_tf32) {
  Random random(5);
  for (const Case& c : kCases) {
    const ExpertLinearCase<float> a(random, c.sizes, (c.with & kBias) != 0, (c.with & kGate) != 0,
                                    (c.with & kSource) != 0);
    set_case(describe(a));
    check_forward(a, true);
    check_grad_x_gate(a, a.call, naive(a), true, a.call.gate != nullptr, true);
    check_grad_weight_and_bias(a, true);
  }
}

GMOE_PARALLEL_TEST(expert_linear_by_tf32_rounds_factors_to_ten_bits_of_fraction) {
  Random random(6);
  ExpertLinearCase<float> a(random, {4, 1, 1, 1, 1}, false, false, false);
  a.weight[0] = 1;
  a.x = {1 + 0x1p-12f, 1 + 0x1p-11f, -1 - 0x1p-11f, std::numeric_limits<float>::infinity()};
  for (const bool tf32 : {false, true}) {
    std::vector<float> y = unwritten<float>(a.sizes.rows);
    Device device;
    cuda::expert_linear(a.call, y.data(), tf32, device.call(cuda::expert_linear_workspace(a.call)));
    CHECK_EQUAL(y, (tf32 ? std::vector<float>{1, 1 + 0x1p-10f, -1 - 0x1p-10f, a.x[3]} : a.x));
  }
}

// What is wrong with the arguments, and the word that it leaves.
struct Damage {
  const char* name;
  void (*make)(ExpertLinearCase<float>& a);
  std::int64_t (*noted)(const ExpertLinearCase<float>& a);
};
constexpr auto kNotesPlan = [](const ExpertLinearCase<float>& a) { return a.slots; };
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
    ExpertLinearCase<float> a(random, {101, 2, 4, 9, 11}, true, true, true);
    damage.make(a);
    set_case(describe(a), damage.name);
    f(a, damage.noted(a));
  }
}

GMOE_PARALLEL_TEST(expert_linear_follows_no_bad_index) {
  for_each_damage([](const ExpertLinearCase<float>& a, std::int64_t noted) {
    std::vector<float> y(static_cast<std::size_t>(a.sizes.rows * a.sizes.out));
    Device device;
    cuda::expert_linear(a.call, y.data(), false, device.call(cuda::expert_linear_workspace(a.call)));
    CHECK(device.bad_index() == noted);
    std::vector<float> grad_x(static_cast<std::size_t>(a.num_sources * a.sizes.in));
    std::vector<float> grad_gate(static_cast<std::size_t>(a.slots));
    cuda::expert_linear_grad_x_gate(a.call, a.grad_y.data(), grad_x.data(), grad_gate.data(), false,
                                    device.call(cuda::expert_linear_grad_x_gate_workspace(a.call, true, true)));
    CHECK(device.bad_index() == noted);
    std::vector<float> grad_weight(a.weight.size()), grad_bias(a.bias.size());
    cuda::expert_linear_grad_weight(a.call, a.grad_y.data(), grad_weight.data(), false,
                                    device.call(cuda::expert_linear_grad_weight_workspace(a.call)));
    cuda::expert_linear_grad_bias(a.call, a.grad_y.data(), grad_bias.data(),
                                  device.call(cuda::expert_linear_grad_bias_workspace(a.call)));
  });
}

}  // namespace
}  // namespace gmoe::test
