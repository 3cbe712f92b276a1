// The CUDA noisy gate and its gradient against loops over every row and expert.
#include "core/noisy_topk.h"

#include "tests/check.h"
#include "tests/cuda/device.h"
#include "tests/noisy_cases.h"

namespace gmoe::test {
namespace {

namespace cuda = core::cuda;

// Fewer and more experts than lanes, sums of more than one block, warps with and without a second step, k = E.
constexpr NoisySizes kSizes[] = {{0, 3, 2},  {1, 1, 1},   {2, 3, 3},   {33, 5, 2}, {7, 67, 66},
                                 {65, 8, 4}, {19, 17, 1}, {3, 130, 5}, {2, 33, 33}};

template <typename F>
void for_each_case(std::uint64_t seed, const F& f) {
  Random random(seed);
  for_each_floating([&](auto type) {
    for (const NoisySizes& s : kSizes) {
      set_case(s.rows, " rows, ", s.experts, " experts, k ", s.k);
      NoisyCase<typename decltype(type)::type> c(random, s);
      f(c);
    }
  });
}

template <typename T>
void route(NoisyCase<T>& c) {
  Device device;
  cuda::noisy_topk(c.forward(), device.call(cuda::noisy_topk_workspace<T>(c.logits.num_rows, c.logits.num_experts)));
}

GMOE_PARALLEL_TEST(noisy_topk) {
  for_each_case(31, [](auto& c) {
    route(c);
    check_noisy_topk(c);
  });
}

GMOE_PARALLEL_TEST(noisy_topk_puts_nan_first) {
  for_each_case(33, [](auto& c) {
    using T = typename std::remove_reference_t<decltype(c.clean)>::value_type;
    if (c.logits.num_rows < 2) return;
    const std::int64_t middle = c.logits.num_rows / 2 * c.logits.num_experts;
    c.clean[middle + c.logits.num_experts - 1] = unwritten<T>(1)[0];
    route(c);
    check_noisy_topk(c);
  });
}

GMOE_PARALLEL_TEST(noisy_topk_of_more_rows_than_its_blocks_take_at_once) {
  Random random(34);
  NoisyCase<float> c(random, {3 * 132 * 32 + 77, 2, 1});
  route(c);
  check_noisy_topk(c);
}

GMOE_PARALLEL_TEST(noisy_topk_grad) {
  for_each_case(32, [](auto& c) {
    route(c);
    Device device;
    cuda::noisy_topk_grad(c.backward(), device.call());
    CHECK(device.bad_index() == -1);
    check_noisy_topk_grad(c);
  });
}

GMOE_PARALLEL_TEST(noisy_topk_grad_leaves_bad_indices_out) {
  for_each_case(35, [](auto& c) {
    if (c.logits.num_rows < 2) return;
    route(c);
    c.index[c.logits.k] = -1;
    c.index.back() = c.logits.num_experts;
    Device device;
    cuda::noisy_topk_grad(c.backward(), device.call());
    CHECK(device.bad_index() == c.logits.k);
    check_noisy_topk_grad(c);
  });
}

}  // namespace
}  // namespace gmoe::test
