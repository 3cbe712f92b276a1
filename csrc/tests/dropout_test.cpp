// Dropout and its gradient against the word of every element.
#include "core/dropout.h"

#include <span>

#include "core/splitmix64.h"
#include "tests/device.h"
#include "tests/inputs.h"

namespace gmoe::test {
namespace {

struct DropSizes {
  std::int64_t rows, width, slots;
};
// Rows that begin within a word, that fill parts of 2048 elements with others, that fill several, and enough of them
// to be shared.
constexpr DropSizes kCpuSizes[] = {{0, 3, 2},    {3, 0, 2},    {1, 1, 1},    {5, 1, 3},    {33, 7, 1},
                                   {2101, 1, 1}, {301, 13, 3}, {3, 2500, 2}, {9, 129, 16}, {401, 129, 4}};
constexpr DropSizes kCudaSizes[] = {{0, 3, 2}, {3, 0, 2}, {1, 1, 1}, {5, 1, 3}, {33, 7, 1}, {37, 13, 3}, {3, 250, 2}};
constexpr std::span<const DropSizes> kSizes = kOnDevice ? std::span<const DropSizes>(kCudaSizes) : kCpuSizes;

constexpr std::uint16_t kDropped[] = {0, 1, 0x8000, 0xFFFF};

template <typename T>
struct DropCase {
  DropCase(Random& random, const DropSizes& s, std::uint16_t dropped)
      : sizes(s),
        dropped(dropped),
        scale(0x10000 / static_cast<core::Accumulator<T>>(0x10000 - dropped)),
        seed{random.below(1 << 30) - (1 << 29)},
        x(random.values<T>(s.rows * s.width)),
        grad_y(random.values<T>(s.rows * s.slots * s.width)),
        y(unwritten<T>(s.rows * s.slots * s.width)),
        grad_x(unwritten<T>(s.rows * s.width)) {}

  bool kept(std::int64_t j) const {
    const std::uint64_t key = core::splitmix64(static_cast<std::uint64_t>(seed[0]));
    const std::uint64_t word = core::splitmix64(key + static_cast<std::uint64_t>(j / 4) * core::kSplitmixIncrement);
    return (word >> (16 * (j % 4)) & 0xFFFF) >= dropped;
  }

  DropSizes sizes;
  std::uint16_t dropped;
  core::Accumulator<T> scale;
  std::vector<std::int64_t> seed;  // a device reads it
  std::vector<T> x, grad_y, y, grad_x;
};

template <typename T>
void drop(DropCase<T>& c) {
  const auto& [rows, width, slots] = c.sizes;
  const core::DropoutMask<T> mask{rows, width, slots, c.seed.data(), c.dropped, c.scale};
  const core::Dropout<T> a{mask, c.x.data(), c.y.data()};
  const core::DropoutGradX<T> g{mask, c.grad_y.data(), c.grad_x.data()};
  Device device;
  if constexpr (kOnDevice) {
    core::cuda::dropout(a, device.call());
    core::cuda::dropout_grad_x(g, device.call());
  } else {
    core::dropout(a);
    core::dropout_grad_x(g);
  }
}

GMOE_PARALLEL_TEST(dropout) {
  Random random(41);
  for_each_floating([&](auto type) {
    for (const DropSizes& s : kSizes) {
      for (const std::uint16_t dropped : kDropped) {
        set_case(s.rows, " rows, ", s.width, " wide, ", s.slots, " slots, ", dropped, " levels dropped");
        DropCase<typename decltype(type)::type> c(random, s, dropped);
        drop(c);
        std::vector<double> y, grad_x = zeros(s.rows * s.width);
        for (std::int64_t j = 0; j < s.rows * s.slots * s.width; ++j) {
          const std::int64_t i = j / (s.slots * s.width) * s.width + j % s.width;
          const double factor = c.kept(j) ? static_cast<double>(c.scale) : 0;
          y.push_back(wide(c.x[i]) * factor);
          grad_x[i] += wide(c.grad_y[j]) * factor;
        }
        CHECK_CLOSE(c.y, y);
        CHECK_CLOSE(c.grad_x, grad_x);
      }
    }
  });
}

GMOE_SMALL_TEST(dropout_drops_as_many_as_it_should) {
  Random random(42);
  DropCase<float> c(random, {1, kOnDevice ? 4000 : 400000, 1}, 0x4000);
  for (float& value : c.x) value = 1;
  drop(c);
  double kept = 0;
  for (const float value : c.y) kept += value != 0 ? 1 : 0;
  const double n = static_cast<double>(c.y.size());
  CHECK(std::fabs(kept - 0.75 * n) < 5 * std::sqrt(0.75 * 0.25 * n));
}

}  // namespace
}  // namespace gmoe::test
