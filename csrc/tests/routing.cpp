// Routers, plans and the moving average of the memory against loops over every row and expert.
#include <algorithm>
#include <cmath>

#include "core/cosine_topk.h"
#include "core/cosine_topk_update.h"
#include "core/cpu/check_index.h"
#include "core/expert_plan.h"
#include "core/memory_update.h"
#include "core/topk_softmax.h"
#include "tests/check.h"
#include "tests/inputs.h"
#include "tests/naive_memory.h"
#include "tests/naive_routers.h"

namespace gmoe::test {
namespace {

constexpr RouterSizes kSizes[] = {{0, 3, 2, 5},      {1, 1, 1, 1},    {2, 3, 3, 0},    {7, 5, 5, 3},
                                  {63, 8, 3, 17},    {5, 67, 67, 2},  {11, 4, 1, 131}, {61, 9, 2, 512},
                                  {1501, 13, 4, 31}, {1500, 2, 1, 64}};

GMOE_PARALLEL_TEST(topk_softmax) {
  Random random(1);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    for (const RouterSizes& s : kSizes) {
      set_router_case(s);
      const std::vector<T> logits = logits_with_ties<T>(random, s);
      std::vector<T> gate = unwritten<T>(s.rows * s.k);
      std::vector<std::int64_t> index = unwritten_index(s.rows * s.k);
      core::topk_softmax<T>({logits.data(), s.rows, s.experts, s.k, gate.data(), index.data()});
      const Routes want = naive_routes(s, wide(logits));
      CHECK_EQUAL(index, want.index);
      CHECK_CLOSE(gate, want.gate);
    }
  });
}

GMOE_PARALLEL_TEST(topk_softmax_grad_logits) {
  Random random(2);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    for (const RouterSizes& s : kSizes) {
      set_router_case(s);
      const auto logits = random.values<T>(s.rows * s.experts), grad_gate = random.values<T>(s.rows * s.k);
      std::vector<T> gate = unwritten<T>(s.rows * s.k), grad_logits = unwritten<T>(s.rows * s.experts);
      std::vector<std::int64_t> index = unwritten_index(s.rows * s.k);
      core::topk_softmax<T>({logits.data(), s.rows, s.experts, s.k, gate.data(), index.data()});
      core::topk_softmax_grad_logits<T>(
          {grad_gate.data(), gate.data(), index.data(), s.rows, s.experts, s.k, grad_logits.data()});
      CHECK_CLOSE(grad_logits, naive_topk_softmax_grad_logits(s, grad_gate, gate, index));
    }
  });
}

GMOE_PARALLEL_TEST(cosine_topk) {
  Random random(3);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    using A = core::Accumulator<T>;
    for (const RouterSizes& s : kSizes) {
      for (const double eps : {1e-12, 1.0}) {
        set_router_case(s, eps == 1.0 ? ", norms of at least 1" : "");
        std::vector<T> x = random.values<T>(s.rows * s.dim);
        const auto memory = random.values<T>(s.experts * s.dim);
        if (s.rows > 0) std::fill(x.begin(), x.begin() + s.dim, core::narrow<T>(A{0}));
        std::vector<T> gate = unwritten<T>(s.rows * s.k);
        std::vector<std::int64_t> index = unwritten_index(s.rows * s.k);
        core::cosine_topk<T>({x.data(), memory.data(), s.rows, s.dim, s.experts, s.k, eps, gate.data(), index.data()});
        check_cosine_topk(s, naive_cosines(s, x, memory, eps), gate, index);
      }
    }
  });
}

GMOE_TEST(cosine_topk_gives_ties_to_the_lower_expert) {
  Random random(4);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    constexpr RouterSizes s{9, 11, 7, 37};
    const auto x = random.values<T>(s.rows * s.dim), row = random.values<T>(s.dim);
    std::vector<T> memory, gate = unwritten<T>(s.rows * s.k);
    for (std::int64_t e = 0; e < s.experts; ++e) memory.insert(memory.end(), row.begin(), row.end());
    std::vector<std::int64_t> index = unwritten_index(s.rows * s.k), want;
    core::cosine_topk<T>({x.data(), memory.data(), s.rows, s.dim, s.experts, s.k, 1e-12, gate.data(), index.data()});
    for (std::int64_t i = 0; i < s.rows * s.k; ++i) want.push_back(i % s.k);
    CHECK_EQUAL(index, want);
    CHECK_CLOSE(gate, std::vector<double>(gate.size(), 1.0 / s.k));
  });
}

