// Routers and plans against loops over every row and expert.
#include <algorithm>
#include <cmath>
#include <span>

#include "core/cosine_topk.h"
#include "core/cpu/check_index.h"
#include "core/expert_plan.h"
#include "core/topk_softmax.h"
#include "tests/device.h"
#include "tests/naive_routers.h"

namespace gmoe::test {
namespace {

// Whole packs of 16 bytes and not, fewer and more experts than a pass, more rows than a block.
constexpr RouterSizes kCudaSizes[] = {{0, 3, 2, 5},   {1, 1, 1, 1},   {2, 3, 3, 0},   {7, 5, 5, 3},
                                      {37, 8, 3, 16}, {3, 67, 67, 2}, {5, 6, 4, 131}, {2, 130, 3, 264}};
constexpr std::span<const RouterSizes> kSizes = kOnDevice ? std::span<const RouterSizes>(kCudaSizes) : kRouterSizes;

// ---- kernels

template <typename T>
void run(const core::TopkSoftmax<T>& a, Device& device) {
  if constexpr (kOnDevice) {
    core::cuda::topk_softmax(a, device.call());
  } else {
    core::topk_softmax(a);
  }
}
template <typename T>
void run(const core::TopkSoftmaxGradLogits<T>& a, Device& device) {
  if constexpr (kOnDevice) {
    core::cuda::topk_softmax_grad_logits(a, device.call());
  } else {
    core::topk_softmax_grad_logits(a);
  }
}
template <typename T>
void run(const core::CosineTopkGradX<T>& a, Device& device) {
  if constexpr (kOnDevice) {
    core::cuda::cosine_topk_grad_x(a, device.call());
  } else {
    core::cosine_topk_grad_x(a);
  }
}
template <typename Index>
void run(const core::ExpertPlanSort<Index>& a, Device& device) {
  if constexpr (kOnDevice) {
    core::cuda::expert_plan(a, device.call(core::cuda::expert_plan_workspace(a.num_slots, a.num_experts)));
  } else {
    core::expert_plan(a);
  }
}

// What a router chose.
template <typename T>
struct Chosen {
  std::vector<T> gate;
  std::vector<std::int64_t> index;
};
template <typename T>
Chosen<T> topk_softmax(const RouterSizes& s, const std::vector<T>& logits) {
  Chosen<T> out{unwritten<T>(s.rows * s.k), unwritten_index(s.rows * s.k)};
  Device device;
  run(core::TopkSoftmax<T>{logits.data(), s.rows, s.experts, s.k, out.gate.data(), out.index.data()}, device);
  return out;
}
template <typename T>
Chosen<T> cosine_topk(const RouterSizes& s, const std::vector<T>& x, const std::vector<T>& memory, double eps) {
  Chosen<T> out{unwritten<T>(s.rows * s.k), unwritten_index(s.rows * s.k)};
  Device device;
  run(core::CosineTopk<T>{.x = x.data(),
                          .memory = memory.data(),
                          .num_rows = s.rows,
                          .dim = s.dim,
                          .num_experts = s.experts,
                          .k = s.k,
                          .eps = eps,
                          .gate = out.gate.data(),
                          .index = out.index.data()},
      device);
  return out;
}

template <typename T>
void put_nan(std::vector<T>& values, std::int64_t at) {
  values[static_cast<std::size_t>(at)] = core::narrow<T>(std::numeric_limits<core::Accumulator<T>>::quiet_NaN());
}

// f(random, sizes, bad) for every type and size.
template <typename F>
void for_each_case(std::uint64_t seed, const F& f) {
  Random random(seed);
  for_each_floating([&](auto type) {
    for (const RouterSizes& s : kSizes) {
      for (const bool bad : good_and_bad()) {
        if (bad && s.rows < 2) continue;
        set_router_case(s, bad ? ", bad indices" : "");
        f(random, s, bad, type);
      }
    }
  });
}

// ---- routers

GMOE_PARALLEL_TEST(topk_softmax) {
  for_each_case(1, []<typename T>(Random& random, const RouterSizes& s, bool, Type<T>) {
    std::vector<T> logits = logits_with_ties<T>(random, s);
    if (s.rows > 2) put_nan(logits, 2 * s.experts + s.experts / 2);
    const Chosen<T> got = topk_softmax(s, logits);
    const Routes want = naive_routes(s, wide(logits));
    CHECK_EQUAL(got.index, want.index);
    CHECK_CLOSE(got.gate, want.gate);
  });
}

GMOE_PARALLEL_TEST(topk_softmax_grad_logits) {
  for_each_case(2, []<typename T>(Random& random, const RouterSizes& s, bool bad, Type<T>) {
    const auto logits = random.values<T>(s.rows * s.experts), grad_gate = random.values<T>(s.rows * s.k);
    auto [gate, index] = topk_softmax(s, logits);
    if (bad) index[s.k] = -1;
    if (bad) index.back() = s.experts;
    std::vector<T> grad_logits = unwritten<T>(s.rows * s.experts);
    Device device;
    run(core::TopkSoftmaxGradLogits<T>{grad_gate.data(), gate.data(), index.data(), s.rows, s.experts, s.k,
                                       grad_logits.data()},
        device);
    CHECK(device.bad_index() == (bad ? s.k : -1));
    CHECK_CLOSE(grad_logits, naive_topk_softmax_grad_logits(s, grad_gate, gate, index));
  });
}

// A zero row, and NaN in another.
GMOE_PARALLEL_TEST(cosine_topk) {
  for_each_case(3, []<typename T>(Random& random, const RouterSizes& s, bool, Type<T>) {
    for (const double eps : {1e-12, 1.0}) {
      set_router_case(s, eps == 1.0 ? ", norms of at least 1" : "");
      std::vector<T> x = random.values<T>(s.rows * s.dim);
      const auto memory = random.values<T>(s.experts * s.dim);
      if (s.rows > 0) std::fill(x.begin(), x.begin() + s.dim, core::narrow<T>(core::Accumulator<T>{0}));
      if (s.rows > 2 && s.dim > 0) put_nan(x, 3 * s.dim - 1);
      const auto [gate, index] = cosine_topk(s, x, memory, eps);
      check_cosine_topk(s, naive_cosines(s, x, memory, eps), gate, index);
    }
  });
}

GMOE_SMALL_TEST(cosine_topk_goes_on_with_more_rows_than_its_blocks_take) {
  Random random(7);
  constexpr RouterSizes s{6400, 2, 1, 1};
  const auto x = random.values<float>(s.rows);
  const auto [gate, index] = cosine_topk<float>(s, x, {1, -1}, 1e-12);
  std::vector<std::int64_t> want;
  for (const float value : x) want.push_back(value < 0 ? 1 : 0);
  CHECK_EQUAL(index, want);
  CHECK_EQUAL(gate, std::vector<float>(gate.size(), 1.0f));
}

GMOE_SMALL_TEST(cosine_topk_gives_ties_to_the_lower_expert) {
  Random random(4);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    constexpr RouterSizes s{9, 11, 7, 37};
    const auto x = random.values<T>(s.rows * s.dim), row = random.values<T>(s.dim);
    std::vector<T> memory;
    for (std::int64_t e = 0; e < s.experts; ++e) memory.insert(memory.end(), row.begin(), row.end());
    const auto [gate, index] = cosine_topk(s, x, memory, 1e-12);
    std::vector<std::int64_t> want;
    for (std::int64_t i = 0; i < s.rows * s.k; ++i) want.push_back(i % s.k);
    CHECK_EQUAL(index, want);
    CHECK_CLOSE(gate, std::vector<double>(gate.size(), 1.0 / s.k));
  });
}

