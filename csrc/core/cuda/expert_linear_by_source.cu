// A warp adds up the rows of a sum's slots, which are sorted by source. Floor: reading every slot's row once.
#include "core/cuda/expert_linear_by_source.h"

#include "core/cuda/key_sort.cuh"

namespace gmoe::core::cuda {
namespace {

constexpr int kThreads = 256;

// A bad source is behind all others.
struct SourceKey {
  const std::int64_t* source;
  std::int64_t num_sources;
  BadIndex* bad;

  __device__ std::int64_t operator()(std::int64_t slot) const {
    return check_index(source[slot], num_sources, slot, bad) ? source[slot] : num_sources;
  }
};

// A warp per row.
template <int V, typename T>
__global__ void sum_slots_kernel(SlotSums<T> a) {
  using A = Accumulator<T>;
  const std::int64_t row = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  if (row >= a.num_rows) return;
  const std::int64_t begin = a.start != nullptr ? a.start[row] : row * a.per_row;
  const std::int64_t end = a.start != nullptr ? a.start[row + 1] : begin + a.per_row;
  for (std::int64_t d = lane_id() * V; d < a.dim; d += kWarp * V) {
    A sum[V] = {};
    for (std::int64_t i = begin; i < end; ++i) {
      if (a.order[i] < 0) continue;
      const Pack<A, V> pack = load<V>(a.rows + a.order[i] * a.dim + d);
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += pack.value[v];
    }
    Pack<T, V> result;
#pragma unroll
    for (int v = 0; v < V; ++v) result.value[v] = narrowed<T>(sum[v]);
    store<V>(a.out + row * a.dim + d, result);
  }
}

}  // namespace

template <typename T>
void sum_slots(const SlotSums<T>& a, const Call& call) {
  constexpr int V = kPack<Accumulator<T>>;
  if (a.num_rows * a.dim == 0) return;
  launch("expert_linear/sum_slots",
         fits_packs<V>(a.dim, a.rows, a.out) ? sum_slots_kernel<V, T> : sum_slots_kernel<1, T>,
         divide_up(a.num_rows, kThreads / kWarp), kThreads, 0, call.stream, a);
}

template <typename T>
void sum_by_source(const SumBySource<T>& a, Workspace& workspace, const Call& call) {
  const KeySort sort(a.num_slots, a.num_sources + 1, workspace);
  if (workspace.counts_only() || a.num_sources * a.dim == 0) return;
  sort_by_key(sort, SourceKey{a.source, a.num_sources, call.bad_index}, call);
  sum_slots<T>({a.rows, sort.order, sort.start, 0, a.num_sources, a.dim, a.out}, call);
}

template void sum_slots(const SlotSums<float>&, const Call&);
template void sum_by_source(const SumBySource<float>&, Workspace&, const Call&);
template void sum_slots(const SlotSums<double>&, const Call&);
template void sum_by_source(const SumBySource<double>&, Workspace&, const Call&);
template void sum_slots(const SlotSums<bfloat16>&, const Call&);
template void sum_by_source(const SumBySource<bfloat16>&, Workspace&, const Call&);

}  // namespace gmoe::core::cuda
