#include "core/cosine_topk_update.h"

#include "ops/call.h"

namespace gmoe::ops {
namespace {

std::tuple<Tensor, Tensor, Tensor> cosine_topk_update(const Tensor& x_in, const Tensor& memory_in, std::int64_t k,
                                                      double rate, bool normalize, double eps) {
  constexpr const char* op = "gmoe::cosine_topk_update";
  check_cosines(op, x_in, memory_in, k);
  check_rate(op, rate);
  Call call(op, x_in);
  const Tensor x = call.read("x", x_in), memory = call.read("memory", memory_in);
  const std::int64_t num_rows = x.size(0), dim = x.size(1), num_experts = memory.size(0);
  Tensor gate = new_like(x, {num_rows, k});
  Tensor index = new_like(x, {num_rows, k}, ScalarType::Long);
  Tensor new_memory = new_like(memory, {num_experts, dim});
  dispatch_floating(op, x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const core::CosineTopkUpdate<T> a{.route = {.x = data<T>(x),
                                                .memory = data<T>(memory),
                                                .num_rows = num_rows,
                                                .dim = dim,
                                                .num_experts = num_experts,
                                                .k = k,
                                                .eps = eps,
                                                .gate = mutable_data<T>(gate),
                                                .index = mutable_data<std::int64_t>(index)},
                                      .rate = rate,
                                      .normalize = normalize,
                                      .new_memory = mutable_data<T>(new_memory)};
    if constexpr (kOnDevice) {
      const std::int64_t bytes = core::cuda::cosine_topk_update_workspace<T>(num_rows, dim, num_experts);
      core::cuda::cosine_topk_update(a, call.launch(bytes));
    } else {
      core::cosine_topk_update(a);
    }
  });
  return {gate, index, new_memory};
}

}  // namespace
}  // namespace gmoe::ops

GMOE_SCHEMAS(m) {
  m.def(
      "cosine_topk_update(Tensor x, Tensor memory, int k, float rate, bool normalize, float eps) -> "
      "(Tensor gate, Tensor index, Tensor new_memory)");
}

GMOE_OPERATORS(m) { m.impl("cosine_topk_update", TORCH_BOX(&gmoe::ops::cosine_topk_update)); }
