// The moving average of the expert embeddings, alone and with routing, against loops over every slot.
#include <algorithm>
#include <cmath>
#include <span>

#include "core/cosine_topk.h"
#include "core/cosine_topk_update.h"
#include "core/memory_update.h"
#include "tests/device.h"
#include "tests/naive_routers.h"

namespace gmoe::test {
namespace {

// One chunk of rows and several, columns in one tile and in several, whole packs and not, sums that do not fit beside
// the scores.
constexpr RouterSizes kCudaSizes[] = {{0, 3, 2, 5},   {1, 1, 1, 1},    {2, 3, 3, 0},   {7, 5, 5, 3},
                                      {37, 8, 3, 16}, {131, 4, 2, 34}, {9, 67, 67, 8}, {5, 90, 4, 140}};
constexpr std::span<const RouterSizes> kSizes = kOnDevice ? std::span<const RouterSizes>(kCudaSizes) : kRouterSizes;

template <typename T>
void run(const core::MemoryUpdate<T>& a, Device& device) {
  if constexpr (kOnDevice) {
    const std::int64_t bytes = core::cuda::memory_update_workspace<T>(a.num_rows, a.dim, a.num_experts);
    core::cuda::memory_update(a, device.call(bytes));
  } else {
    core::memory_update(a);
  }
}
template <typename T>
void run(const core::CosineTopkUpdate<T>& a, Device& device) {
  if constexpr (kOnDevice) {
    const core::CosineTopk<T>& r = a.route;
    const std::int64_t bytes = core::cuda::cosine_topk_update_workspace<T>(r.num_rows, r.dim, r.num_experts);
    core::cuda::cosine_topk_update(a, device.call(bytes));
  } else {
    core::cosine_topk_update(a);
  }
}

// Slots whose index is no expert are left out.
template <typename T>
std::vector<double> naive_memory_update(const core::MemoryUpdate<T>& a) {
  const auto scale = [&](const T* row) {
    double sum = 0;
    for (std::int64_t d = 0; d < a.dim; ++d) sum += wide(row[d]) * wide(row[d]);
    return 1 / std::max(std::sqrt(sum), a.eps);
  };
  std::vector<double> want;
  for (std::int64_t e = 0; e < a.num_experts; ++e) {
    std::vector<double> mean = zeros(a.dim);
    double total = 0, largest = 0;
    for (std::int64_t s = 0; s < a.num_rows * a.k; ++s) {
      if (a.index[s] == e) largest = std::max(largest, wide(a.gate[s]));
    }
    for (std::int64_t s = 0; s < a.num_rows * a.k; ++s) {
      if (a.index[s] != e) continue;
      const T* row = a.x + s / a.k * a.dim;
      const double share = std::exp(wide(a.gate[s]) - largest);
      total += share;
      for (std::int64_t d = 0; d < a.dim; ++d) mean[d] += share * (a.normalize ? scale(row) : 1) * wide(row[d]);
    }
    const T* memory = a.memory + e * a.dim;
    for (std::int64_t d = 0; d < a.dim; ++d) {
      const double move = total == 0 ? 0 : (1 - a.rate) * mean[d] / total;
      want.push_back(a.rate * scale(memory) * wide(memory[d]) + move);
    }
  }
  return want;
}

// f(random, sizes, normalize, type) for every case.
template <typename F>
void for_each_case(std::uint64_t seed, const F& f) {
  Random random(seed);
  for_each_floating([&](auto type) {
    for (const RouterSizes& s : kSizes) {
      for (const bool normalize : {true, false}) {
        set_router_case(s, normalize ? ", normalised" : "");
        f(random, s, normalize, type);
      }
    }
  });
}

GMOE_PARALLEL_TEST(memory_update) {
  for_each_case(7, []<typename T>(Random& random, const RouterSizes& s, bool normalize, Type<T>) {
    const bool bad = kOnDevice && !normalize && s.rows > 1;
    const auto memory = random.values<T>(s.experts * s.dim), x = random.values<T>(s.rows * s.dim);
    auto gate = random.values<T>(s.rows * s.k);
    // With normalised rows, gates whose exp is too large for any type.
    for (T& g : gate) g = normalize ? core::narrow<T>(900 + 8 * core::widen(g)) : g;
    // The last expert gets no rows unless it is the only one.
    auto index = random.indices<std::int64_t>(s.rows * s.k, std::max<std::int64_t>(1, s.experts - 1));
    if (bad) index[1] = s.experts;
    if (bad) index.back() = -1;
    std::vector<T> out = unwritten<T>(s.experts * s.dim);
    const core::MemoryUpdate<T> call{.memory = memory.data(),
                                     .x = x.data(),
                                     .gate = gate.data(),
                                     .index = index.data(),
                                     .num_rows = s.rows,
                                     .dim = s.dim,
                                     .num_experts = s.experts,
                                     .k = s.k,
                                     .rate = 0.9,
                                     .normalize = normalize,
                                     .eps = 1e-12,
                                     .out = out.data()};
    Device device;
    run(call, device);
    CHECK(device.bad_index() == (bad && s.dim > 0 ? 1 : -1));
    CHECK_CLOSE(out, naive_memory_update(call));
  });
}

GMOE_SMALL_TEST(memory_update_keeps_nan_to_its_experts) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> memory{1, 0, 0, 2, 3, 0}, x{1, 1, nan, 1, 1, 2}, gate{1, nan, 1};
  const std::vector<std::int64_t> index{0, 1, 2};
  std::vector<float> out = unwritten<float>(6);
  const std::vector<float> healthy{0.5f + 0.5f * std::sqrt(0.5f), 0.5f * std::sqrt(0.5f)};
  Device device;
  run(core::MemoryUpdate<float>{memory.data(), x.data(), gate.data(), index.data(), 3, 2, 3, 1, 0.5, true, 1e-12,
                                out.data()},
      device);
  CHECK(std::fabs(out[0] - healthy[0]) < 1e-6f && std::fabs(out[1] - healthy[1]) < 1e-6f);
  CHECK(std::isnan(out[2]) && std::isnan(out[3]));
  CHECK(!std::isnan(out[4]) && !std::isnan(out[5]));
}

GMOE_PARALLEL_TEST(cosine_topk_update) {
  for_each_case(9, []<typename T>(Random& random, const RouterSizes& s, bool normalize, Type<T>) {
    const auto memory = random.values<T>(s.experts * s.dim), x = random.values<T>(s.rows * s.dim);
    std::vector<T> gate = unwritten<T>(s.rows * s.k), want_gate = gate, new_memory = unwritten<T>(s.experts * s.dim);
    std::vector<std::int64_t> index = unwritten_index(s.rows * s.k), want_index = index;
    core::CosineTopk<T> route{.x = x.data(),
                              .memory = memory.data(),
                              .num_rows = s.rows,
                              .dim = s.dim,
                              .num_experts = s.experts,
                              .k = s.k,
                              .eps = 1e-12,
                              .gate = gate.data(),
                              .index = index.data()};
    Device device;
    run(core::CosineTopkUpdate<T>{.route = route, .rate = 0.9, .normalize = normalize, .new_memory = new_memory.data()},
        device);
    route.gate = want_gate.data();
    route.index = want_index.data();
    run(route, device);
    CHECK_EQUAL(index, want_index);
    CHECK_CLOSE(gate, wide(want_gate));
    CHECK_CLOSE(new_memory, naive_memory_update<T>({memory.data(), x.data(), gate.data(), index.data(), s.rows, s.dim,
                                                    s.experts, s.k, 0.9, normalize, 1e-12, nullptr}));
  });
}

}  // namespace
}  // namespace gmoe::test
