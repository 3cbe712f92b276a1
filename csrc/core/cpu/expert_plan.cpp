// A stable counting sort in two parallel passes over fixed chunks: count per chunk and expert, then, from the prefix of
// the counts in (expert, chunk) order, each chunk writes its slots where they belong. Floor: reading the index twice
// and writing the order once.
#include "core/expert_plan.h"

#include <algorithm>
#include <vector>

#include "core/parallel.h"

namespace gmoe::core::GMOE_ISA {
namespace {

constexpr std::int64_t kSlotsPerChunk = 1 << 14;

}  // namespace

template <typename Index>
void expert_plan(const ExpertPlanSort<Index>& a) {
  const std::int64_t experts = a.num_experts;
  // At least as many slots as experts, so that the counts never outgrow the index.
  const std::int64_t chunk = std::max(kSlotsPerChunk, experts);
  const std::int64_t num_chunks = divide_up(a.num_slots, chunk);
  std::vector<std::int64_t> next(static_cast<std::size_t>(num_chunks * experts), 0);

  parallel_for(num_chunks, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = begin; c < end; ++c) {
      std::int64_t* count = next.data() + c * experts;
      const std::int64_t last = std::min(a.num_slots, (c + 1) * chunk);
      for (std::int64_t s = c * chunk; s < last; ++s) ++count[a.index[s]];
    }
  });

  std::int64_t total = 0;
  for (std::int64_t e = 0; e < experts; ++e) {
    a.offsets[e] = total;
    for (std::int64_t c = 0; c < num_chunks; ++c) {
      const std::int64_t count = next[c * experts + e];
      next[c * experts + e] = total;
      total += count;
    }
  }
  a.offsets[experts] = total;

  parallel_for(num_chunks, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = begin; c < end; ++c) {
      std::int64_t* position = next.data() + c * experts;
      const std::int64_t last = std::min(a.num_slots, (c + 1) * chunk);
      for (std::int64_t s = c * chunk; s < last; ++s) a.order[position[a.index[s]]++] = s;
    }
  });
}

template void expert_plan(const ExpertPlanSort<std::int32_t>&);
template void expert_plan(const ExpertPlanSort<std::int64_t>&);

}  // namespace gmoe::core::GMOE_ISA
