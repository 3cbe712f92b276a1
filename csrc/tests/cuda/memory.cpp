// The moving average of the expert embeddings on CUDA, alone and with routing, against loops over every slot.
#include <algorithm>
#include <cmath>

#include "core/cosine_topk.h"
#include "core/cosine_topk_update.h"
#include "core/memory_update.h"
#include "tests/check.h"
#include "tests/cuda/device.h"
#include "tests/inputs.h"
#include "tests/naive_memory.h"
#include "tests/naive_routers.h"

namespace gmoe::test {
namespace {

namespace cuda = core::cuda;

// One chunk of rows and several, columns in one tile and in several, whole packs and not, sums that do not fit beside
// the scores.
constexpr RouterSizes kSizes[] = {{0, 3, 2, 5},   {1, 1, 1, 1},    {2, 3, 3, 0},   {7, 5, 5, 3},
                                  {37, 8, 3, 16}, {131, 4, 2, 34}, {9, 67, 67, 8}, {5, 90, 4, 140}};

GMOE_PARALLEL_TEST(memory_update) {
  Random random(11);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    for (const RouterSizes& s : kSizes) {
      for (const bool normalize : {true, false}) {
        const bool bad = !normalize && s.rows > 1;
        set_router_case(s, normalize ? ", normalised" : bad ? ", bad indices" : "");
        const auto memory = random.values<T>(s.experts * s.dim), x = random.values<T>(s.rows * s.dim);
        // Gates whose exp is too large for any type.
        auto gate = random.values<T>(s.rows * s.k);
        for (T& g : gate) g = core::narrow<T>(900 + 8 * core::widen(g));
        // The last expert gets no rows unless it is the only one.
        auto index = random.indices<std::int64_t>(s.rows * s.k, std::max<std::int64_t>(1, s.experts - 1));
        if (bad) index[1] = s.experts;
        if (bad) index.back() = -1;
        std::vector<T> out = unwritten<T>(s.experts * s.dim);
        const core::MemoryUpdate<T> call{memory.data(), x.data(), gate.data(), index.data(), s.rows, s.dim,
                                         s.experts,     s.k,      0.9,         normalize,    1e-12,  out.data()};
        Device device;
        cuda::memory_update<T>(call, device.call(cuda::memory_update_workspace<T>(s.rows, s.dim, s.experts)));
        CHECK(device.bad_index() == (bad && s.dim > 0 ? 1 : -1));
        CHECK_CLOSE(out, naive_memory_update(call));
      }
    }
  });
}

GMOE_PARALLEL_TEST(memory_update_keeps_nan_to_its_experts) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> memory{1, 0, 0, 2, 3, 0}, x{1, 1, nan, 1, 1, 2}, gate{1, nan, 1};
  const std::vector<std::int64_t> index{0, 1, 2};
  std::vector<float> out = unwritten<float>(6);
  const std::vector<float> healthy{0.5f + 0.5f * std::sqrt(0.5f), 0.5f * std::sqrt(0.5f)};
  Device device;
  cuda::memory_update<float>(
      {memory.data(), x.data(), gate.data(), index.data(), 3, 2, 3, 1, 0.5, true, 1e-12, out.data()},
      device.call(cuda::memory_update_workspace<float>(3, 2, 3)));
  CHECK(std::fabs(out[0] - healthy[0]) < 1e-6f && std::fabs(out[1] - healthy[1]) < 1e-6f);
  CHECK(std::isnan(out[2]) && std::isnan(out[3]));
  CHECK(!std::isnan(out[4]) && !std::isnan(out[5]));
}

GMOE_PARALLEL_TEST(cosine_topk_update) {
  Random random(12);
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
        Device device;
        cuda::cosine_topk_update<T>({route, 0.9, normalize, new_memory.data()},
                                    device.call(cuda::cosine_topk_update_workspace<T>(s.rows, s.dim, s.experts)));
        route.gate = want_gate.data();
        route.index = want_index.data();
        cuda::cosine_topk<T>(route, device.call());
        CHECK_EQUAL(index, want_index);
        CHECK_CLOSE(gate, wide(want_gate));
        CHECK_CLOSE(new_memory, naive_memory_update<T>({memory.data(), x.data(), gate.data(), index.data(), s.rows,
                                                        s.dim, s.experts, s.k, 0.9, normalize, 1e-12, nullptr}));
      }
    }
  });
}

}  // namespace
}  // namespace gmoe::test
