// core/cpu/two_hop_graph.h on the device; arguments are pointers to device memory. Of bad indices, a column is noted as
// the position of its edge, an edge type as that + num_edges; their edges are left out. Offsets that do not rise from 0
// to num_edges are noted as the position past all of these, and lead to no edge that does not exist.
//
// The result's size is known on the device alone, so there are two calls: the caller reads new_offsets[num_nodes] after
// the first one, the only time that the host must wait, and allocates for the second.
#pragma once

#include "core/cpu/two_hop_graph.h"
#include "core/cuda/launch.h"

namespace gmoe::core::cuda {

template <typename Index>
struct TwoHopResult {
  std::int64_t* offsets;  // [num_nodes + 1]
  std::int64_t num_edges;
  Index *columns, *edge_type;  // [num_edges]; edge_type null where the graph has none
};

std::int64_t two_hop_offsets_workspace(std::int64_t num_nodes);
template <typename Index>
void two_hop_offsets(const TwoHopGraph<Index>& a, std::int64_t num_edges, std::int64_t* new_offsets, const Call& call);

template <typename Index>
std::int64_t two_hop_edges_workspace(const TwoHopResult<Index>& result);
template <typename Index>
void two_hop_edges(const TwoHopGraph<Index>& a, std::int64_t num_edges, const TwoHopResult<Index>& result,
                   const Call& call);

}  // namespace gmoe::core::cuda
