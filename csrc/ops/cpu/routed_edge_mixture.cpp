#include "core/routed_edge_mixture.h"

#include "ops/cpu/routed_edges.h"
#include "ops/routed_edge_mixture.h"

namespace gmoe::ops {
namespace {

Tensor routed_edge_mixture(const Tensor& x, const Tensor& table, const Tensor& index, const Tensor& gate_in,
                           const OptionalTensor& scale_in, const OptionalTensor& shift_in,
                           const OptionalTensor& onto_in, std::int64_t first_expert, const Tensor& offsets,
                           const Tensor& columns, const Tensor& edge_type, const OptionalTensor& weight) {
  constexpr const char* op = "gmoe::routed_edge_mixture";
  const RoutedEdges in = checked_edges(op, x, table, index, first_expert, offsets, columns, edge_type, weight, false);
  check_routed_edge_mixture(in.x, in.table, in.index, gate_in, scale_in, shift_in, onto_in);
  const Tensor gate = dense(gate_in);
  const OptionalTensor scale = dense(scale_in), shift = dense(shift_in), onto = dense(onto_in);
  Tensor y = new_like(in.x, {in.index.size(0), in.dim()});
  dispatch_rows(op, in.x, in.columns, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    core::routed_edge_mixture<T, Index>(
        {in.messages<T, Index>(), data<T>(gate), data<T>(scale), data<T>(shift), data<T>(onto), mutable_data<T>(y)});
  });
  return y;
}

}  // namespace
}  // namespace gmoe::ops

STABLE_TORCH_LIBRARY_IMPL(gmoe, CPU, m) { m.impl("routed_edge_mixture", TORCH_BOX(&gmoe::ops::routed_edge_mixture)); }
