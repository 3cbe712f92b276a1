// The norm per expert and its gradient against loops over every slot.
#include "core/expert_norm.h"
#include "tests/check.h"
#include "tests/norm_cases.h"

namespace gmoe::test {
namespace {

constexpr NormSizes kSizes[] = {{0, 3, 2, 5},   {1, 1, 1, 1},     {2, 3, 3, 0},    {7, 5, 2, 3},
                                {63, 8, 3, 17}, {13, 40, 1, 131}, {61, 4, 2, 300}, {1601, 7, 4, 31}};

// f(case, what it must give, room for what it gives) for every type and size, with gates and without.
template <typename F>
void for_each_case(const F& f) {
  Random random(21);
  for_each_floating([&](auto type) {
    using T = typename decltype(type)::type;
    for (const NormSizes& s : kSizes) {
      for (const bool combined : {true, false}) {
        set_case(s.rows, " rows, ", s.experts, " experts, k ", s.k, ", dim ", s.dim, combined ? ", gates" : "");
        const NormCase<T> c(random, s, combined);
        const NormResult want = naive_norm(c);
        NormOutputs<T> got(want);
        f(c, want, got);
      }
    }
  });
}

GMOE_PARALLEL_TEST(expert_norm) {
  for_each_case([](const auto& c, const NormResult& want, auto& got) {
    core::expert_norm(got.forward(c));
    CHECK_EQUAL(got.count, want.count);
    CHECK_CLOSE(got.mean, want.mean);
    CHECK_CLOSE(got.var, want.var);
    CHECK_CLOSE(got.out, want.out);
  });
}

GMOE_PARALLEL_TEST(expert_norm_grad) {
  for_each_case([](const auto& c, const NormResult& want, auto& got) {
    core::expert_norm_grad(got.backward(c, want));
    CHECK_CLOSE(got.grad_y, want.grad_y);
    CHECK_CLOSE(got.grad_weight, want.grad_weight);
    CHECK_CLOSE(got.grad_bias, want.grad_bias);
    CHECK_CLOSE(got.grad_gate, want.grad_gate);
  });
}

}  // namespace
}  // namespace gmoe::test
