// The noisy gate and its gradient against loops over every row and expert.
#include "core/noisy_topk.h"

#include "tests/check.h"
#include "tests/noisy_cases.h"

namespace gmoe::test {
namespace {

constexpr NoisySizes kSizes[] = {{0, 3, 2}, {1, 1, 1}, {2, 3, 3}, {33, 5, 2}, {7, 67, 66}, {2101, 8, 4}, {65, 17, 1}};

GMOE_PARALLEL_TEST(noisy_topk) {
  Random random(31);
  for_each_floating([&](auto type) {
    for (const NoisySizes& s : kSizes) {
      set_case(s.rows, " rows, ", s.experts, " experts, k ", s.k);
      NoisyCase<typename decltype(type)::type> c(random, s);
      core::noisy_topk(c.forward());
      check_noisy_topk(c);
    }
  });
}

GMOE_PARALLEL_TEST(noisy_topk_grad) {
  Random random(32);
  for_each_floating([&](auto type) {
    for (const NoisySizes& s : kSizes) {
      set_case(s.rows, " rows, ", s.experts, " experts, k ", s.k);
      NoisyCase<typename decltype(type)::type> c(random, s);
      core::noisy_topk(c.forward());
      core::noisy_topk_grad(c.backward());
      check_noisy_topk_grad(c);
    }
  });
}

}  // namespace
}  // namespace gmoe::test
