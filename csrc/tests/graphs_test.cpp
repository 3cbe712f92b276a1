// Two-hop neighbourhoods and walks, to the last bit, against loops over every path and step.
#include <algorithm>
#include <array>
#include <map>
#include <span>

#include "core/random_walk.h"
#include "core/two_hop_graph.h"
#include "tests/device.h"
#include "tests/inputs.h"

namespace gmoe::test {
namespace {

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

std::uint64_t splitmix64(std::uint64_t state) {
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

// ---- walks

struct WalkSizes {
  std::int64_t nodes, edges, walks, length, seed;
};
// A warp takes 32 walks, 16 steps at a time.
constexpr WalkSizes kWalks[] = {{1, 0, 0, 3, 0},
                                {1, 0, 5, 1, 1},
                                {2, 7, 33, 4, -1},
                                {3, 9, 1, 16, 2},
                                {500, 900, kOnDevice ? 301 : 4001, kOnDevice ? 37 : 11, std::int64_t{1} << 62}};

template <typename Index>
void run(const core::RandomWalk<Index>& a, [[maybe_unused]] std::int64_t num_nodes,
         [[maybe_unused]] std::int64_t num_edges, Device& device) {
  if constexpr (kOnDevice) {
    core::cuda::random_walk(a, num_nodes, num_edges, device.call());
  } else {
    core::random_walk(a);
  }
}

GMOE_PARALLEL_TEST(random_walk) {
  Random random(1);
  for_each_index([&](auto type) {
    using Index = typename decltype(type)::type;
    for (const WalkSizes& w : kWalks) {
      set_case(w.nodes, " nodes, ", w.edges, " edges, ", w.walks, " walks of ", w.length);
      const auto rows = random_rows<Index>(random, w.nodes, w.nodes, w.edges);
      const auto starts = random.indices<std::int64_t>(w.walks, w.nodes);
      std::vector<std::int64_t> walks = unwritten_index(w.walks * w.length);
      Device device;
      run(core::RandomWalk<Index>{rows.offsets.data(), rows.columns.data(), starts.data(), w.walks, w.length, w.seed,
                                  walks.data()},
          w.nodes, w.edges, device);
      CHECK_EQUAL(walks, naive_walks(rows, starts, w.length, w.seed));
      CHECK(device.bad_index() == -1);
    }
  });
}

// ---- two hops

template <typename Index>
TwoHop<Index> two_hop(const core::TwoHopGraph<Index>& a, [[maybe_unused]] std::int64_t num_edges,
                      [[maybe_unused]] std::int64_t bad = -1) {
  TwoHop<Index> out;
  if constexpr (kOnDevice) {
    std::vector<std::int64_t> offsets = unwritten_index(a.num_nodes + 1);
    Device device;
    const std::int64_t bytes = core::cuda::two_hop_offsets_workspace(a.num_nodes);
    core::cuda::two_hop_offsets(a, num_edges, offsets.data(), device.call(bytes));
    CHECK(device.bad_index() == bad);
    CHECK(offsets[0] == 0);
    for (std::int64_t i = 0; i < a.num_nodes; ++i) out.degree.push_back(offsets[i + 1] - offsets[i]);
    out.columns.resize(static_cast<std::size_t>(offsets.back()), Index{-1});
    if (a.edge_type != nullptr) out.edge_type.resize(out.columns.size(), Index{-1});
    const core::cuda::TwoHopResult<Index> result{.offsets = offsets.data(),
                                                 .num_edges = offsets.back(),
                                                 .columns = out.columns.data(),
                                                 .edge_type = a.edge_type != nullptr ? out.edge_type.data() : nullptr};
    core::cuda::two_hop_edges(a, num_edges, result, device.call(core::cuda::two_hop_edges_workspace(result)));
  } else {
    out.degree = unwritten_index(a.num_nodes);
    std::vector<core::TwoHopRows<Index>> blocks;
    core::two_hop_graph(a, out.degree.data(), blocks);
    for (const auto& block : blocks) {
      out.columns.insert(out.columns.end(), block.columns.begin(), block.columns.end());
      out.edge_type.insert(out.edge_type.end(), block.edge_type.begin(), block.edge_type.end());
    }
  }
  return out;
}

template <typename Index>
void check_equal(const TwoHop<Index>& got, const TwoHop<Index>& want) {
  CHECK_EQUAL(got.degree, want.degree);
  CHECK_EQUAL(got.columns, want.columns);
  CHECK_EQUAL(got.edge_type, want.edge_type);
}

struct GraphSizes {
  std::int64_t nodes, edges, hub_edges;
};
constexpr GraphSizes kCpuGraphs[] = {{0, 0, 0}, {1, 0, 0}, {1, 3, 0}, {17, 40, 0}, {67, 90, 71}, {2500, 6000, 0}};
constexpr std::span<const GraphSizes> kGraphs = std::span<const GraphSizes>(kCpuGraphs).first(kOnDevice ? 5 : 6);
constexpr std::int64_t kTypes = 3;

GMOE_PARALLEL_TEST(two_hop_graph) {
  Random random(2);
  for_each_index([&](auto type) {
    using Index = typename decltype(type)::type;
    for (const GraphSizes& g : kGraphs) {
      const auto rows = random_rows<Index>(random, g.nodes, g.nodes, g.edges, g.hub_edges);
      const auto edge_type = random.indices<Index>(rows.num_edges(), kTypes);
      for (int with = 0; with < 8; ++with) {
        const bool self = (with & 1) != 0, one_hop = (with & 2) != 0;
        const Index* types = (with & 4) != 0 ? edge_type.data() : nullptr;
        set_case(g.nodes, " nodes, ", g.edges, " + ", g.hub_edges, " edges, exclude ", self, one_hop, ", typed ",
                 types != nullptr);
        check_equal(two_hop<Index>({rows.offsets.data(), rows.columns.data(), types, g.nodes, kTypes, self, one_hop},
                                   rows.num_edges()),
                    naive_two_hop(rows, types, kTypes, self, one_hop));
      }
    }
  });
}

GMOE_PARALLEL_TEST(two_hop_graph_whose_rows_reach_across_windows) {
  // A window is 8192 columns, lengths are added up 2048 at a time. Of 8300 nodes, the first 70 have edges: from
  // anywhere to 0, from 0 and 69 to the others.
  constexpr std::int64_t kNodes = 8300, kHub = 200, kRows = 70;
  Random random(3);
  CompressedRows<std::int32_t> rows{{0}, random.indices<std::int32_t>(kHub, kNodes)};
  for (std::int64_t i = 0; i < kNodes; ++i) {
    for (const std::int32_t column : {0, 69, 0}) {
      if (i > 0 && i < kRows) rows.columns.push_back(column);
    }
    rows.offsets.push_back(rows.num_edges());
  }
  const auto types = random.indices<std::int32_t>(rows.num_edges(), kTypes);
  check_equal(
      two_hop<std::int32_t>({rows.offsets.data(), rows.columns.data(), types.data(), kNodes, kTypes, true, true},
                            rows.num_edges()),
      naive_two_hop(rows, types.data(), kTypes, true, true));
}

#ifdef GMOE_TEST_CUDA

GMOE_PARALLEL_TEST(random_walk_stays_where_an_index_is_bad) {
  for_each_index([&](auto type) {
    using Index = typename decltype(type)::type;
    // 0 -> 1, 1 -> nowhere; 2 has no edge.
    const std::vector<std::int64_t> offsets{0, 1, 2, 2};
    const std::vector<Index> columns{1, 3};
    const auto walk = [&](const std::vector<std::int64_t>& starts, std::int64_t bad) {
      std::vector<std::int64_t> walks = unwritten_index(static_cast<std::int64_t>(starts.size()) * 4);
      Device device;
      run(core::RandomWalk<Index>{offsets.data(), columns.data(), starts.data(), std::ssize(starts), 4, 5,
                                  walks.data()},
          3, 2, device);
      CHECK(device.bad_index() == bad);
      return walks;
    };
    CHECK_EQUAL(walk({0, 2, 3}, 1), (std::vector<std::int64_t>{0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3}));
    CHECK_EQUAL(walk({2, -1}, 3), (std::vector<std::int64_t>{2, 2, 2, 2, -1, -1, -1, -1}));
  });
}

GMOE_PARALLEL_TEST(two_hop_graph_leaves_bad_edges_out) {
  Random random(4);
  for_each_index([&](auto type) {
    using Index = typename decltype(type)::type;
    const auto rows = random_rows<Index>(random, 23, 23, 70);
    const auto types = random.indices<Index>(70, kTypes);
    CompressedRows<Index> kept{{0}, {}};
    std::vector<Index> kept_types, bad_columns = rows.columns, bad_types = types;
    for (std::int64_t i = 0; i < 23; ++i) {
      for (std::int64_t e = rows.offsets[i]; e < rows.offsets[i + 1]; ++e) {
        if (e == 41 || e == 60) continue;
        kept.columns.push_back(rows.columns[e]);
        kept_types.push_back(types[e]);
      }
      kept.offsets.push_back(kept.num_edges());
    }
    const TwoHop<Index> want = naive_two_hop(kept, kept_types.data(), kTypes, true, true);
    bad_columns[41] = 23;
    bad_columns[60] = -1;
    set_case("bad columns");
    check_equal(two_hop<Index>({rows.offsets.data(), bad_columns.data(), types.data(), 23, kTypes, true, true}, 70, 41),
                want);
    bad_types[41] = kTypes;
    bad_types[60] = -1;
    set_case("bad types");
    check_equal(
        two_hop<Index>({rows.offsets.data(), rows.columns.data(), bad_types.data(), 23, kTypes, true, true}, 70, 111),
        want);
  });
}

#endif

}  // namespace
}  // namespace gmoe::test
