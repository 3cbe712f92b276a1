#include "ops/random_walk.h"

namespace gmoe::ops {

void check_random_walk(const Tensor& offsets, const Tensor& columns, const Tensor& starts, std::int64_t length) {
  constexpr const char* op = "gmoe::random_walk";
  check_rows(op, offsets, columns);
  check_dim(op, "starts", starts, 1);
  check_int64(op, "starts", starts);
  check(length >= 1, op, ": expected 'length' >= 1, got ", length);
}

}  // namespace gmoe::ops

GMOE_SCHEMAS(m) { m.def("random_walk(Tensor offsets, Tensor columns, Tensor starts, int length, int seed) -> Tensor"); }
