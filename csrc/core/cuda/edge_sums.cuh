// Sums over pairs of an edge and a slot, of which many may not count: another expert's, say. The lanes of a warp look
// at 32 pairs at a time and stage those that count in shared memory, with the places of the rows they need; then the
// whole warp works through what is staged, the rows of kInFlight pairs under way at once, across the ends of
// sums.
#pragma once

#include "core/cuda/row_sums.cuh"

namespace gmoe::core::cuda {

// A pair that counts.
template <typename A>
struct alignas(16) Staged {
  std::int64_t at[3];  // element at which each of its rows begins
  A weight;
  int sum;  // its row and list, counted from the first of the segment
};

// Where a warp stands in its segment.
struct SegmentPart {
  RowPosition begin, end;
  std::int64_t inner;  // lists that a warp takes one after another
  unsigned slots;

  // Sums of pairs are in the order of rows, lists, edges and slots.
  __device__ unsigned pairs() const {
    return static_cast<unsigned>(end.edge - begin.edge) * static_cast<unsigned>(inner) * slots;
  }

  struct Pair {
    std::int64_t row, list, edge, slot;
    bool exists;  // not where offsets are broken
  };
  __device__ Pair pair(unsigned place, const std::int64_t* offsets) const {
    const unsigned per_edge = static_cast<unsigned>(inner) * slots;
    const std::int64_t row = row_of(begin.edge + place / per_edge, offsets);
    // Of its edges, those in this segment.
    const std::int64_t first = offsets[row] > begin.edge ? offsets[row] : begin.edge;
    const std::int64_t last = offsets[row + 1] < end.edge ? offsets[row + 1] : end.edge;
    if (last <= first) return {row, 0, 0, 0, false};
    const unsigned per_list = static_cast<unsigned>(last - first) * slots;
    const unsigned in_row = place - static_cast<unsigned>(first - begin.edge) * per_edge;
    const unsigned in_list = in_row % per_list;
    const std::int64_t list = in_row / per_list;
    return {row, list, first + in_list / slots, in_list % slots, list < inner};
  }