GMOE_TEST(cosine_topk_keeps_the_order_of_ties_when_a_better_expert_comes) {
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    const auto value = [](double v) { return core::narrow<T>(static_cast<core::Accumulator<T>>(v)); };
    constexpr RouterSizes s{3, 6, 4, 2};
    const std::vector<T> x(s.rows * s.dim, value(1));
    std::vector<T> memory, gate = unwritten<T>(s.rows * s.k);
    for (std::int64_t e = 0; e < s.experts; ++e) memory.insert(memory.end(), {value(1), value(e == 4 ? 1 : 0)});
    std::vector<std::int64_t> index = unwritten_index(s.rows * s.k);
    core::cosine_topk<T>({x.data(), memory.data(), s.rows, s.dim, s.experts, s.k, 1e-12, gate.data(), index.data()});
    CHECK_EQUAL(index, (std::vector<std::int64_t>{4, 0, 1, 2, 4, 0, 1, 2, 4, 0, 1, 2}));
  });
}

GMOE_PARALLEL_TEST(routers_choose_valid_experts_for_rows_with_nan) {
  Random random(5);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    using A = core::Accumulator<T>;
    constexpr RouterSizes s{2001, 9, 4, 21};
    std::vector<T> x = random.values<T>(s.rows * s.dim), logits = random.values<T>(s.rows * s.experts);
    const auto memory = random.values<T>(s.experts * s.dim);
    for (std::int64_t i = 0; i < s.rows; i += 2) {
      x[i * s.dim + random.below(s.dim)] = core::narrow<T>(std::numeric_limits<A>::quiet_NaN());
      logits[i * s.experts + random.below(s.experts)] = core::narrow<T>(std::numeric_limits<A>::quiet_NaN());
    }
    for (const bool cosine : {true, false}) {
      set_case(cosine ? "cosine_topk" : "topk_softmax");
      std::vector<T> gate = unwritten<T>(s.rows * s.k);
      std::vector<std::int64_t> index = unwritten_index(s.rows * s.k);
      if (cosine) {
        core::cosine_topk<T>(
            {x.data(), memory.data(), s.rows, s.dim, s.experts, s.k, 1e-12, gate.data(), index.data()});
      } else {
        core::topk_softmax<T>({logits.data(), s.rows, s.experts, s.k, gate.data(), index.data()});
      }
      check_choices(s, index);
      for (std::int64_t i = 0; i < s.rows * s.k; ++i) CHECK(std::isnan(wide(gate[i])) == (i / s.k % 2 == 0));
    }
  });
}

GMOE_PARALLEL_TEST(cosine_topk_grad_x) {
  Random random(6);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    for (const RouterSizes& s : kSizes) {
      for (const double eps : {1e-12, 1.0}) {
        set_router_case(s, eps == 1.0 ? ", norms of at least 1" : "");
        const auto x = random.values<T>(s.rows * s.dim), memory = random.values<T>(s.experts * s.dim);
        const auto grad_gate = random.values<T>(s.rows * s.k);
        const auto index = random.indices<std::int64_t>(s.rows * s.k, s.experts);
        std::vector<T> grad_x = unwritten<T>(s.rows * s.dim);
        core::cosine_topk_grad_x<T>({grad_gate.data(), x.data(), memory.data(), index.data(), s.rows, s.dim, s.experts,
                                     s.k, eps, grad_x.data()});
        CHECK_CLOSE(grad_x, naive_cosine_topk_grad_x(s, x, memory, grad_gate, index, eps));
      }
    }
  });
}

GMOE_PARALLEL_TEST(memory_update) {
  Random random(7);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    for (const RouterSizes& s : kSizes) {
      for (const bool normalize : {true, false}) {
        set_router_case(s, normalize ? ", normalised" : "");
        const auto memory = random.values<T>(s.experts * s.dim), x = random.values<T>(s.rows * s.dim);
        const auto gate = random.values<T>(s.rows * s.k);
        // The last expert gets no rows unless it is the only one.
        const auto index = random.indices<std::int64_t>(s.rows * s.k, std::max<std::int64_t>(1, s.experts - 1));
        std::vector<T> out = unwritten<T>(s.experts * s.dim);
        const core::MemoryUpdate<T> call{memory.data(), x.data(), gate.data(), index.data(), s.rows, s.dim,
                                         s.experts,     s.k,      0.9,         normalize,    1e-12,  out.data()};
        core::memory_update<T>(call);
        CHECK_CLOSE(out, naive_memory_update(call));
      }
    }
  });
}

