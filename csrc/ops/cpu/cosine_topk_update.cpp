#include "core/cosine_topk_update.h"

#include "ops/cosine_topk_update.h"

namespace gmoe::ops {
namespace {

std::tuple<Tensor, Tensor, Tensor> cosine_topk_update(const Tensor& x_in, const Tensor& memory_in, std::int64_t k,
                                                      double rate, bool normalize, double eps) {
  check_cosine_topk_update(x_in, memory_in, k, rate);
  const Tensor x = dense(x_in), memory = dense(memory_in);
  Tensor gate = new_like(x, {x.size(0), k});
  Tensor index = new_like(x, {x.size(0), k}, ScalarType::Long);
  Tensor new_memory = new_like(memory, {memory.size(0), memory.size(1)});
  dispatch_floating("gmoe::cosine_topk_update", x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    core::cosine_topk_update<T>({{data<T>(x), data<T>(memory), x.size(0), x.size(1), memory.size(0), k, eps,
                                  mutable_data<T>(gate), mutable_data<std::int64_t>(index)},
                                 rate,
                                 normalize,
                                 mutable_data<T>(new_memory)});
  });
  return {gate, index, new_memory};
}

}  // namespace
}  // namespace gmoe::ops

STABLE_TORCH_LIBRARY_IMPL(gmoe, CPU, m) { m.impl("cosine_topk_update", TORCH_BOX(&gmoe::ops::cosine_topk_update)); }
