#include "core/cosine_topk.h"

#include "ops/call.h"

namespace gmoe::ops {
namespace {

std::tuple<Tensor, Tensor> cosine_topk(const Tensor& x_in, const Tensor& memory_in, std::int64_t k, double eps) {
  constexpr const char* op = "gmoe::cosine_topk";
  check_cosines(op, x_in, memory_in, k);
  Call call(op, x_in);
  const Tensor x = call.read("x", x_in), memory = call.read("memory", memory_in);
  Tensor gate = new_like(x, {x.size(0), k});
  Tensor index = new_like(x, {x.size(0), k}, ScalarType::Long);
  dispatch_floating(op, x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const core::CosineTopk<T> a{.x = data<T>(x),
                                .memory = data<T>(memory),
                                .num_rows = x.size(0),
                                .dim = x.size(1),
                                .num_experts = memory.size(0),
                                .k = k,
                                .eps = eps,
                                .gate = mutable_data<T>(gate),
                                .index = mutable_data<std::int64_t>(index)};
    if constexpr (kOnDevice) {
      core::cuda::cosine_topk(a, call.launch());
    } else {
      core::cosine_topk(a);
    }
  });
  return {gate, index};
}

Tensor cosine_topk_grad_x(const Tensor& grad_gate_in, const Tensor& x_in, const Tensor& memory_in,
                          const Tensor& index_in, double eps) {
  constexpr const char* op = "gmoe::cosine_topk_grad_x";
  check_dim(op, "index", index_in, 2);
  check_int64(op, "index", index_in);
  check_cosines(op, x_in, memory_in, index_in.size(1));
  check_dim(op, "grad_gate", grad_gate_in, 2);
  check_same_dtype(op, "grad_gate", grad_gate_in, "x", x_in);
  check_size(op, "index", index_in, 0, x_in.size(0), "'x'");
  check_size(op, "grad_gate", grad_gate_in, 0, x_in.size(0), "'x'");
  check_size(op, "grad_gate", grad_gate_in, 1, index_in.size(1), "'index'");
  Call call(op, x_in);
  const Tensor grad_gate = call.read("grad_gate", grad_gate_in), x = call.read("x", x_in);
  const Tensor memory = call.read("memory", memory_in), index = call.read("index", index_in);
  call.follow("index", index, memory.size(0));
  Tensor grad_x = new_like(x, {x.size(0), x.size(1)});
  dispatch_floating(op, x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const core::CosineTopkGradX<T> a{.grad_gate = data<T>(grad_gate),
                                     .x = data<T>(x),
                                     .memory = data<T>(memory),
                                     .index = data<std::int64_t>(index),
                                     .num_rows = x.size(0),
                                     .dim = x.size(1),
                                     .num_experts = memory.size(0),
                                     .k = index.size(1),
                                     .eps = eps,
                                     .grad_x = mutable_data<T>(grad_x)};
    if constexpr (kOnDevice) {
      core::cuda::cosine_topk_grad_x(a, call.launch());
    } else {
      core::cosine_topk_grad_x(a);
    }
  });
  return grad_x;
}

}  // namespace
}  // namespace gmoe::ops

GMOE_SCHEMAS(m) {
  m.def("cosine_topk(Tensor x, Tensor memory, int k, float eps) -> (Tensor gate, Tensor index)");
  m.def("cosine_topk_grad_x(Tensor grad_gate, Tensor x, Tensor memory, Tensor index, float eps) -> Tensor");
}

GMOE_OPERATORS(m) {
  m.impl("cosine_topk", TORCH_BOX(&gmoe::ops::cosine_topk));
  m.impl("cosine_topk_grad_x", TORCH_BOX(&gmoe::ops::cosine_topk_grad_x));
}
