#include "core/cosine_topk_update.h"

#include "ops/cosine_topk_update.h"
#include "ops/cuda/call.h"

namespace gmoe::ops {
namespace {

std::tuple<Tensor, Tensor, Tensor> cosine_topk_update(const Tensor& x_in, const Tensor& memory_in, std::int64_t k,
                                                      double rate, bool normalize, double eps) {
  constexpr const char* op = "gmoe::cosine_topk_update";
  check_cosine_topk_update(x_in, memory_in, k, rate);
  DeviceCall call(op, x_in);
  const Tensor x = call.read("x", x_in), memory = call.read("memory", memory_in);
  const std::int64_t num_rows = x.size(0), dim = x.size(1), num_experts = memory.size(0);
  Tensor gate = new_like(x, {num_rows, k});
  Tensor index = new_like(x, {num_rows, k}, ScalarType::Long);
  Tensor new_memory = new_like(memory, {num_experts, dim});
  dispatch_floating(op, x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    // The indices are its own: none is bad.
    core::cuda::cosine_topk_update<T>(
        {{data<T>(x), data<T>(memory), num_rows, dim, num_experts, k, eps, mutable_data<T>(gate),
          mutable_data<std::int64_t>(index)},
         rate,
         normalize,
         mutable_data<T>(new_memory)},
        call.launch(core::cuda::cosine_topk_update_workspace<T>(num_rows, dim, num_experts)));
  });
  return {gate, index, new_memory};
}

}  // namespace
}  // namespace gmoe::ops

GMOE_DEVICE_LIBRARY(m) { m.impl("cosine_topk_update", TORCH_BOX(&gmoe::ops::cosine_topk_update)); }
