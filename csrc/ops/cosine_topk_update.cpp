#include "ops/cosine_topk_update.h"

#include "ops/cosine_topk.h"

namespace gmoe::ops {

void check_cosine_topk_update(const Tensor& x, const Tensor& memory, std::int64_t k, double rate) {
  constexpr const char* op = "gmoe::cosine_topk_update";
  check_cosine_topk(op, x, memory, k);
  check(rate >= 0 && rate <= 1, op, ": expected 'rate' in [0, 1], got ", rate);
}

}  // namespace gmoe::ops

GMOE_SCHEMAS(m) {
  m.def(
      "cosine_topk_update(Tensor x, Tensor memory, int k, float rate, bool normalize, float eps) -> "
      "(Tensor gate, Tensor index, Tensor new_memory)");
}
