#include "core/memory_update.h"

#include "ops/cuda/call.h"
#include "ops/memory_update.h"

namespace gmoe::ops {
namespace {

Tensor memory_update(const Tensor& memory_in, const Tensor& x_in, const Tensor& gate_in, const Tensor& index_in,
                     double rate, bool normalize, double eps) {
  constexpr const char* op = "gmoe::memory_update";
  check_memory_update(memory_in, x_in, gate_in, index_in, rate);
  DeviceCall call(op, memory_in);
  const Tensor memory = call.read("memory", memory_in), x = call.read("x", x_in), gate = call.read("gate", gate_in);
  const Tensor index = call.read_int64("index", index_in);
  const std::int64_t num_rows = x.size(0), dim = x.size(1), num_experts = memory.size(0);
  check(num_experts > 0 || index.numel() == 0, op, ": expected 'memory' to have a row for each 'index', got ",
        shape(memory));
  Tensor out = new_like(memory, {num_experts, dim});
  dispatch_floating(op, memory.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    core::cuda::memory_update<T>({data<T>(memory), data<T>(x), data<T>(gate), data<std::int64_t>(index), num_rows, dim,
                                  num_experts, gate.size(1), rate, normalize, eps, mutable_data<T>(out)},
                                 call.launch(core::cuda::memory_update_workspace<T>(num_rows, dim, num_experts),
                                             {{"index", index.numel(), num_experts}}));
  });
  return out;
}

}  // namespace
}  // namespace gmoe::ops

GMOE_DEVICE_LIBRARY(m) { m.impl("memory_update", TORCH_BOX(&gmoe::ops::memory_update)); }
