// A warp takes a row and marks what its paths reach in a bitmap of kWindow columns in shared memory, from the lowest
// to the highest column reached: one window for a molecule wherever it lies in the batch. Bits are in the order of
// columns, so nothing is sorted, and marking is the same in any order. The first call counts bits, the second writes
// them; the path that gives an edge its type is found by two integer minima over the row's paths. Floor: reading the
// paths.
#include "core/two_hop_graph.h"

#include "core/cuda/prefix.cuh"
#include "core/cuda/row_segments.cuh"
#include "core/cuda/workspace.h"

namespace gmoe::core::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kBlocksAtOnce = 4;   // of a multiprocessor; left to itself the compiler takes more, and spills
constexpr int kWindowWords = 256;  // two arrays of them a warp: 16 KiB a block
constexpr std::int64_t kWindow = kWindowWords * 32;
constexpr unsigned long long kNoPath = ~0ull;

template <typename Index>
struct Paths {
  TwoHopGraph<Index> a;
  std::int64_t num_edges;
  BadIndex* bad;

  // Broken offsets are noted, and lead to no edge that does not exist.
  __device__ std::int64_t begin(std::int64_t row) const { return clamped(a.offsets[row], 0, num_edges); }
  __device__ std::int64_t end(std::int64_t row) const { return clamped(a.offsets[row + 1], 0, num_edges); }

  __device__ bool usable(std::int64_t edge) const {
    const auto in = [](std::int64_t value, std::int64_t bound) { return value >= 0 && value < bound; };
    return in(a.columns[edge], a.num_nodes) && (a.edge_type == nullptr || in(a.edge_type[edge], a.num_types));
  }
  __device__ void check(std::int64_t edge) const {
    check_index(a.columns[edge], a.num_nodes, edge, bad);
    if (a.edge_type != nullptr) check_index(a.edge_type[edge], a.num_types, num_edges + edge, bad);
  }
  // f(column, middle, first, second) for the paths column -> middle -> i, by edges; a lane takes some of each middle's.
  template <typename F>
  __device__ __forceinline__ void for_each(std::int64_t i, const F& f) const {
    for (std::int64_t second = begin(i), last = end(i); second < last; ++second) {
      if (!usable(second)) continue;
      const std::int64_t middle = a.columns[second];
      for (std::int64_t first = begin(middle) + lane_id(), end = this->end(middle); first < end; first += kWarp) {
        if (usable(first)) f(static_cast<std::int64_t>(a.columns[first]), middle, first, second);
      }
    }
  }
};

// The columns from `first` on that are in a row, a bit each.
struct Window {
  unsigned* word;
  std::int64_t first, words;

  __device__ bool covers(std::int64_t column) const { return column >= first && column < first + words * 32; }
  __device__ unsigned* word_of(std::int64_t column) const { return word + (column - first) / 32; }
  __device__ unsigned bit_of(std::int64_t column) const { return 1u << (column - first) % 32; }
};

// f(window) for each that has columns of row i, with its bits in place, by a whole warp.
template <typename Index, typename F>
__device__ __forceinline__ void for_each_window(const Paths<Index>& paths, std::int64_t i, unsigned* word, const F& f) {
  const auto& a = paths.a;
  if (paths.begin(i) >= paths.end(i)) return;
  std::int64_t lowest = a.num_nodes, highest = -1;
  paths.for_each(i, [&](std::int64_t column, std::int64_t, std::int64_t, std::int64_t) {
    lowest = column < lowest ? column : lowest;
    highest = column > highest ? column : highest;
  });
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    const std::int64_t low = __shfl_xor_sync(kAllLanes, lowest, lanes);
    const std::int64_t high = __shfl_xor_sync(kAllLanes, highest, lanes);
    lowest = low < lowest ? low : lowest;
    highest = high > highest ? high : highest;
  }
  for (std::int64_t first = lowest; first <= highest; first += kWindow) {
    const std::int64_t words = divide_up(highest + 1 - first, 32);
    const Window window{word, first, words < kWindowWords ? words : kWindowWords};
    for (std::int64_t w = lane_id(); w < window.words; w += kWarp) word[w] = 0;
    __syncwarp();
    paths.for_each(i, [&](std::int64_t column, std::int64_t, std::int64_t, std::int64_t) {
      if (window.covers(column)) atomicOr(window.word_of(column), window.bit_of(column));
    });
    __syncwarp();
    const auto leave_out = [&](std::int64_t column) {
      if (window.covers(column)) atomicAnd(window.word_of(column), ~window.bit_of(column));
    };
    if (a.exclude_self && lane_id() == 0) leave_out(i);
    for (std::int64_t e = paths.begin(i) + lane_id(); a.exclude_one_hop && e < paths.end(i); e += kWarp) {
      if (paths.usable(e)) leave_out(a.columns[e]);
    }
    __syncwarp();
    // For the next window a lane clears the words that it read; what others read of them, f ends by a barrier.
    f(window);
  }
}

