// CUDA routers, plans and the moving average of the memory against loops over every row and expert.
#include <algorithm>

#include "core/cosine_topk.h"
#include "core/expert_plan.h"
#include "core/topk_softmax.h"
#include "tests/check.h"
#include "tests/cuda/device.h"
#include "tests/naive_routers.h"

namespace gmoe::test {
namespace {

namespace cuda = core::cuda;

// Whole packs of 16 bytes and not, fewer and more experts than a pass, more rows than a block.
constexpr RouterSizes kSizes[] = {{0, 3, 2, 5},   {1, 1, 1, 1},   {2, 3, 3, 0},   {7, 5, 5, 3},
                                  {37, 8, 3, 16}, {3, 67, 67, 2}, {5, 6, 4, 131}, {2, 130, 3, 264}};

template <typename T>
void put_nan(std::vector<T>& values, std::size_t at) {
  values[at] = core::narrow<T>(std::numeric_limits<core::Accumulator<T>>::quiet_NaN());
}

GMOE_PARALLEL_TEST(topk_softmax) {
  Random random(1);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    for (const RouterSizes& s : kSizes) {
      set_router_case(s);
      std::vector<T> logits = logits_with_ties<T>(random, s);
      if (s.rows > 2) put_nan(logits, static_cast<std::size_t>(2 * s.experts + s.experts / 2));
      std::vector<T> gate = unwritten<T>(s.rows * s.k);
      std::vector<std::int64_t> index = unwritten_index(s.rows * s.k);
      Device device;
      cuda::topk_softmax<T>({logits.data(), s.rows, s.experts, s.k, gate.data(), index.data()}, device.call());
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
      for (const bool bad : {false, true}) {
        if (bad && s.rows < 2) continue;
        set_router_case(s, bad ? ", bad indices" : "");
        const auto logits = random.values<T>(s.rows * s.experts), grad_gate = random.values<T>(s.rows * s.k);
        std::vector<T> gate = unwritten<T>(s.rows * s.k), grad_logits = unwritten<T>(s.rows * s.experts);
        std::vector<std::int64_t> index = unwritten_index(s.rows * s.k);
        Device device;
        cuda::topk_softmax<T>({logits.data(), s.rows, s.experts, s.k, gate.data(), index.data()}, device.call());
        const std::int64_t first_bad = s.k + 0;
        if (bad) index[first_bad] = -1;
        if (bad) index.back() = s.experts;
        cuda::topk_softmax_grad_logits<T>(
            {grad_gate.data(), gate.data(), index.data(), s.rows, s.experts, s.k, grad_logits.data()}, device.call());
        CHECK(device.bad_index() == (bad ? first_bad : -1));
        CHECK_CLOSE(grad_logits, naive_topk_softmax_grad_logits(s, grad_gate, gate, index));
      }
    }
  });
}

// A zero row, and NaN in another.
template <typename T>
std::vector<T> rows_to_route(Random& random, const RouterSizes& s) {
  std::vector<T> x = random.values<T>(s.rows * s.dim);
  if (s.rows > 0) std::fill(x.begin(), x.begin() + s.dim, core::narrow<T>(core::Accumulator<T>{0}));
  if (s.rows > 2 && s.dim > 0) put_nan(x, static_cast<std::size_t>(3 * s.dim - 1));
  return x;
}

GMOE_PARALLEL_TEST(cosine_topk) {
  Random random(3);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    for (const RouterSizes& s : kSizes) {
      for (const double eps : {1e-12, 1.0}) {
        set_router_case(s, eps == 1.0 ? ", norms of at least 1" : "");
        const std::vector<T> x = rows_to_route<T>(random, s), memory = random.values<T>(s.experts * s.dim);
        std::vector<T> gate = unwritten<T>(s.rows * s.k);
        std::vector<std::int64_t> index = unwritten_index(s.rows * s.k);
        Device device;
        cuda::cosine_topk<T>({x.data(), memory.data(), s.rows, s.dim, s.experts, s.k, eps, gate.data(), index.data()},
                             device.call());
        check_cosine_topk(s, naive_cosines(s, x, memory, eps), gate, index);
      }
    }
  });
}

GMOE_PARALLEL_TEST(cosine_topk_goes_on_with_more_rows_than_its_blocks_take) {
  Random random(7);
  constexpr RouterSizes s{6400, 2, 1, 1};
  const auto x = random.values<float>(s.rows);
  const std::vector<float> memory{1, -1};
  std::vector<float> gate = unwritten<float>(s.rows);
  std::vector<std::int64_t> index = unwritten_index(s.rows), want;
  Device device;
  cuda::cosine_topk<float>({x.data(), memory.data(), s.rows, s.dim, s.experts, s.k, 1e-12, gate.data(), index.data()},
                           device.call());
  for (const float value : x) want.push_back(value < 0 ? 1 : 0);
  CHECK_EQUAL(index, want);
  CHECK_EQUAL(gate, std::vector<float>(gate.size(), 1.0f));
}

