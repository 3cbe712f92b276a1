// The strict two-hop neighbourhood as compressed rows: j is in row i when some path j -> m -> i exists.
#pragma once

#include <cstdint>
#include <vector>

#include "core/cuda/launch.h"
#include "core/isa.h"

namespace gmoe::core {

template <typename Index>
struct TwoHopGraph {
  const std::int64_t* offsets;  // [num_nodes + 1]
  const Index* columns;         // [num_edges], checked by the caller
  const Index* edge_type;       // [num_edges], or null
  std::int64_t num_nodes, num_types;
  bool exclude_self, exclude_one_hop;
};

// Rows of a run of consecutive nodes; how many edges there are is known only afterwards.
template <typename Index>
struct TwoHopRows {
  std::vector<Index> columns;    // ascending in each row
  std::vector<Index> edge_type;  // first hop's type x num_types + second hop's; empty without types
};

// Rows are made in blocks of kTwoHopRowsPerBlock nodes; degree[i] gets the length of row i.
inline constexpr std::int64_t kTwoHopRowsPerBlock = 1024;

GMOE_DECLARE_PER_ISA(template <typename Index> void two_hop_graph(const TwoHopGraph<Index>& a, std::int64_t* degree,
                                                                  std::vector<TwoHopRows<Index>>& blocks))

template <typename Index>
void two_hop_graph(const TwoHopGraph<Index>& a, std::int64_t* degree, std::vector<TwoHopRows<Index>>& blocks) {
  GMOE_CALL_ACTIVE_ISA(two_hop_graph(a, degree, blocks));
}

}  // namespace gmoe::core

// Arguments point to device memory. An edge with a bad index is left out and noted: a column at the position of its
// edge, an edge type at that + num_edges. Offsets that do not rise from 0 to num_edges are noted at the position past
// all of these, and never lead to an edge that does not exist.
//
// Only the device knows the size of the result, so there are two calls. The caller reads new_offsets[num_nodes] after
// the first one, which is the only time that the host must wait, and allocates for the second.
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
