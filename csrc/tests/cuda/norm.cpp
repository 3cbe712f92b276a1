// The CUDA norm per expert and its gradient against loops over every slot.
#include "core/expert_norm.h"

#include "tests/check.h"
#include "tests/cuda/device.h"
#include "tests/norm_cases.h"

namespace gmoe::test {
namespace {

namespace cuda = core::cuda;

// More slots than a chunk, more experts than a block takes, columns on both sides of a block's and a warp's.
constexpr NormSizes kSizes[] = {{0, 3, 2, 5},   {1, 1, 1, 1},    {2, 3, 3, 0},   {7, 5, 2, 3},
                                {29, 40, 3, 7}, {5, 35, 1, 131}, {11, 4, 2, 64}, {131, 3, 4, 5}};

template <typename F>
void for_each_case(const F& f) {
  Random random(22);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    for (const NormSizes& s : kSizes) {
      for (const bool combined : {true, false}) {
        for (const bool bad : {false, true}) {
          if (bad && s.rows < 2) continue;
          set_case(s.rows, " rows, ", s.experts, " experts, k ", s.k, ", dim ", s.dim, combined ? ", gates" : "",
                   bad ? ", bad indices" : "");
          NormCase<T> c(random, s, combined);
          if (bad) c.index[s.k] = -1;
          if (bad) c.index.back() = s.experts;
          const NormResult want = naive_norm(c);
          NormOutputs<T> got(want);
          Device device;
          const core::cuda::Call call = device.call(cuda::expert_norm_workspace(c.slots));
          f(c, want, got, call);
          CHECK(device.bad_index() == (bad ? s.k : -1));
        }
      }
    }
  });
}

GMOE_PARALLEL_TEST(expert_norm) {
  for_each_case([](const auto& c, const NormResult& want, auto& got, const cuda::Call& call) {
    cuda::expert_norm(got.forward(c), call);
    CHECK_EQUAL(got.count, want.count);
    CHECK_CLOSE(got.mean, want.mean);
    CHECK_CLOSE(got.var, want.var);
    CHECK_CLOSE(got.out, want.out);
  });
}

GMOE_PARALLEL_TEST(expert_norm_grad) {
  for_each_case([](const auto& c, const NormResult& want, auto& got, const cuda::Call& call) {
    cuda::expert_norm_grad(got.backward(c, want), call);
    CHECK_CLOSE(got.grad_y, want.grad_y);
    CHECK_CLOSE(got.grad_weight, want.grad_weight);
    CHECK_CLOSE(got.grad_bias, want.grad_bias);
    CHECK_CLOSE(got.grad_gate, want.grad_gate);
  });
}

}  // namespace
}  // namespace gmoe::test