GMOE_SMALL_TEST(cosine_topk_keeps_the_order_of_ties_when_a_better_expert_comes) {
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    const auto value = [](double v) { return core::narrow<T>(static_cast<core::Accumulator<T>>(v)); };
    constexpr RouterSizes s{3, 6, 4, 2};
    const std::vector<T> x(s.rows * s.dim, value(1));
    std::vector<T> memory;
    for (std::int64_t e = 0; e < s.experts; ++e) memory.insert(memory.end(), {value(1), value(e == 4 ? 1 : 0)});
    CHECK_EQUAL(cosine_topk(s, x, memory, 1e-12).index,
                (std::vector<std::int64_t>{4, 0, 1, 2, 4, 0, 1, 2, 4, 0, 1, 2}));
  });
}

GMOE_PARALLEL_TEST(routers_choose_valid_experts_for_rows_with_nan) {
  Random random(5);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    constexpr RouterSizes s{kOnDevice ? 201 : 2001, 9, 4, 21};
    std::vector<T> x = random.values<T>(s.rows * s.dim), logits = random.values<T>(s.rows * s.experts);
    const auto memory = random.values<T>(s.experts * s.dim);
    for (std::int64_t i = 0; i < s.rows; i += 2) {
      put_nan(x, i * s.dim + random.below(s.dim));
      put_nan(logits, i * s.experts + random.below(s.experts));
    }
    for (const bool cosine : {true, false}) {
      set_case(cosine ? "cosine_topk" : "topk_softmax");
      const auto [gate, index] = cosine ? cosine_topk(s, x, memory, 1e-12) : topk_softmax(s, logits);
      check_choices(s, index);
      for (std::int64_t i = 0; i < s.rows * s.k; ++i) CHECK(std::isnan(wide(gate[i])) == (i / s.k % 2 == 0));
    }
  });
}

