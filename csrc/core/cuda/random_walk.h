// core/cpu/random_walk.h on the device; arguments are pointers to device memory. Walks are the same bit for bit.
#pragma once

#include "core/cpu/random_walk.h"
#include "core/cuda/launch.h"

namespace gmoe::core::cuda {

// A bad column is noted as the position of its edge, a bad start as its own + num_edges, offsets that do not rise from
// 0 to num_edges as num_edges + num_walks; a walk stays where it meets one of them. Columns that no walk meets are not
// read.
template <typename Index>
void random_walk(const RandomWalk<Index>& a, std::int64_t num_nodes, std::int64_t num_edges, const Call& call);

}  // namespace gmoe::core::cuda
