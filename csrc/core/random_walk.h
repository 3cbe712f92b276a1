// Uniform random walks over compressed rows, from a counter-based generator: step t of walk s draws from
// splitmix64(splitmix64(splitmix64(seed) + s) + t) and from nothing else.
#pragma once

#include <cstdint>

#include "core/cuda/launch.h"
#include "core/isa.h"

namespace gmoe::core {

template <typename Index>
struct RandomWalk {
  const std::int64_t* offsets;  // [num_nodes + 1]
  const Index* columns;         // checked by the caller
  const std::int64_t* starts;   // [num_walks], checked by the caller
  std::int64_t num_walks, length, seed;
  std::int64_t* walks;  // [num_walks, length] out
};

GMOE_DECLARE_PER_ISA(template <typename Index> void random_walk(const RandomWalk<Index>& a))

template <typename Index>
void random_walk(const RandomWalk<Index>& a) {
  GMOE_CALL_ACTIVE_ISA(random_walk(a));
}

}  // namespace gmoe::core

// Arguments point to device memory. The walks have the same bits as on the CPU.
namespace gmoe::core::cuda {

// A bad column is noted at the position of its edge, a bad start at its position + num_edges, and offsets that do not
// rise from 0 to num_edges at num_edges + num_walks; a walk that meets one of them stays where it is. Columns that no
// walk meets are not read.
template <typename Index>
void random_walk(const RandomWalk<Index>& a, std::int64_t num_nodes, std::int64_t num_edges, const Call& call);

}  // namespace gmoe::core::cuda
