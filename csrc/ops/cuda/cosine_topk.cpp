#include "core/cosine_topk.h"

#include "ops/cosine_topk.h"
#include "ops/cuda/call.h"

namespace gmoe::ops {
namespace {

std::tuple<Tensor, Tensor> cosine_topk(const Tensor& x_in, const Tensor& memory_in, std::int64_t k, double eps) {
  constexpr const char* op = "gmoe::cosine_topk";
  check_cosine_topk(op, x_in, memory_in, k);
  DeviceCall call(op, x_in);
  const Tensor x = call.read("x", x_in), memory = call.read("memory", memory_in);
  Tensor gate = new_like(x, {x.size(0), k});
  Tensor index = new_like(x, {x.size(0), k}, ScalarType::Long);
  dispatch_floating(op, x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    core::cuda::cosine_topk<T>({data<T>(x), data<T>(memory), x.size(0), x.size(1), memory.size(0), k, eps,
                                mutable_data<T>(gate), mutable_data<std::int64_t>(index)},
                               call.launch());
  });
  return {gate, index};
}

Tensor cosine_topk_grad_x(const Tensor& grad_gate_in, const Tensor& x_in, const Tensor& memory_in,
                          const Tensor& index_in, double eps) {
  constexpr const char* op = "gmoe::cosine_topk_grad_x";
  check_cosine_topk_grad_x(grad_gate_in, x_in, memory_in, index_in);
  DeviceCall call(op, x_in);
  const Tensor grad_gate = call.read("grad_gate", grad_gate_in), x = call.read("x", x_in);
  const Tensor memory = call.read("memory", memory_in), index = call.read("index", index_in);
  Tensor grad_x = new_like(x, {x.size(0), x.size(1)});
  dispatch_floating(op, x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    core::cuda::cosine_topk_grad_x<T>(
        {data<T>(grad_gate), data<T>(x), data<T>(memory), data<std::int64_t>(index), x.size(0), x.size(1),
         memory.size(0), index.size(1), eps, mutable_data<T>(grad_x)},
        call.launch(0, {{"index", index.numel(), memory.size(0)}}));
  });
  return grad_x;
}

}  // namespace
}  // namespace gmoe::ops

GMOE_DEVICE_LIBRARY(m) {
  m.impl("cosine_topk", TORCH_BOX(&gmoe::ops::cosine_topk));
  m.impl("cosine_topk_grad_x", TORCH_BOX(&gmoe::ops::cosine_topk_grad_x));
}
