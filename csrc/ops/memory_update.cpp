#include "ops/memory_update.h"

namespace gmoe::ops {

void check_memory_update(const Tensor& memory, const Tensor& x, const Tensor& gate, const Tensor& index, double rate) {
  constexpr const char* op = "gmoe::memory_update";
  check_dim(op, "memory", memory, 2);
  check_floating(op, "memory", memory);
  check_dim(op, "x", x, 2);
  check_same_dtype(op, "x", x, "memory", memory);
  check_size(op, "x", x, 1, memory.size(1), "'memory'");
  check_dim(op, "gate", gate, 2);
  check_same_dtype(op, "gate", gate, "memory", memory);
  check_size(op, "gate", gate, 0, x.size(0), "'x'");
  check_dim(op, "index", index, 2);
  check_index_dtype(op, "index", index);
  check_size(op, "index", index, 0, gate.size(0), "'gate'");
  check_size(op, "index", index, 1, gate.size(1), "'gate'");
  check(rate >= 0 && rate <= 1, op, ": expected 'rate' in [0, 1], got ", rate);
}

}  // namespace gmoe::ops

GMOE_SCHEMAS(m) {
  m.def(
      "memory_update(Tensor memory, Tensor x, Tensor gate, Tensor index, float rate, bool normalize, float eps) -> "
      "Tensor");
}
