// Forward, a thread takes the four elements of a word; backward, an element of x and its slots. Floor: the time to read
// and write the rows.
#include "core/dropout.h"

#include "core/cuda/primitives.cuh"
#include "core/splitmix64.h"

namespace gmoe::core::cuda {
namespace {

constexpr int kThreads = 256;

__device__ std::uint64_t word(std::uint64_t key, std::int64_t w) {
  return splitmix64(key + static_cast<std::uint64_t>(w) * kSplitmixIncrement);
}
// Whether element j is kept, by the word that holds its level.
__device__ bool kept(std::uint64_t bits, std::int64_t j, std::uint16_t dropped) {
  return static_cast<std::uint16_t>(bits >> (16 * (j % 4))) >= dropped;
}

template <typename T>
__global__ void dropout_kernel(Dropout<T> a) {
  using A = Accumulator<T>;
  const std::int64_t w = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const std::int64_t per_row = a.mask.slots * a.mask.width, elements = a.mask.num_rows * per_row;
  if (4 * w >= elements) return;
  const std::uint64_t bits = word(splitmix64(static_cast<std::uint64_t>(*a.mask.seed)), w);
  std::int64_t row = 4 * w / per_row, within = 4 * w % per_row;
  const std::int64_t end = 4 * w + 4 < elements ? 4 * w + 4 : elements;
  for (std::int64_t j = 4 * w; j < end; ++j) {
    const A x = widened(a.x[row * a.mask.width + within % a.mask.width]);
    a.y[j] = narrowed<T>(x * (kept(bits, j, a.mask.dropped) ? a.mask.scale : A{0}));
    if (++within == per_row) {
      within = 0;
      ++row;
    }
  }
}

template <typename T>
__global__ void dropout_grad_x_kernel(DropoutGradX<T> a) {
  using A = Accumulator<T>;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= a.mask.num_rows * a.mask.width) return;
  const std::uint64_t key = splitmix64(static_cast<std::uint64_t>(*a.mask.seed));
  const std::int64_t row = i / a.mask.width, d = i % a.mask.width;
  A sum = 0;
  for (std::int64_t r = 0; r < a.mask.slots; ++r) {
    const std::int64_t j = (row * a.mask.slots + r) * a.mask.width + d;
    sum += widened(a.grad_y[j]) * (kept(word(key, j / 4), j, a.mask.dropped) ? a.mask.scale : A{0});
  }
  a.grad_x[i] = narrowed<T>(sum);
}

}  // namespace

template <typename T>
void dropout(const Dropout<T>& a, const Call& call) {
  const std::int64_t words = divide_up(a.mask.num_rows * a.mask.slots * a.mask.width, 4);
  if (words == 0) return;
  launch("dropout", dropout_kernel<T>, divide_up(words, kThreads), kThreads, 0, call.stream, a);
}

template <typename T>
void dropout_grad_x(const DropoutGradX<T>& a, const Call& call) {
  if (a.mask.num_rows * a.mask.width == 0) return;
  launch("dropout_grad_x", dropout_grad_x_kernel<T>, divide_up(a.mask.num_rows * a.mask.width, kThreads), kThreads, 0,
         call.stream, a);
}

template void dropout(const Dropout<float>&, const Call&);
template void dropout(const Dropout<double>&, const Call&);
template void dropout(const Dropout<bfloat16>&, const Call&);
template void dropout_grad_x(const DropoutGradX<float>&, const Call&);
template void dropout_grad_x(const DropoutGradX<double>&, const Call&);
template void dropout_grad_x(const DropoutGradX<bfloat16>&, const Call&);

}  // namespace gmoe::core::cuda
