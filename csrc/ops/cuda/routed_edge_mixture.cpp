#include "core/routed_edge_mixture.h"

#include "ops/cuda/routed_edges.h"
#include "ops/routed_edge_mixture.h"

namespace gmoe::ops {
namespace {

Tensor routed_edge_mixture(const Tensor& x, const Tensor& table, const Tensor& index, const Tensor& gate_in,
                           const OptionalTensor& scale_in, const OptionalTensor& shift_in,
                           const OptionalTensor& onto_in, std::int64_t first_expert, const Tensor& offsets,
                           const Tensor& columns, const Tensor& edge_type, const OptionalTensor& weight) {
  constexpr const char* op = "gmoe::routed_edge_mixture";
  check_routed_edge_aggregate(op, x, table, index, offsets, columns, edge_type, weight);
  check_routed_edge_mixture(x, table, index, gate_in, scale_in, shift_in, onto_in);
  DeviceCall call(op, x);
  const EdgesOnDevice in(op, call, x, table, index, first_expert, offsets, columns, edge_type, weight, false);
  const Tensor gate = call.read("gate", gate_in);
  const OptionalTensor scale = call.read("scale", scale_in), shift = call.read("shift", shift_in);
  const OptionalTensor onto = call.read("onto", onto_in);
  Tensor y = new_like(in.x, {in.index.size(0), in.dim()});
  dispatch_rows(op, in.x, in.columns, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    const core::EdgeMessages<T, Index> messages = in.messages<T, Index>();
    core::cuda::routed_edge_mixture<T, Index>(
        {messages, data<T>(gate), data<T>(scale), data<T>(shift), data<T>(onto), mutable_data<T>(y)},
        in.launch(call, core::cuda::routed_edge_mixture_workspace(messages)));
  });
  return y;
}

}  // namespace
}  // namespace gmoe::ops

GMOE_DEVICE_LIBRARY(m) { m.impl("routed_edge_mixture", TORCH_BOX(&gmoe::ops::routed_edge_mixture)); }
