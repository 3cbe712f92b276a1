#include "core/random_walk.h"

#include "ops/cuda/rows.h"
#include "ops/random_walk.h"

namespace gmoe::ops {
namespace {

Tensor random_walk(const Tensor& offsets, const Tensor& columns, const Tensor& starts_in, std::int64_t length,
                   std::int64_t seed) {
  constexpr const char* op = "gmoe::random_walk";
  check_random_walk(offsets, columns, starts_in, length);
  DeviceCall call(op, offsets);
  const DeviceRows rows = read_rows(op, call, offsets, columns);
  const Tensor starts = call.read("starts", starts_in);
  const std::int64_t num_nodes = rows.num_rows(), num_edges = rows.num_edges();
  Tensor walks = new_like(starts, {starts.size(0), length});
  dispatch_index(op, rows.columns.scalar_type(), [&](auto type) {
    using Index = typename decltype(type)::type;
    core::cuda::random_walk<Index>(
        {data<std::int64_t>(rows.offsets), data<Index>(rows.columns), data<std::int64_t>(starts), starts.size(0),
         length, seed, mutable_data<std::int64_t>(walks)},
        num_nodes, num_edges,
        call.launch(0, {{"columns", num_edges, num_nodes}, {"starts", starts.size(0), num_nodes}}, kRisingOffsets));
  });
  return walks;
}

}  // namespace
}  // namespace gmoe::ops

GMOE_DEVICE_LIBRARY(m) { m.impl("random_walk", TORCH_BOX(&gmoe::ops::random_walk)); }
