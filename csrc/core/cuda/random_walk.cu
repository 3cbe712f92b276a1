// A thread takes a walk; each step waits for two dependent reads anywhere in memory, so what counts is how many threads
// wait at once. The walks of a warp collect kStepsPerTile nodes each in shared memory before they are written, so that
// whole lines go out though the walks lie one after another. Floor: the graph's sectors, two for each step.
#include "core/random_walk.h"

#include "core/cuda/row_segments.cuh"
#include "core/splitmix64.h"

namespace gmoe::core::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kStepsPerTile = 16;           // 128 bytes of a walk
constexpr int kStride = kStepsPerTile + 1;  // lanes write to different banks

template <typename Index>
struct Walks {
  RandomWalk<Index> a;
  std::int64_t num_nodes, num_edges;
  BadIndex* bad;

  __device__ std::int64_t next(std::int64_t node, std::uint64_t key, std::int64_t step) const {
    // Where offsets are broken a walk stays too.
    const std::int64_t begin = clamped(a.offsets[node], 0, num_edges);
    const std::int64_t degree = clamped(a.offsets[node + 1], begin, num_edges) - begin;
    if (degree == 0) return node;
    // 63 random bits modulo the degree: the bias is below degree / 2^63.
    const std::uint64_t bits = splitmix64(key + static_cast<std::uint64_t>(step)) >> 1;
    const std::int64_t edge = begin + static_cast<std::int64_t>(bits % static_cast<std::uint64_t>(degree));
    return check_index(a.columns[edge], num_nodes, edge, bad) ? static_cast<std::int64_t>(a.columns[edge]) : node;
  }
};

template <typename Index>
__global__ void __launch_bounds__(kWarps* kWarp) random_walk_kernel(Walks<Index> w) {
  GMOE_SHARED_ARRAY(std::int64_t, all_tiles, kWarps * kWarp * kStride);
  std::int64_t* tile = all_tiles + warp_id() * kWarp * kStride;
  const RandomWalk<Index>& a = w.a;
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * kWarps + warp_id()) * kWarp;
  if (first >= a.num_walks) return;
  const std::int64_t walk = first + lane_id();
  check_offsets(a.offsets, w.num_nodes, w.num_edges, walk, divide_up(a.num_walks, kWarp) * kWarp,
                w.num_edges + a.num_walks, w.bad);
  const std::int64_t start = walk < a.num_walks ? a.starts[walk] : 0;
  const bool walks = walk < a.num_walks && check_index(start, w.num_nodes, w.num_edges + walk, w.bad);
  const std::uint64_t key =
      splitmix64(splitmix64(static_cast<std::uint64_t>(a.seed)) + static_cast<std::uint64_t>(walk));
  std::int64_t node = start;
  for (std::int64_t from = 0; from < a.length; from += kStepsPerTile) {
    const int steps = static_cast<int>(a.length - from < kStepsPerTile ? a.length - from : kStepsPerTile);
    for (int s = 0; s < steps; ++s) {
      if (walks && from + s > 0) node = w.next(node, key, from + s);
      tile[lane_id() * kStride + s] = node;
    }
    __syncwarp();
    for (int i = lane_id(); i < kWarp * kStepsPerTile; i += kWarp) {
      const int of = i / kStepsPerTile, s = i % kStepsPerTile;
      if (s < steps && first + of < a.num_walks) a.walks[(first + of) * a.length + from + s] = tile[of * kStride + s];
    }
    __syncwarp();
  }
}

}  // namespace

template <typename Index>
void random_walk(const RandomWalk<Index>& a, std::int64_t num_nodes, std::int64_t num_edges, const Call& call) {
  if (a.num_walks == 0) return;
  launch("random_walk", random_walk_kernel<Index>, divide_up(a.num_walks, kWarps * kWarp), kWarps * kWarp, 0,
         call.stream, Walks<Index>{a, num_nodes, num_edges, call.bad_index});
}

template void random_walk(const RandomWalk<std::int32_t>&, std::int64_t, std::int64_t, const Call&);
template void random_walk(const RandomWalk<std::int64_t>&, std::int64_t, std::int64_t, const Call&);

}  // namespace gmoe::core::cuda
