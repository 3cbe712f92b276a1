// The strict two-hop neighbourhood as compressed rows: j is in row i when some path j -> m -> i exists.
#pragma once

#include <cstdint>
#include <vector>

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
