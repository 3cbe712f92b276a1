// A row's paths are walked with the lowest intermediate node first, and the first path to a column counts. A table of
// stamps, one per node, tells seen columns from new ones without being cleared between rows. The columns of a row are
// sorted at its end. Time is proportional to the number of paths, memory to the number of edges of the result.
#include "core/two_hop_graph.h"

#include <algorithm>
#include <cstddef>

#include "core/parallel.h"

namespace gmoe::core::GMOE_ISA {
namespace {

template <typename Index>
class RowMaker {
 public:
  explicit RowMaker(const TwoHopGraph<Index>& a) : a_(a), seen_by_(static_cast<std::size_t>(a.num_nodes), -1) {}

  // Appends row i and returns its length.
  std::int64_t append(std::int64_t i, TwoHopRows<Index>& out) {
    exclude(i);
    order_edges(i);
    found_.clear();
    for (const std::int64_t second : edges_) {
      const auto middle = static_cast<std::int64_t>(a_.columns[second]);
      for (std::int64_t first = a_.offsets[middle]; first < a_.offsets[middle + 1]; ++first) {
        std::int64_t& seen_by = seen_by_[static_cast<std::size_t>(a_.columns[first])];
        if (seen_by == i) continue;
        seen_by = i;
        found_.push_back({a_.columns[first], type_of(first, second)});
      }
    }
    std::sort(found_.begin(), found_.end(), [](const Found& a, const Found& b) { return a.column < b.column; });
    for (const Found& found : found_) {
      out.columns.push_back(found.column);
      if (a_.edge_type != nullptr) out.edge_type.push_back(found.type);
    }
    return static_cast<std::int64_t>(found_.size());
  }

 private:
  struct Found {
    Index column, type;
  };

  void exclude(std::int64_t i) {
    if (a_.exclude_self) seen_by_[static_cast<std::size_t>(i)] = i;
    if (!a_.exclude_one_hop) return;
    for (std::int64_t e = a_.offsets[i]; e < a_.offsets[i + 1]; ++e) {
      seen_by_[static_cast<std::size_t>(a_.columns[e])] = i;
    }
  }
  // Edges of row i by the node they come from; parallel edges keep their order.
  void order_edges(std::int64_t i) {
    edges_.resize(static_cast<std::size_t>(a_.offsets[i + 1] - a_.offsets[i]));
    for (std::size_t e = 0; e < edges_.size(); ++e) edges_[e] = a_.offsets[i] + static_cast<std::int64_t>(e);
    std::sort(edges_.begin(), edges_.end(), [&](std::int64_t a, std::int64_t b) {
      return a_.columns[a] != a_.columns[b] ? a_.columns[a] < a_.columns[b] : a < b;
    });
  }
  Index type_of(std::int64_t first, std::int64_t second) const {
    if (a_.edge_type == nullptr) return 0;
    return static_cast<Index>(a_.edge_type[first] * a_.num_types + a_.edge_type[second]);
  }

  const TwoHopGraph<Index>& a_;
  std::vector<std::int64_t> seen_by_;  // last row that found or excluded a node
  std::vector<std::int64_t> edges_;
  std::vector<Found> found_;
};

}  // namespace

template <typename Index>
void two_hop_graph(const TwoHopGraph<Index>& a, std::int64_t* degree, std::vector<TwoHopRows<Index>>& blocks) {
  const std::int64_t num_blocks = divide_up(a.num_nodes, kTwoHopRowsPerBlock);
  blocks.resize(static_cast<std::size_t>(num_blocks));
  parallel_for(num_blocks, 1, [&](std::int64_t begin, std::int64_t end) {
    RowMaker<Index> rows(a);
    for (std::int64_t block = begin; block < end; ++block) {
      const std::int64_t last = std::min(a.num_nodes, (block + 1) * kTwoHopRowsPerBlock);
      for (std::int64_t i = block * kTwoHopRowsPerBlock; i < last; ++i) {
        degree[i] = rows.append(i, blocks[static_cast<std::size_t>(block)]);
      }
    }
  });
}

template void two_hop_graph(const TwoHopGraph<std::int32_t>&, std::int64_t*, std::vector<TwoHopRows<std::int32_t>>&);
template void two_hop_graph(const TwoHopGraph<std::int64_t>&, std::int64_t*, std::vector<TwoHopRows<std::int64_t>>&);

}  // namespace gmoe::core::GMOE_ISA
