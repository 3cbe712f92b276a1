// A step waits for two dependent reads, the row's range and the chosen column, anywhere in memory. So kWalksTogether
// walks take each step together, and every read is prefetched one pass before it is needed. Floor: cache misses in
// flight.
#include "core/random_walk.h"

#include <algorithm>

#include "core/parallel.h"
#include "core/splitmix64.h"

namespace gmoe::core::GMOE_ISA {
namespace {

constexpr std::int64_t kWalksTogether = 32;  // more than the outstanding misses of a core, few enough for its L1

template <typename Index>
void walk_together(const RandomWalk<Index>& a, std::int64_t first, std::int64_t count) {
  std::uint64_t key[kWalksTogether];
  std::int64_t node[kWalksTogether], edge[kWalksTogether];
  const std::uint64_t seed = splitmix64(static_cast<std::uint64_t>(a.seed));
  for (std::int64_t w = 0; w < count; ++w) {
    key[w] = splitmix64(seed + static_cast<std::uint64_t>(first + w));
    node[w] = a.walks[(first + w) * a.length] = a.starts[first + w];
    __builtin_prefetch(a.offsets + node[w]);
  }
  for (std::int64_t step = 1; step < a.length; ++step) {
    for (std::int64_t w = 0; w < count; ++w) {
      const std::int64_t begin = a.offsets[node[w]], degree = a.offsets[node[w] + 1] - begin;
      edge[w] = -1;  // a dead end stays where it is
      if (degree == 0) continue;
      // 63 random bits modulo the degree: the bias is below degree / 2^63.
      const std::uint64_t bits = splitmix64(key[w] + static_cast<std::uint64_t>(step)) >> 1;
      edge[w] = begin + static_cast<std::int64_t>(bits % static_cast<std::uint64_t>(degree));
      __builtin_prefetch(a.columns + edge[w]);
    }
    for (std::int64_t w = 0; w < count; ++w) {
      if (edge[w] >= 0) node[w] = static_cast<std::int64_t>(a.columns[edge[w]]);
      a.walks[(first + w) * a.length + step] = node[w];
      __builtin_prefetch(a.offsets + node[w]);
    }
  }
}

}  // namespace

template <typename Index>
void random_walk(const RandomWalk<Index>& a) {
  const std::int64_t groups = divide_up(a.num_walks, kWalksTogether);
  constexpr std::int64_t kWorkPerStep = 64;  // of arithmetic that takes as long as a step
  const std::int64_t grain = grain_rows(kWorkPerStep * kWalksTogether * a.length);
  parallel_for(groups, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t group = begin; group < end; ++group) {
      const std::int64_t first = group * kWalksTogether;
      walk_together(a, first, std::min(kWalksTogether, a.num_walks - first));
    }
  });
}

template void random_walk(const RandomWalk<std::int32_t>&);
template void random_walk(const RandomWalk<std::int64_t>&);

}  // namespace gmoe::core::GMOE_ISA