GMOE_PARALLEL_TEST(cosine_topk_grad_x) {
  for_each_case(6, []<typename T>(Random& random, const RouterSizes& s, bool bad, Type<T>) {
    for (const double eps : {1e-12, 1.0}) {
      // No zero rows: their gradient is as large as 1 / eps.
      const auto x = random.values<T>(s.rows * s.dim), memory = random.values<T>(s.experts * s.dim);
      const auto grad_gate = random.values<T>(s.rows * s.k);
      auto index = random.indices<std::int64_t>(s.rows * s.k, s.experts);
      if (bad) index[s.k] = s.experts;
      std::vector<T> grad_x = unwritten<T>(s.rows * s.dim);
      Device device;
      run(core::CosineTopkGradX<T>{.grad_gate = grad_gate.data(),
                                   .x = x.data(),
                                   .memory = memory.data(),
                                   .index = index.data(),
                                   .num_rows = s.rows,
                                   .dim = s.dim,
                                   .num_experts = s.experts,
                                   .k = s.k,
                                   .eps = eps,
                                   .grad_x = grad_x.data()},
          device);
      CHECK(device.bad_index() == (bad ? s.k : -1));
      CHECK_CLOSE(grad_x, naive_cosine_topk_grad_x(s, x, memory, grad_gate, index, eps));
    }
  });
}

// ---- plans

struct PlanSizes {
  std::int64_t rows, k, experts;
};
constexpr PlanSizes kCpuPlans[] = {{0, 2, 3}, {1, 1, 1}, {13, 2, 40}, {700, 3, 7}, {9001, 4, 5}, {3, 2, 40000}};
constexpr PlanSizes kCudaPlans[] = {{0, 1, 4},    {1, 1, 1},    {2, 1, 1},      {257, 1, 5},
                                    {150, 2, 67}, {5003, 1, 3}, {2100, 1, 1024}};
constexpr std::span<const PlanSizes> kPlans = kOnDevice ? std::span<const PlanSizes>(kCudaPlans) : kCpuPlans;

