#include "core/expert_plan.h"

#include "ops/call.h"

namespace gmoe::ops {
namespace {

std::tuple<Tensor, Tensor> expert_plan(const Tensor& index_in, std::int64_t num_experts) {
  constexpr const char* op = "gmoe::expert_plan";
  check_dim(op, "index", index_in, 2);
  check_index_dtype(op, "index", index_in);
  check(index_in.size(1) >= 1, op, ": expected 'index' of shape [N, k] with k >= 1, got ", shape(index_in));
  check(num_experts >= 1, op, ": expected 'num_experts' >= 1, got ", num_experts);
  Call call(op, index_in);
  const Tensor index = call.read("index", index_in);
  call.follow("index", index, num_experts);
  Tensor offsets = new_like(index, {num_experts + 1}, ScalarType::Long);
  Tensor order = new_like(index, {index.numel()}, ScalarType::Long);
  dispatch_index(op, index.scalar_type(), [&](auto type) {
    using Index = typename decltype(type)::type;
    const core::ExpertPlanSort<Index> a{.index = data<Index>(index),
                                        .num_slots = index.numel(),
                                        .num_experts = num_experts,
                                        .offsets = mutable_data<std::int64_t>(offsets),
                                        .order = mutable_data<std::int64_t>(order)};
    if constexpr (kOnDevice) {
      core::cuda::expert_plan(a, call.launch(core::cuda::expert_plan_workspace(a.num_slots, num_experts)));
    } else {
      core::expert_plan(a);
    }
  });
  return {offsets, order};
}

}  // namespace
}  // namespace gmoe::ops

GMOE_SCHEMAS(m) { m.def("expert_plan(Tensor index, int num_experts) -> (Tensor offsets, Tensor order)"); }

GMOE_OPERATORS(m) { m.impl("expert_plan", TORCH_BOX(&gmoe::ops::expert_plan)); }
