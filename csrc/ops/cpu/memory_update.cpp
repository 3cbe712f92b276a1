#include "core/memory_update.h"

#include "ops/memory_update.h"

namespace gmoe::ops {
namespace {

Tensor memory_update(const Tensor& memory_in, const Tensor& x_in, const Tensor& gate_in, const Tensor& index_in,
                     double rate, bool normalize, double eps) {
  constexpr const char* op = "gmoe::memory_update";
  check_memory_update(memory_in, x_in, gate_in, index_in, rate);
  const Tensor memory = dense(memory_in), x = dense(x_in), gate = dense(gate_in), index = dense_int64(index_in);
  check_indices(op, "index", index, memory.size(0));
  Tensor out = new_like(memory, {memory.size(0), memory.size(1)});
  dispatch_floating(op, memory.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    core::memory_update<T>({data<T>(memory), data<T>(x), data<T>(gate), data<std::int64_t>(index), x.size(0), x.size(1),
                            memory.size(0), gate.size(1), rate, normalize, eps, mutable_data<T>(out)});
  });
  return out;
}

}  // namespace
}  // namespace gmoe::ops

STABLE_TORCH_LIBRARY_IMPL(gmoe, CPU, m) { m.impl("memory_update", TORCH_BOX(&gmoe::ops::memory_update)); }
