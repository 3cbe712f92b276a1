#include "core/random_walk.h"

#include "ops/call.h"

namespace gmoe::ops {
namespace {

Tensor random_walk(const Tensor& offsets_in, const Tensor& columns_in, const Tensor& starts_in, std::int64_t length,
                   std::int64_t seed) {
  constexpr const char* op = "gmoe::random_walk";
  check_rows(op, offsets_in, columns_in);
  check_dim(op, "starts", starts_in, 1);
  check_int64(op, "starts", starts_in);
  check(length >= 1, op, ": expected 'length' >= 1, got ", length);
  Call call(op, offsets_in);
  const Tensor offsets = call.read("offsets", offsets_in), columns = call.read("columns", columns_in);
  const Tensor starts = call.read("starts", starts_in);
  const std::int64_t num_nodes = offsets.size(0) - 1;
  call.follow_rows(offsets, columns, num_nodes);
  call.follow("starts", starts, num_nodes);
  Tensor walks = new_like(starts, {starts.size(0), length});
  dispatch_index(op, columns.scalar_type(), [&](auto type) {
    using Index = typename decltype(type)::type;
    const core::RandomWalk<Index> a{.offsets = data<std::int64_t>(offsets),
                                    .columns = data<Index>(columns),
                                    .starts = data<std::int64_t>(starts),
                                    .num_walks = starts.size(0),
                                    .length = length,
                                    .seed = seed,
                                    .walks = mutable_data<std::int64_t>(walks)};
    if constexpr (kOnDevice) {
      core::cuda::random_walk(a, num_nodes, columns.size(0), call.launch());
    } else {
      core::random_walk(a);
    }
  });
  return walks;
}

}  // namespace
}  // namespace gmoe::ops

GMOE_SCHEMAS(m) { m.def("random_walk(Tensor offsets, Tensor columns, Tensor starts, int length, int seed) -> Tensor"); }

GMOE_OPERATORS(m) { m.impl("random_walk", TORCH_BOX(&gmoe::ops::random_walk)); }