GMOE_PARALLEL_TEST(expert_plan) {
  Random random(8);
  enum class Variant { even, one, bad };
  for_each_index([&](auto type) {
    using Index = typename decltype(type)::type;
    for (const PlanSizes& p : kPlans) {
      const std::int64_t num_slots = p.rows * p.k;
      for (const Variant variant : {Variant::even, Variant::one, Variant::bad}) {
        const bool bad = variant == Variant::bad;
        if (bad && (!kOnDevice || num_slots < 2)) continue;
        set_case(p.rows, " rows, k ", p.k, ", ", p.experts, " experts, variant ", static_cast<int>(variant));
        // Some experts have no slots.
        auto index = random.indices<Index>(num_slots, std::max<std::int64_t>(1, p.experts - 1));
        if (variant == Variant::one) std::fill(index.begin(), index.end(), static_cast<Index>(p.experts / 2));
        if (bad) index[1] = static_cast<Index>(p.experts);
        if (bad) index.back() = -1;
        std::vector<std::int64_t> offsets = unwritten_index(p.experts + 1), order = unwritten_index(num_slots);
        Device device;
        run(core::ExpertPlanSort<Index>{index.data(), num_slots, p.experts, offsets.data(), order.data()}, device);
        CHECK(device.bad_index() == (bad ? 1 : -1));

        std::vector<std::int64_t> want_order, want_offsets(offsets.size(), 0);
        for (std::int64_t slot = 0; slot < num_slots; ++slot) {
          if (index[slot] < 0 || index[slot] >= p.experts) continue;
          want_order.push_back(slot);
          ++want_offsets[static_cast<std::size_t>(index[slot]) + 1];
        }
        std::stable_sort(want_order.begin(), want_order.end(),
                         [&](std::int64_t a, std::int64_t b) { return index[a] < index[b]; });
        want_order.resize(static_cast<std::size_t>(num_slots), -1);  // behind those of the experts nothing is written
        std::partial_sum(want_offsets.begin(), want_offsets.end(), want_offsets.begin());
        CHECK_EQUAL(offsets, want_offsets);
        CHECK_EQUAL(order, want_order);
        if (bad) continue;
        CHECK(core::find_plan_fault({offsets.data(), order.data(), p.experts, p.rows, p.k}).kind ==
              core::PlanFault::none);
      }
    }
  });
}

#ifndef GMOE_TEST_CUDA

GMOE_TEST(find_plan_fault_names_the_first_fault) {
  struct Case {
    std::vector<std::int64_t> offsets, order;
    core::PlanFault::Kind kind;
    std::int64_t position;
  };
  constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();
  const Case cases[] = {{{0, 2, 4}, {0, 3, 1, 2}, core::PlanFault::none, -1},
                        {{0, 0, 4}, {0, 1, 2, 3}, core::PlanFault::none, -1},
                        {{1, 2, 4}, {0, 1, 2, 3}, core::PlanFault::offsets, 0},
                        {{0, 5, 4}, {0, 1, 2, 3}, core::PlanFault::offsets, 2},
                        {{0, kHuge, -kHuge}, {0, 1, 2, 3}, core::PlanFault::offsets, 2},
                        {{0, 2, 3}, {0, 1, 2, 3}, core::PlanFault::offsets, 2},
                        {{0, 2, 4}, {0, 1, 2, 4}, core::PlanFault::range, 3},
                        {{0, 2, 4}, {0, -1, 2, 3}, core::PlanFault::range, 1},
                        {{0, 2, 4}, {-kHuge - 1, kHuge, 2, 3}, core::PlanFault::range, 0},
                        {{0, 2, 4}, {1, 0, 2, 3}, core::PlanFault::order, 1},
                        {{0, 2, 4}, {0, 1, 1, 3}, core::PlanFault::order, 2},
                        {{0, 4, 4}, {0, 1, 2, 2}, core::PlanFault::order, 3}};
  for (const Case& c : cases) {
    test::set_case("case ", &c - cases);
    const core::PlanFault fault = core::find_plan_fault({c.offsets.data(), c.order.data(), 2, 2, 2});
    CHECK(fault.kind == c.kind);
    CHECK(fault.position == c.position);
  }
}

#endif

}  // namespace
}  // namespace gmoe::test