GMOE_PARALLEL_TEST(cosine_topk_update) {
  Random random(9);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    for (const RouterSizes& s : kSizes) {
      for (const bool normalize : {true, false}) {
        set_router_case(s, normalize ? ", normalised" : "");
        const auto memory = random.values<T>(s.experts * s.dim), x = random.values<T>(s.rows * s.dim);
        std::vector<T> gate = unwritten<T>(s.rows * s.k), want_gate = gate,
                       new_memory = unwritten<T>(s.experts * s.dim);
        std::vector<std::int64_t> index = unwritten_index(s.rows * s.k), want_index = index;
        core::CosineTopk<T> route{x.data(), memory.data(), s.rows,      s.dim,       s.experts,
                                  s.k,      1e-12,         gate.data(), index.data()};
        core::cosine_topk_update<T>({route, 0.9, normalize, new_memory.data()});
        route.gate = want_gate.data();
        route.index = want_index.data();
        core::cosine_topk<T>(route);
        CHECK_EQUAL(index, want_index);
        CHECK_CLOSE(gate, wide(want_gate));
        CHECK_CLOSE(new_memory, naive_memory_update<T>({memory.data(), x.data(), gate.data(), index.data(), s.rows,
                                                        s.dim, s.experts, s.k, 0.9, normalize, 1e-12, nullptr}));
      }
    }
  });
}

GMOE_PARALLEL_TEST(expert_plan) {
  Random random(8);
  constexpr RouterSizes kPlans[] = {{0, 3, 2, 0},   {1, 1, 1, 0},    {13, 40, 2, 0},
                                    {700, 7, 3, 0}, {9001, 5, 4, 0}, {3, 40000, 2, 0}};
  for_each_index([&](auto type) {
    using Index = typename decltype(type)::type;
    for (const RouterSizes& s : kPlans) {
      for (const bool one : {false, true}) {
        set_router_case(s, one ? ", all to one expert" : "");
        const std::int64_t num_slots = s.rows * s.k;
        auto index = random.indices<Index>(num_slots, std::max<std::int64_t>(1, s.experts - 1));
        if (one) std::fill(index.begin(), index.end(), static_cast<Index>(s.experts / 2));
        std::vector<std::int64_t> offsets = unwritten_index(s.experts + 1), order = unwritten_index(num_slots);
        core::expert_plan<Index>({index.data(), num_slots, s.experts, offsets.data(), order.data()});

        std::vector<std::int64_t> want_order(index.size()), want_offsets(offsets.size(), 0);
        std::iota(want_order.begin(), want_order.end(), 0);
        std::stable_sort(want_order.begin(), want_order.end(),
                         [&](std::int64_t a, std::int64_t b) { return index[a] < index[b]; });
        for (const Index e : index) ++want_offsets[static_cast<std::size_t>(e) + 1];
        std::partial_sum(want_offsets.begin(), want_offsets.end(), want_offsets.begin());
        CHECK_EQUAL(offsets, want_offsets);
        CHECK_EQUAL(order, want_order);
        CHECK(core::find_plan_fault({offsets.data(), order.data(), s.experts, s.rows, s.k}).kind ==
              core::PlanFault::none);
      }
    }
  });
}

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

GMOE_TEST(find_bad_index_finds_the_first) {
  for_each_index([](auto type) {
    using Index = typename decltype(type)::type;
    constexpr std::int64_t kLargest = std::numeric_limits<Index>::max();
    const auto find = [](std::vector<Index> values, std::int64_t bound) {
      return core::find_bad_index(values.data(), static_cast<std::int64_t>(values.size()), bound);
    };
    constexpr Index kLast = std::numeric_limits<Index>::max(), kFirst = std::numeric_limits<Index>::min();
    CHECK(find({}, 0) == -1);
    CHECK(find({}, 5) == -1);
    CHECK(find({0}, 0) == 0);
    CHECK(find({0}, -3) == 0);
    CHECK(find({0, 4, 3}, 5) == -1);
    CHECK(find({0, 4, 5, 5}, 5) == 2);
    CHECK(find({0, -1, 9}, 5) == 1);
    CHECK(find({0, kFirst}, 5) == 1);
    CHECK(find({0, kLast}, kLargest) == 1);
    CHECK(find({0, kLast, kFirst}, std::numeric_limits<std::int64_t>::max()) == (sizeof(Index) == 8 ? 1 : 2));
  });
}

}  // namespace
}  // namespace gmoe::test
