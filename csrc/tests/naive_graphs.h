// What operators that make graphs and walks must give, to the last bit: by loops over every path and step.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <vector>

#include "tests/inputs.h"

namespace gmoe::test {

template <typename Index>
struct TwoHop {
  std::vector<std::int64_t> degree;
  std::vector<Index> columns, edge_type;
};

template <typename Index>
TwoHop<Index> naive_two_hop(const CompressedRows<Index>& rows, const Index* edge_type, std::int64_t num_types,
                            bool exclude_self, bool exclude_one_hop) {
  TwoHop<Index> out;
  for (std::int64_t i = 0; i < rows.num_rows(); ++i) {
    // Column -> the path's middle node and edges; the lowest middle counts, then the first edges.
    std::map<Index, std::array<std::int64_t, 3>> found;
    for (std::int64_t second = rows.offsets[i]; second < rows.offsets[i + 1]; ++second) {
      const Index middle = rows.columns[second];
      for (std::int64_t first = rows.offsets[middle]; first < rows.offsets[middle + 1]; ++first) {
        const std::array<std::int64_t, 3> path{middle, second, first};
        const auto [at, is_new] = found.try_emplace(rows.columns[first], path);
        if (!is_new) at->second = std::min(at->second, path);
      }
    }
    if (exclude_self) found.erase(static_cast<Index>(i));
    for (std::int64_t e = rows.offsets[i]; exclude_one_hop && e < rows.offsets[i + 1]; ++e)
      found.erase(rows.columns[e]);
    for (const auto& [column, path] : found) {
      out.columns.push_back(column);
      if (edge_type != nullptr) {
        out.edge_type.push_back(static_cast<Index>(edge_type[path[2]] * num_types + edge_type[path[1]]));
      }
    }
    out.degree.push_back(static_cast<std::int64_t>(found.size()));
  }
  return out;
}

inline std::uint64_t splitmix64(std::uint64_t state) {
  std::uint64_t z = state + 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

template <typename Index>
std::vector<std::int64_t> naive_walks(const CompressedRows<Index>& rows, const std::vector<std::int64_t>& starts,
                                      std::int64_t length, std::int64_t seed) {
  std::vector<std::int64_t> walks;
  const std::uint64_t of_seed = splitmix64(static_cast<std::uint64_t>(seed));
  for (std::size_t s = 0; s < starts.size(); ++s) {
    const std::uint64_t key = splitmix64(of_seed + s);
    std::int64_t node = starts[s];
    walks.push_back(node);
    for (std::int64_t step = 1; step < length; ++step) {
      const auto degree = static_cast<std::uint64_t>(rows.offsets[node + 1] - rows.offsets[node]);
      if (degree > 0) {
        const std::uint64_t bits = splitmix64(key + static_cast<std::uint64_t>(step)) >> 1;
        node = rows.columns[rows.offsets[node] + static_cast<std::int64_t>(bits % degree)];
      }
      walks.push_back(node);
    }
  }
  return walks;
}

}  // namespace gmoe::test