template <typename Index>
__global__ void __launch_bounds__(kWarps* kWarp, kBlocksAtOnce)
    two_hop_lengths_kernel(Paths<Index> paths, std::int64_t* length) {
  GMOE_SHARED_ARRAY(unsigned, words, kWarps* kWindowWords);
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp_id();
  if (i >= paths.a.num_nodes) return;
  for (std::int64_t e = paths.begin(i) + lane_id(); e < paths.end(i); e += kWarp) paths.check(e);
  if (lane_id() == 0) {
    check_offsets(paths.a.offsets, paths.a.num_nodes, paths.num_edges, i, paths.a.num_nodes,
                  (paths.a.edge_type == nullptr ? 1 : 2) * paths.num_edges, paths.bad);
  }
  std::int64_t count = 0;
  for_each_window(paths, i, words + warp_id() * kWindowWords, [&](const Window& window) {
    for (std::int64_t w = lane_id(); w < window.words; w += kWarp) count += __popc(window.word[w]);
  });
  count = warp_sum(count);
  if (lane_id() == 0) length[i] = count;
}

// Of each new edge: the middle node of its path, then the path's edges as places in the rows of i and of the middle.
struct BestPaths {
  unsigned long long *middle, *edges;  // [num_edges]
};

template <typename Index>
struct RowWriter {
  Paths<Index> paths;
  TwoHopResult<Index> to;
  BestPaths best;
  std::int64_t i;
  int* before;  // bits of the row in earlier words of the window

  // Writes the window's columns from `place` on; where the next window's begin.
  __device__ std::int64_t columns(const Window& window, std::int64_t place) const {
    int count = 0;
    for (std::int64_t first = 0; first < window.words; first += kWarp) {
      const std::int64_t w = first + lane_id();
      const unsigned bits = w < window.words ? window.word[w] : 0;
      const int sum = warp_prefix_sum(__popc(bits));
      int own = count + sum - __popc(bits);
      if (w < window.words) before[w] = own;
      for (unsigned left = bits; left != 0; left &= left - 1, ++own) {
        to.columns[place + own] = static_cast<Index>(window.first + w * 32 + __ffs(static_cast<int>(left)) - 1);
        if (to.edge_type == nullptr) continue;
        best.middle[place + own] = kNoPath;
        best.edges[place + own] = kNoPath;
      }
      count += __shfl_sync(kAllLanes, sum, kWarp - 1);
    }
    return place + count;
  }

  // Of the paths to a column: lowest middle, then the first of parallel edges to i, then of those to the middle.
  __device__ void types(const Window& window, std::int64_t place, std::int64_t end) const {
    const auto& a = paths.a;
    const auto for_each_kept = [&](const auto& f) {
      paths.for_each(i, [&](std::int64_t column, std::int64_t middle, std::int64_t first, std::int64_t second) {
        if (!window.covers(column)) return;
        const unsigned bits = *window.word_of(column), bit = window.bit_of(column);
        if ((bits & bit) == 0) return;
        f(place + before[window.word_of(column) - window.word] + __popc(bits & (bit - 1)), middle, first, second);
      });
      __syncwarp();
    };
    __syncwarp();
    for_each_kept([&](std::int64_t edge, std::int64_t middle, std::int64_t, std::int64_t) {
      atomicMin(best.middle + edge, static_cast<unsigned long long>(middle));
    });
    for_each_kept([&](std::int64_t edge, std::int64_t middle, std::int64_t first, std::int64_t second) {
      if (best.middle[edge] != static_cast<unsigned long long>(middle)) return;
      // No row has 2^32 edges.
      const auto places = static_cast<unsigned long long>(second - paths.begin(i)) << 32 |
                          static_cast<unsigned long long>(first - paths.begin(middle));
      atomicMin(best.edges + edge, places);
    });
    for (std::int64_t edge = place + lane_id(); edge < end; edge += kWarp) {
      const auto middle = static_cast<std::int64_t>(best.middle[edge]);
      const std::int64_t second = paths.begin(i) + static_cast<std::int64_t>(best.edges[edge] >> 32);
      const std::int64_t first = paths.begin(middle) + static_cast<std::int64_t>(best.edges[edge] & 0xffffffffu);
      to.edge_type[edge] = static_cast<Index>(a.edge_type[first] * a.num_types + a.edge_type[second]);
    }
  }
};

