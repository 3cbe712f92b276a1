#include "core/random_walk.h"

#include "ops/random_walk.h"

namespace gmoe::ops {
namespace {

Tensor random_walk(const Tensor& offsets_in, const Tensor& columns_in, const Tensor& starts_in, std::int64_t length,
                   std::int64_t seed) {
  constexpr const char* op = "gmoe::random_walk";
  check_random_walk(offsets_in, columns_in, starts_in, length);
  const Tensor offsets = dense(offsets_in), columns = dense(columns_in), starts = dense(starts_in);
  const std::int64_t num_nodes = offsets.size(0) - 1;
  check_row_values(op, offsets, columns, num_nodes);
  check_indices(op, "starts", starts, num_nodes);
  Tensor walks = new_like(starts, {starts.size(0), length});
  dispatch_index(op, columns.scalar_type(), [&](auto type) {
    using Index = typename decltype(type)::type;
    core::random_walk<Index>({data<std::int64_t>(offsets), data<Index>(columns), data<std::int64_t>(starts),
                              starts.size(0), length, seed, mutable_data<std::int64_t>(walks)});
  });
  return walks;
}

}  // namespace
}  // namespace gmoe::ops

STABLE_TORCH_LIBRARY_IMPL(gmoe, CPU, m) { m.impl("random_walk", TORCH_BOX(&gmoe::ops::random_walk)); }
