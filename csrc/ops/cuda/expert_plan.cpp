#include "core/expert_plan.h"

#include "ops/cuda/call.h"
#include "ops/expert_plan.h"

namespace gmoe::ops {
namespace {

std::tuple<Tensor, Tensor> expert_plan(const Tensor& index_in, std::int64_t num_experts) {
  constexpr const char* op = "gmoe::expert_plan";
  check_expert_plan(index_in, num_experts);
  DeviceCall call(op, index_in);
  const Tensor index = call.read("index", index_in);
  Tensor offsets = new_like(index, {num_experts + 1}, ScalarType::Long);
  Tensor order = new_like(index, {index.numel()}, ScalarType::Long);
  dispatch_index(op, index.scalar_type(), [&](auto type) {
    using Index = typename decltype(type)::type;
    core::cuda::expert_plan<Index>({data<Index>(index), index.numel(), num_experts, mutable_data<std::int64_t>(offsets),
                                    mutable_data<std::int64_t>(order)},
                                   call.launch(core::cuda::expert_plan_workspace(index.numel(), num_experts),
                                               {{"index", index.numel(), num_experts}}));
  });
  return {offsets, order};
}

}  // namespace
}  // namespace gmoe::ops

GMOE_DEVICE_LIBRARY(m) { m.impl("expert_plan", TORCH_BOX(&gmoe::ops::expert_plan)); }
