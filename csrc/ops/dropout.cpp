#include "core/dropout.h"

#include <algorithm>
#include <cmath>

#include "ops/call.h"

namespace gmoe::ops {
namespace {

constexpr std::int64_t kLevels = 1 << 16;

void check_arguments(const char* op, const char* name, const Tensor& rows, const Tensor& seed, double rate,
                     std::int64_t slots) {
  check_dim(op, name, rows, 2);
  check_floating(op, name, rows);
  check_dim(op, "seed", seed, 1);
  check_size(op, "seed", seed, 0, 1, "one draw");
  check_int64(op, "seed", seed);
  check(rate >= 0 && rate < 1, op, ": expected 'rate' in [0, 1), got ", rate);
  check(slots >= 1, op, ": expected 'slots' >= 1, got ", slots);
}

// Drops the levels that come nearest to the rate and leave something.
template <typename T>
core::DropoutMask<T> mask_of(const Tensor& rows, std::int64_t slots, const Tensor& seed, double rate) {
  using A = core::Accumulator<T>;
  const std::int64_t dropped = std::min<std::int64_t>(std::llround(rate * kLevels), kLevels - 1);
  return {.num_rows = rows.size(0),
          .width = rows.size(1),
          .slots = slots,
          .seed = data<std::int64_t>(seed),
          .dropped = static_cast<std::uint16_t>(dropped),
          .scale = static_cast<A>(kLevels) / static_cast<A>(kLevels - dropped)};
}

Tensor dropout(const Tensor& x_in, const Tensor& seed_in, double rate, std::int64_t slots) {
  constexpr const char* op = "gmoe::dropout";
  check_arguments(op, "x", x_in, seed_in, rate, slots);
  Call call(op, x_in);
  const Tensor x = call.read("x", x_in), seed = call.read("seed", seed_in);
  Tensor y = new_like(x, {x.size(0) * slots, x.size(1)});
  dispatch_floating(op, x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const core::Dropout<T> a{mask_of<T>(x, slots, seed, rate), data<T>(x), mutable_data<T>(y)};
    if constexpr (kOnDevice) {
      core::cuda::dropout(a, call.launch());
    } else {
      core::dropout(a);
    }
  });
  return y;
}

Tensor dropout_grad_x(const Tensor& grad_y_in, const Tensor& seed_in, double rate, std::int64_t slots) {
  constexpr const char* op = "gmoe::dropout_grad_x";
  check_arguments(op, "grad_y", grad_y_in, seed_in, rate, slots);
  check(grad_y_in.size(0) % slots == 0, op, ": expected 'grad_y' of shape [N * slots, D] with slots = ", slots,
        ", got ", shape(grad_y_in));
  Call call(op, grad_y_in);
  const Tensor grad_y = call.read("grad_y", grad_y_in), seed = call.read("seed", seed_in);
  Tensor grad_x = new_like(grad_y, {grad_y.size(0) / slots, grad_y.size(1)});
  dispatch_floating(op, grad_y.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const core::DropoutGradX<T> a{mask_of<T>(grad_x, slots, seed, rate), data<T>(grad_y), mutable_data<T>(grad_x)};
    if constexpr (kOnDevice) {
      core::cuda::dropout_grad_x(a, call.launch());
    } else {
      core::dropout_grad_x(a);
    }
  });
  return grad_x;
}

}  // namespace
}  // namespace gmoe::ops

GMOE_SCHEMAS(m) {
  m.def("dropout(Tensor x, Tensor seed, float rate, int slots) -> Tensor");
  m.def("dropout_grad_x(Tensor grad_y, Tensor seed, float rate, int slots) -> Tensor");
}

GMOE_OPERATORS(m) {
  m.impl("dropout", TORCH_BOX(&gmoe::ops::dropout));
  m.impl("dropout_grad_x", TORCH_BOX(&gmoe::ops::dropout_grad_x));
}