 private:
  // Largest row that begins at or before the edge, by each lane for its own.
  __device__ std::int64_t row_of(std::int64_t edge, const std::int64_t* offsets) const {
    std::int64_t row = begin.row, after = end.inside ? end.row + 1 : end.row;
    while (after - row > 1) {
      const std::int64_t middle = row + (after - row) / 2;
      (offsets[middle] <= edge ? row : after) = middle;
    }
    return row;
  }
};

// Stages those of 32 pairs from `first` on that count, in their order; how many there are. By a whole warp.
template <typename Sum, typename A>
__device__ int stage(const Sum& s, const SegmentPart& part, std::int64_t list, unsigned first, Staged<A>* staged) {
  Staged<A> own;
  bool counts = false;
  if (first + lane_id() < part.pairs()) {
    const auto pair = part.pair(first + lane_id(), s.to.rows.offsets);
    own.sum = static_cast<int>((pair.row - part.begin.row) * part.inner + pair.list);
    counts = pair.exists && s.stage(pair.row, list + pair.list, pair.edge, pair.slot, own);
  }
  const unsigned counting = __ballot_sync(kAllLanes, counts);
  if (counts) staged[__popc(counting & ((1u << lane_id()) - 1))] = own;
  return __popc(counting);
}

// Sum has
//   to                                 where the sums go: every list of a row has a warp of its own, or
//   inner                              a warp takes so many lists of a row and puts them together
//   slots                              pairs of an edge and a list
//   kStreams, stream(n)                rows that a pair needs, of these arrays
//   stage(row, list, edge, slot, out)  whether the pair counts, and where its rows and its weight are
//   contribution(values, weight)       what it adds
//   put_together(sum, total, ...)      with kMixes: adds the sum of a list to what goes to the row
template <int V, typename Sum>
__global__ void __launch_bounds__(kSumWarps* kWarp, sizeof(Accumulator<typename Sum::Value>) == 8 ? 1 : 2)
    edge_sums_kernel(Sum s) {
  using T = typename Sum::Value;
  using A = Accumulator<T>;
  constexpr int kPacks = Tile<V>::kPacks, kStreams = Sum::kStreams;
  constexpr int kInFlight = V == 1 ? 2 : 4;  // pairs; more of them leave a multiprocessor fewer warps
  GMOE_SHARED_ARRAY(Staged<A>, all_staged, kSumWarps * kWarp);
  Staged<A>* staged = all_staged + warp_id() * kWarp;
  const std::int64_t segment = s.to.unit() / s.to.lists, own_list = s.to.unit() % s.to.lists;
  if (segment >= s.to.rows.count()) return;
  if (s.to.tile() == 0 && own_list == 0) s.to.rows.check(segment);
  const RowPosition begin = s.to.rows.begin(segment);
  const SegmentPart part{begin, s.to.rows.end(segment, begin), s.inner, static_cast<unsigned>(s.slots)};
  const Tile<V> tile(s.to.tile());
  const int sums = static_cast<int>((part.end.row - part.begin.row + (part.end.inside ? 1 : 0)) * s.inner);
  TileValues<V, A> sum = {}, total = {};
  std::int64_t row = part.begin.row, list = 0;
  int at = 0;  // the sum in registers
  const auto finish = [&] {
    const bool goes_on = row == part.end.row, began_before = row == part.begin.row && part.begin.inside;
    if constexpr (Sum::kMixes) s.put_together(sum, total, row, list, !began_before, tile);
    const auto& result = Sum::kMixes ? total : sum;
    if (!Sum::kMixes || list + 1 == s.inner) {
      if (goes_on || began_before) {
        store_row<V>(goes_on ? s.to.row_start(segment, own_list) : s.to.row_end(segment, own_list), result, s.to.dim,
                     tile);
      } else {
        store_row<V>(s.to.result(row, own_list), result, s.to.dim, tile);
      }
    }
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
#pragma unroll
      for (int v = 0; v < V; ++v) sum[p][v] = 0;
    }
    ++at;
    if (++list == s.inner) list = 0, ++row;
  };
  for (unsigned first = 0; first < part.pairs(); first += kWarp) {
    const int count = stage(s, part, own_list, first, staged);
    __syncwarp();
    for (int i = 0; i < count; i += kInFlight) {
      Pack<T, V> value[kInFlight][kStreams][kPacks] = {};
      A weight[kInFlight];
      int of[kInFlight];
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
        const Staged<A>& pair = staged[i + u < count ? i + u : count - 1];
        weight[u] = pair.weight;
        of[u] = pair.sum;
#pragma unroll
        for (int n = 0; n < kStreams; ++n) {
#pragma unroll
          for (int p = 0; p < kPacks; ++p) {
            const std::int64_t d = tile.column(p);
            if (d < s.to.dim) value[u][n][p] = load<V>(s.stream(n) + pair.at[n] + d);
          }
        }
      }
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
        if (i + u >= count) break;
        while (at < of[u]) finish();
#pragma unroll
        for (int p = 0; p < kPacks; ++p) {
#pragma unroll
          for (int v = 0; v < V; ++v) {
            A wide[kStreams];
#pragma unroll
            for (int n = 0; n < kStreams; ++n) wide[n] = widened(value[u][n][p].value[v]);
            sum[p][v] += Sum::contribution(wide, weight[u]);
          }
        }
      }
    }
    __syncwarp();
  }
  while (at < sums) finish();
}

struct SumNames {
  const char *edges, *divided_rows;
};

// Rows are read in packs as wide as all of `arrays` allow: the streams and what put_together reads.
template <typename Sum, typename... Arrays>
void sum_edges(const SumNames& names, const Sum& s, const Call& call, const Arrays*... arrays) {
  if (s.to.rows.num_rows * s.to.lists * s.to.dim == 0) return;
  constexpr std::int64_t kMaxPairs = std::int64_t{1} << 31;
  if (s.inner * s.slots > kMaxPairs / s.to.rows.items / 2) {
    throw std::length_error(std::string("CUDA: ") + names.edges + ": too many slots and experts for each edge");
  }
  const auto go = [&](auto kernel) {
    launch(names.edges, kernel, s.to.blocks(), kSumWarps * kWarp, 0, call.stream, s);
    add_divided_rows(names.divided_rows, s.to, call);
  };
  constexpr int kWidest = sizeof(Accumulator<typename Sum::Value>) == 8 ? 2 : 4;
  if (fits_packs<kWidest>(s.to.dim, s.to.out, arrays...)) return go(edge_sums_kernel<kWidest, Sum>);
  if (kWidest > 2 && fits_packs<2>(s.to.dim, s.to.out, arrays...)) return go(edge_sums_kernel<2, Sum>);
  go(edge_sums_kernel<1, Sum>);
}

}  // namespace gmoe::core::cuda