template <typename Index>
__global__ void __launch_bounds__(kWarps* kWarp, kBlocksAtOnce)
    two_hop_edges_kernel(Paths<Index> paths, TwoHopResult<Index> to, BestPaths best) {
  GMOE_SHARED_ARRAY(unsigned, words, kWarps* kWindowWords);
  GMOE_SHARED_ARRAY(int, before, kWarps* kWindowWords);
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp_id();
  if (i >= paths.a.num_nodes) return;
  const RowWriter<Index> row{paths, to, best, i, before + warp_id() * kWindowWords};
  std::int64_t place = to.offsets[i];
  for_each_window(paths, i, words + warp_id() * kWindowWords, [&](const Window& window) {
    const std::int64_t end = row.columns(window, place);
    if (to.edge_type != nullptr) row.types(window, place, end);
    place = end;
  });
}

template <typename Index>
BestPaths take_best_paths(const TwoHopResult<Index>& result, Workspace& workspace) {
  const std::int64_t n = result.edge_type == nullptr ? 0 : result.num_edges;
  unsigned long long* middle = workspace.take<unsigned long long>(n);
  return {middle, workspace.take<unsigned long long>(n)};
}

}  // namespace

std::int64_t two_hop_offsets_workspace(std::int64_t num_nodes) { return offsets_workspace(num_nodes); }

template <typename Index>
void two_hop_offsets(const TwoHopGraph<Index>& a, std::int64_t num_edges, std::int64_t* new_offsets, const Call& call) {
  if (a.num_nodes > 0) {
    launch("two_hop_graph/lengths", two_hop_lengths_kernel<Index>, divide_up(a.num_nodes, kWarps), kWarps * kWarp, 0,
           call.stream, Paths<Index>{a, num_edges, call.bad_index}, new_offsets + 1);
  }
  lengths_to_offsets(new_offsets, a.num_nodes, call.workspace, call.stream);
}

template <typename Index>
std::int64_t two_hop_edges_workspace(const TwoHopResult<Index>& result) {
  Workspace workspace(nullptr);
  take_best_paths(result, workspace);
  return workspace.bytes();
}

template <typename Index>
void two_hop_edges(const TwoHopGraph<Index>& a, std::int64_t num_edges, const TwoHopResult<Index>& result,
                   const Call& call) {
  if (result.num_edges == 0) return;
  Workspace workspace(call.workspace);
  launch("two_hop_graph/edges", two_hop_edges_kernel<Index>, divide_up(a.num_nodes, kWarps), kWarps * kWarp, 0,
         call.stream, Paths<Index>{a, num_edges, call.bad_index}, result, take_best_paths(result, workspace));
}

#define GMOE_INSTANTIATE(Index)                                                                       \
  template void two_hop_offsets(const TwoHopGraph<Index>&, std::int64_t, std::int64_t*, const Call&); \
  template std::int64_t two_hop_edges_workspace(const TwoHopResult<Index>&);                          \
  template void two_hop_edges(const TwoHopGraph<Index>&, std::int64_t, const TwoHopResult<Index>&, const Call&);
GMOE_INSTANTIATE(std::int32_t)
GMOE_INSTANTIATE(std::int64_t)
#undef GMOE_INSTANTIATE

}  // namespace gmoe::core::cuda
