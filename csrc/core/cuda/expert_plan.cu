// A stable counting sort in three launches: count by chunk and expert; the prefix of the counts in (expert, chunk)
// order; each chunk writes its slots where they belong. Within a chunk, tiles of one slot per thread follow one
// another; a slot's place among its tile is the number of equal ones before it in its warp, by one match, and in
// earlier warps. Floor: reading the index twice and writing the order once.
#include "core/expert_plan.h"

#include "core/cuda/prefix.cuh"

namespace gmoe::core::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kScanThreads = 1024;
constexpr std::int64_t kSlotsPerChunk = 8 * kThreads;
constexpr std::int64_t kMaxChunks = 1024;  // keeps the prefix, which one block makes, short

std::int64_t slots_per_chunk(std::int64_t num_slots) {
  const std::int64_t least = divide_up(divide_up(num_slots, kMaxChunks), kThreads) * kThreads;
  return least > kSlotsPerChunk ? least : kSlotsPerChunk;
}

template <typename Index>
struct Chunks {
  ExpertPlanSort<Index> a;
  std::int64_t per_chunk, num_chunks;
  std::int64_t* start;  // [num_experts, num_chunks]: counts, then the first place of each
  BadIndex* bad;

  __device__ std::int64_t begin() const { return static_cast<std::int64_t>(blockIdx.x) * per_chunk; }
  __device__ std::int64_t end() const { return begin() + per_chunk < a.num_slots ? begin() + per_chunk : a.num_slots; }
};

template <typename Index>
__global__ void count_kernel(Chunks<Index> c) {
  DynamicShared shared;
  int* count = shared.take<int>(c.a.num_experts);
  for (std::int64_t e = threadIdx.x; e < c.a.num_experts; e += kThreads) count[e] = 0;
  __syncthreads();
  for (std::int64_t s = c.begin() + threadIdx.x; s < c.end(); s += kThreads) {
    const std::int64_t e = c.a.index[s];
    if (check_index(e, c.a.num_experts, s, c.bad)) atomicAdd(count + e, 1);
  }
  __syncthreads();
  for (std::int64_t e = threadIdx.x; e < c.a.num_experts; e += kThreads) {
    c.start[e * c.num_chunks + blockIdx.x] = count[e];
  }
}

template <typename Index>
__global__ void prefix_kernel(Chunks<Index> c) {
  GMOE_SHARED_ARRAY(std::int64_t, warp_total, kScanThreads / kWarp);
  const std::int64_t n = c.a.num_experts * c.num_chunks;
  std::int64_t carried = 0;
  for (std::int64_t first = 0; first < n; first += kScanThreads) {
    const std::int64_t i = first + threadIdx.x;
    std::int64_t total;
    const std::int64_t place = carried + sum_before(i < n ? c.start[i] : 0, warp_total, &total);
    if (i < n) {
      c.start[i] = place;
      if (i % c.num_chunks == 0) c.a.offsets[i / c.num_chunks] = place;
    }
    carried += total;
  }
  if (threadIdx.x == 0) c.a.offsets[c.a.num_experts] = carried;
}

template <typename Index>
__global__ void place_kernel(Chunks<Index> c) {
  const std::int64_t experts = c.a.num_experts;
  DynamicShared shared;
  std::int64_t* next = shared.take<std::int64_t>(experts);
  int* count = shared.take<int>(kWarps * experts);  // [kWarps, experts], of the tile
  for (std::int64_t e = threadIdx.x; e < experts; e += kThreads) {
    next[e] = c.start[e * c.num_chunks + blockIdx.x];
    for (int w = 0; w < kWarps; ++w) count[w * experts + e] = 0;
  }
  __syncthreads();
  for (std::int64_t first = c.begin(); first < c.end(); first += kThreads) {
    const std::int64_t s = first + threadIdx.x;
    // Slots past the end and bad ones match each other and are left out.
    const std::int64_t e = s < c.end() ? static_cast<std::int64_t>(c.a.index[s]) : -1;
    const bool valid = e >= 0 && e < experts;
    const unsigned same = __match_any_sync(kAllLanes, static_cast<unsigned long long>(valid ? e : -1));
    const int before = __popc(same & ((1u << lane_id()) - 1));
    if (valid && before == 0) count[warp_id() * experts + e] = __popc(same);
    __syncthreads();
    if (valid) {
      std::int64_t place = next[e] + before;
      for (int w = 0; w < warp_id(); ++w) place += count[w * experts + e];
      c.a.order[place] = s;
    }
    __syncthreads();
    for (std::int64_t i = threadIdx.x; i < experts; i += kThreads) {
      for (int w = 0; w < kWarps; ++w) {
        next[i] += count[w * experts + i];
        count[w * experts + i] = 0;
      }
    }
    __syncthreads();
  }
}

}  // namespace

std::int64_t expert_plan_workspace(std::int64_t num_slots, std::int64_t num_experts) {
  const std::int64_t chunks = divide_up(num_slots, slots_per_chunk(num_slots));
  return chunks * num_experts * static_cast<std::int64_t>(sizeof(std::int64_t));
}

template <typename Index>
void expert_plan(const ExpertPlanSort<Index>& a, const Call& call) {
  check_experts("expert_plan", a.num_experts);
  if (a.num_slots == 0) {
    fill_zero(a.offsets, static_cast<std::size_t>(a.num_experts + 1) * sizeof(std::int64_t), call.stream);
    return;
  }
  const std::int64_t per_chunk = slots_per_chunk(a.num_slots), num_chunks = divide_up(a.num_slots, per_chunk);
  const Chunks<Index> c{a, per_chunk, num_chunks, static_cast<std::int64_t*>(call.workspace), call.bad_index};
  launch("expert_plan/count", count_kernel<Index>, num_chunks, kThreads, shared_bytes<int>(a.num_experts), call.stream,
         c);
  launch("expert_plan/prefix", prefix_kernel<Index>, 1, kScanThreads, 0, call.stream, c);
  launch("expert_plan/place", place_kernel<Index>, num_chunks, kThreads,
         shared_bytes<std::int64_t, int>(a.num_experts, kWarps * a.num_experts), call.stream, c);
}

template void expert_plan(const ExpertPlanSort<std::int32_t>&, const Call&);
template void expert_plan(const ExpertPlanSort<std::int64_t>&, const Call&);

}  // namespace gmoe::core::cuda
