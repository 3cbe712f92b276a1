// A block routes the rows of its chunk, 4 a warp (cosine.cuh), and adds them to the sums of their experts
// (memory_sums.cuh) while they are in the first-level cache. A gate is at most 1, so its exp needs no largest gate.
// Where the sums of all experts do not fit beside the scores, routing and memory_update follow one another. Floor: the
// time to read x.
#include "core/cosine_topk_update.h"

#include <algorithm>

#include "core/cosine_topk.h"
#include "core/cuda/cosine.cuh"
#include "core/cuda/memory_sums.cuh"
#include "core/memory_update.h"

namespace gmoe::core::cuda {
namespace {

constexpr int kMaxRouteWarps = 4;
constexpr std::size_t kMostSharedBytes = 96 << 10;

template <typename T>
struct Work {
  CosineTopkUpdate<T> a;
  MemorySums<Accumulator<T>> sums;
};

// Slots of a warp's rows from what it has just written: gates as the caller sees them, rounded, so that the average is
// memory_update's.
template <typename T, typename A>
__device__ void fill_slots(const CosineTopkUpdate<T>& a, std::int64_t first, int count, const A* row_scale,
                           const RowSlots<A>& slots) {
  const std::int64_t k = a.route.k, place = warp_id() * kRowsPerWarp * k;
  for (std::int64_t s = lane_id(); s < count * k; s += kWarp) {
    const A share = std::exp(widened(a.route.gate[first * k + s]));
    slots.share[place + s] = share;
    slots.factor[place + s] = a.normalize ? share * row_scale[s / k] : share;
    slots.expert[place + s] = static_cast<int>(a.route.index[first * k + s]);
  }
}

template <int V, typename T>
__global__ void __launch_bounds__(kMaxRouteWarps* kWarp, sizeof(Accumulator<T>) == 8 ? 2 : 3)
    cosine_topk_update_kernel(Work<T> w) {
  using A = Accumulator<T>;
  const CosineTopk<T>& a = w.a.route;
  const int rows_per_step = warps_per_block() * kRowsPerWarp;
  DynamicShared shared;
  A* score = shared.take<A>(rows_per_step * a.num_experts) + warp_id() * kRowsPerWarp * a.num_experts;
  A* top = shared.take<A>(rows_per_step * a.k) + warp_id() * kRowsPerWarp * a.k;
  A* expert_scale = shared.take<A>(a.num_experts);
  A* row_scale = shared.take<A>(rows_per_step) + warp_id() * kRowsPerWarp;
  A* total = shared.take<A>(a.num_experts);
  A* sum = shared.take<A>(a.num_experts * a.dim);
  const RowSlots<A> slots{shared.take<A>(rows_per_step * a.k), shared.take<A>(rows_per_step * a.k),
                          shared.take<int>(rows_per_step * a.k)};
  inverse_norms<V>(a.memory, a.num_experts, a.dim, static_cast<A>(a.eps), expert_scale);
  for (std::int64_t i = threadIdx.x; i < a.num_experts * a.dim; i += blockDim.x) sum[i] = 0;
  for (std::int64_t e = threadIdx.x; e < a.num_experts; e += blockDim.x) total[e] = 0;
  __syncthreads();
  const std::int64_t begin = blockIdx.x * w.sums.chunks.rows_per_chunk;
  const std::int64_t after = begin + w.sums.chunks.rows_per_chunk, end = after < a.num_rows ? after : a.num_rows;
  for (std::int64_t step = begin; step < end; step += rows_per_step) {
    const int in_step = static_cast<int>(end - step < rows_per_step ? end - step : rows_per_step);
    const int before = warp_id() * kRowsPerWarp;
    const int count = in_step - before < kRowsPerWarp ? in_step - before : kRowsPerWarp;
    if (count > 0) {
      const std::int64_t first = step + before;
      cosines<V>(a, a.x + first * a.dim, count, expert_scale, score, row_scale);
      __syncwarp();
      write_top_k<T>(score, top, count, a.num_experts, a.k, a.gate + first * a.k, a.index + first * a.k);
      __syncwarp();
      fill_slots(w.a, first, count, row_scale, slots);
    }
    __syncthreads();
    add_rows<(V > 1 ? 2 : 1)>(a.x + step * a.dim, a.dim, in_step, a.k, slots, a.dim, sum);
    add_shares(slots, in_step * a.k, a.num_experts, total);
    __syncthreads();
  }
  for (std::int64_t i = threadIdx.x; i < a.num_experts * a.dim; i += blockDim.x) {
    w.sums.numerator(blockIdx.x, 0)[i] = sum[i];
  }
  for (std::int64_t e = threadIdx.x; e < a.num_experts; e += blockDim.x) {
    *w.sums.denominator(blockIdx.x, e) = total[e];
    *w.sums.largest(blockIdx.x, e) = 0;
  }
}

template <int V, typename T>
void route_and_average(const Work<T>& w, int warps, std::size_t bytes, Stream stream) {
  launch("cosine_topk_update", cosine_topk_update_kernel<V, T>, w.sums.chunks.count, warps * kWarp, bytes, stream, w);
  average_memory<T>({w.sums, w.a.route.memory, w.a.rate, w.a.route.eps, w.a.new_memory}, stream);
}

}  // namespace

template <typename T>
std::int64_t cosine_topk_update_workspace(std::int64_t num_rows, std::int64_t dim, std::int64_t num_experts) {
  return memory_update_workspace<T>(num_rows, dim, num_experts);
}

template <typename T>
void cosine_topk_update(const CosineTopkUpdate<T>& update, const Call& call) {
  using A = Accumulator<T>;
  const CosineTopk<T>& a = update.route;
  check_experts("cosine_topk_update", a.num_experts);
  const int warps = std::min(kMaxRouteWarps, router_warps(a.num_experts));
  const std::int64_t rows = warps * kRowsPerWarp;
  const std::size_t bytes =
      router_bytes<A>(a.num_experts, a.k, warps) +
      shared_bytes<A, A, A, A, A, A, int>(a.num_experts, rows, a.num_experts, a.num_experts * a.dim, rows * a.k,
                                          rows * a.k, rows * a.k);
  const bool fits = a.num_experts * a.dim * static_cast<std::int64_t>(sizeof(A)) <= kMostSumBytes;
  if (a.num_rows * a.dim == 0 || !fits || bytes > kMostSharedBytes) {
    cosine_topk(a, call);
    return memory_update<T>({a.memory, a.x, a.gate, a.index, a.num_rows, a.dim, a.num_experts, a.k, update.rate,
                             update.normalize, a.eps, update.new_memory},
                            call);
  }
  const Work<T> w{update,
                  {memory_chunks(a.num_rows, a.num_experts), a.num_experts, a.dim, static_cast<A*>(call.workspace)}};
  if (fits_packs<kPack<T>>(a.dim, a.x, a.memory)) return route_and_average<kPack<T>>(w, warps, bytes, call.stream);
  route_and_average<1>(w, warps, bytes, call.stream);
}

#define GMOE_INSTANTIATE(T)                                                                        \
  template std::int64_t cosine_topk_update_workspace<T>(std::int64_t, std::int64_t, std::int64_t); \
  template void cosine_topk_update(const CosineTopkUpdate<T>&, const Call&);
GMOE_INSTANTIATE(float)
GMOE_INSTANTIATE(double)
GMOE_INSTANTIATE(bfloat16)
#undef GMOE_INSTANTIATE

}  // namespace gmoe::core::cuda