GMOE_PARALLEL_TEST(cosine_topk_gives_ties_to_the_lower_expert) {
  Random random(4);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    constexpr RouterSizes s{9, 11, 7, 37};
    const auto x = random.values<T>(s.rows * s.dim), row = random.values<T>(s.dim);
    std::vector<T> memory, gate = unwritten<T>(s.rows * s.k);
    for (std::int64_t e = 0; e < s.experts; ++e) memory.insert(memory.end(), row.begin(), row.end());
    std::vector<std::int64_t> index = unwritten_index(s.rows * s.k), want;
    Device device;
    cuda::cosine_topk<T>({x.data(), memory.data(), s.rows, s.dim, s.experts, s.k, 1e-12, gate.data(), index.data()},
                         device.call());
    for (std::int64_t i = 0; i < s.rows * s.k; ++i) want.push_back(i % s.k);
    CHECK_EQUAL(index, want);
    CHECK_CLOSE(gate, std::vector<double>(gate.size(), 1.0 / s.k));
  });
}

GMOE_PARALLEL_TEST(cosine_topk_grad_x) {
  Random random(5);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    for (const RouterSizes& s : kSizes) {
      for (const bool bad : {false, true}) {
        if (bad && s.rows < 2) continue;
        const double eps = s.dim % 2 == 0 ? 1e-12 : 1.0;
        set_router_case(s, bad ? ", bad indices" : "");
        // A zero row has no gradient in the limit of a small eps but a large one in the kernel's and ours.
        const std::vector<T> x = random.values<T>(s.rows * s.dim), memory = random.values<T>(s.experts * s.dim);
        const std::vector<T> grad_gate = random.values<T>(s.rows * s.k);
        std::vector<T> grad_x = unwritten<T>(s.rows * s.dim);
        std::vector<std::int64_t> index = naive_routes(s, naive_cosines(s, x, memory, eps)).index;
        if (bad) index[s.k] = s.experts;
        Device device;
        cuda::cosine_topk_grad_x<T>({grad_gate.data(), x.data(), memory.data(), index.data(), s.rows, s.dim, s.experts,
                                     s.k, eps, grad_x.data()},
                                    device.call());
        CHECK(device.bad_index() == (bad ? s.k : -1));
        CHECK_CLOSE(grad_x, naive_cosine_topk_grad_x(s, x, memory, grad_gate, index, eps));
      }
    }
  });
}

GMOE_PARALLEL_TEST(expert_plan) {
  constexpr struct {
    std::int64_t slots, experts;
  } kPlans[] = {{0, 4}, {1, 1}, {2, 1}, {257, 5}, {300, 67}, {5003, 3}, {2100, 1024}};
  Random random(6);
  for_each_index([&](auto type) {
    using Index = typename decltype(type)::type;
    for (const auto& p : kPlans) {
      for (const bool bad : {false, true}) {
        if (bad && p.slots < 2) continue;
        set_case(p.slots, " slots, ", p.experts, " experts", bad ? ", bad indices" : "");
        // Some experts have no slots.
        auto index = random.indices<Index>(p.slots, std::max<std::int64_t>(1, p.experts - 1));
        if (bad) index[1] = static_cast<Index>(p.experts);
        if (bad) index.back() = -1;
        std::vector<std::int64_t> offsets = unwritten_index(p.experts + 1), order = unwritten_index(p.slots);
        Device device;
        cuda::expert_plan<Index>({index.data(), p.slots, p.experts, offsets.data(), order.data()},
                                 device.call(cuda::expert_plan_workspace(p.slots, p.experts)));
        CHECK(device.bad_index() == (bad ? 1 : -1));
        std::vector<std::int64_t> want_offsets{0}, want_order;
        for (std::int64_t e = 0; e < p.experts; ++e) {
          for (std::int64_t s = 0; s < p.slots; ++s) {
            if (index[s] == e) want_order.push_back(s);
          }
          want_offsets.push_back(static_cast<std::int64_t>(want_order.size()));
        }
        want_order.resize(static_cast<std::size_t>(p.slots), -1);
        CHECK_EQUAL(offsets, want_offsets);
        CHECK_EQUAL(order, want_order);
      }
    }
  });
}

}  // namespace
}  // namespace gmoe::test
