#include "core/memory_update.h"

#include "ops/call.h"

namespace gmoe::ops {
namespace {

Tensor memory_update(const Tensor& memory_in, const Tensor& x_in, const Tensor& gate_in, const Tensor& index_in,
                     double rate, bool normalize, double eps) {
  constexpr const char* op = "gmoe::memory_update";
  check_dim(op, "memory", memory_in, 2);
  check_floating(op, "memory", memory_in);
  check_dim(op, "x", x_in, 2);
  check_same_dtype(op, "x", x_in, "memory", memory_in);
  check_size(op, "x", x_in, 1, memory_in.size(1), "'memory'");
  check_dim(op, "gate", gate_in, 2);
  check_same_dtype(op, "gate", gate_in, "memory", memory_in);
  check_size(op, "gate", gate_in, 0, x_in.size(0), "'x'");
  check_shape_like(op, "index", index_in, gate_in, "'gate'");
  check_index_dtype(op, "index", index_in);
  check_rate(op, rate);
  Call call(op, memory_in);
  const Tensor memory = call.read("memory", memory_in), x = call.read("x", x_in), gate = call.read("gate", gate_in);
  const Tensor index = call.read_int64("index", index_in);
  const std::int64_t num_rows = x.size(0), dim = x.size(1), num_experts = memory.size(0);
  // On the CPU the first index would be out of range; a kernel on a device cannot leave all rows out.
  check(!kOnDevice || num_experts > 0 || index.numel() == 0, op,
        ": expected 'memory' to have a row for each 'index', got ", shape(memory));
  call.follow("index", index, num_experts);
  Tensor out = new_like(memory, {num_experts, dim});
  dispatch_floating(op, memory.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const core::MemoryUpdate<T> a{.memory = data<T>(memory),
                                  .x = data<T>(x),
                                  .gate = data<T>(gate),
                                  .index = data<std::int64_t>(index),
                                  .num_rows = num_rows,
                                  .dim = dim,
                                  .num_experts = num_experts,
                                  .k = gate.size(1),
                                  .rate = rate,
                                  .normalize = normalize,
                                  .eps = eps,
                                  .out = mutable_data<T>(out)};
    if constexpr (kOnDevice) {
      core::cuda::memory_update(a, call.launch(core::cuda::memory_update_workspace<T>(num_rows, dim, num_experts)));
    } else {
      core::memory_update(a);
    }
  });
  return out;
}

}  // namespace
}  // namespace gmoe::ops

GMOE_SCHEMAS(m) {
  m.def(
      "memory_update(Tensor memory, Tensor x, Tensor gate, Tensor index, float rate, bool normalize, float eps) -> "
      "Tensor");
}

GMOE_OPERATORS(m) { m.impl("memory_update", TORCH_BOX(&gmoe::ops::memory_update)); }
