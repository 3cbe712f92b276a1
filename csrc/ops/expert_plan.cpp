#include "ops/expert_plan.h"

namespace gmoe::ops {

void check_expert_plan(const Tensor& index, std::int64_t num_experts) {
  constexpr const char* op = "gmoe::expert_plan";
  check_dim(op, "index", index, 2);
  check_index_dtype(op, "index", index);
  check(index.size(1) >= 1, op, ": expected 'index' of shape [N, k] with k >= 1, got ", shape(index));
  check(num_experts >= 1, op, ": expected 'num_experts' >= 1, got ", num_experts);
}

void check_plan(const char* op, const Tensor& offsets, const Tensor& order, std::int64_t k) {
  check_dim(op, "offsets", offsets, 1);
  check_int64(op, "offsets", offsets);
  check(offsets.size(0) >= 2, op, ": expected 'offsets' of shape [E + 1] with E >= 1, got ", shape(offsets));
  check_dim(op, "order", order, 1);
  check_int64(op, "order", order);
  check(k >= 1 && order.size(0) % k == 0, op, ": expected 'order' of shape [N * k] with k = ", k, ", got ",
        shape(order));
}

}  // namespace gmoe::ops

GMOE_SCHEMAS(m) { m.def("expert_plan(Tensor index, int num_experts) -> (Tensor offsets, Tensor order)"); }
