#include "ops/cosine_topk_update.h"

namespace gmoe::ops {

void check_cosine_topk_update(const Tensor& x, const Tensor& memory, std::int64_t k, double rate) {
  constexpr const char* op = "gmoe::cosine_topk_update";
  check_dim(op, "x", x, 2);
  check_dim(op, "memory", memory, 2);
  check_floating(op, "x", x);
  check_same_dtype(op, "memory", memory, "x", x);
  check_size(op, "memory", memory, 1, x.size(1), "'x'");
  check(k >= 1 && k <= memory.size(0), op, ": expected 1 <= k <= ", memory.size(0), " experts, got ", k);
  check(rate >= 0 && rate <= 1, op, ": expected 'rate' in [0, 1], got ", rate);
}

}  // namespace gmoe::ops

STABLE_TORCH_LIBRARY_FRAGMENT(gmoe, m) {
  m.def(
      "cosine_topk_update(Tensor x, Tensor memory, int k, float rate, bool normalize, float eps) -> "
      "(Tensor gate, Tensor index, Tensor new_memory)");
}
