// A block's rows are added to the sums of their experts while they are in the first-level cache, where routing has just
// loaded them. A gate is at most 1, so exp cannot overflow. Floor: the time to read x.
#include "core/cosine_topk_update.h"

#include <vector>

#include "core/cpu/cosine.h"
#include "core/cpu/memory_sums.h"
#include "core/parallel.h"

namespace gmoe::core::GMOE_ISA {

template <typename T>
void cosine_topk_update(const CosineTopkUpdate<T>& update) {
  using A = Accumulator<T>;
  const CosineTopk<T>& a = update.route;
  const A eps = static_cast<A>(a.eps);
  const Workspace<A> unit = unit_rows(a.memory, a.num_experts, a.dim, eps);
  MemorySums<A> sums(a.num_rows, a.num_experts, a.dim);
  parallel_for(sums.chunks().count(), 1, [&](std::int64_t begin, std::int64_t end) {
    CosineBlock<T> block(unit.data(), a.num_experts, a.dim, a.k, eps);
    std::vector<A> share(static_cast<std::size_t>(kBlockRows * a.k));
    A scale[kBlockRows];
    SlotOrder order(a.num_experts, kBlockRows * a.k);
    for (std::int64_t chunk = begin; chunk < end; ++chunk) {
      for (std::int64_t i = sums.chunks().begin(chunk); i < sums.chunks().end(chunk); i += block.kRows) {
        const std::int64_t count = block.route(a, i, sums.chunks().end(chunk));
        // The rounded gates, as the caller sees them, so that the average equals that of memory_update.
        exp_bounded(a.gate + i * a.k, count * a.k, share.data());
        for (std::int64_t row = 0; row < count; ++row) scale[row] = update.normalize ? block.inverse_norm(row) : A{1};
        sums.add(chunk, a.x + i * a.dim, count, scale, share.data(), a.index + i * a.k, a.k, order);
      }
    }
  });
  sums.average(a.memory, update.rate, eps, update.new_memory);
}

template void cosine_topk_update(const CosineTopkUpdate<float>&);
template void cosine_topk_update(const CosineTopkUpdate<double>&);
template void cosine_topk_update(const CosineTopkUpdate<bfloat16>&);

}  // namespace gmoe::core::GMOE_ISA
