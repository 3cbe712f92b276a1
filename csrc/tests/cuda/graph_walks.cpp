// CUDA operators that make graphs and walks: the same bits as on the CPU.
#include <iterator>

#include "core/random_walk.h"
#include "core/two_hop_graph.h"
#include "tests/check.h"
#include "tests/cuda/device.h"
#include "tests/inputs.h"
#include "tests/naive_graphs.h"

namespace gmoe::test {
namespace {

namespace cuda = core::cuda;

struct WalkSizes {
  std::int64_t nodes, edges, walks, length, seed;
};
// A warp takes 32 walks, 16 steps at a time.
constexpr WalkSizes kWalks[] = {
    {1, 0, 0, 3, 0}, {1, 0, 5, 1, 1}, {2, 7, 33, 4, -1}, {3, 9, 1, 16, 2}, {41, 90, 301, 37, std::int64_t{1} << 62}};

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
      cuda::random_walk<Index>(
          {rows.offsets.data(), rows.columns.data(), starts.data(), w.walks, w.length, w.seed, walks.data()}, w.nodes,
          w.edges, device.call());
      CHECK_EQUAL(walks, naive_walks(rows, starts, w.length, w.seed));
      CHECK(device.bad_index() == -1);
    }
  });
}

GMOE_PARALLEL_TEST(random_walk_stays_where_an_index_is_bad) {
  for_each_index([&](auto type) {
    using Index = typename decltype(type)::type;
    // 0 -> 1, 1 -> nowhere; 2 has no edge.
    const std::vector<std::int64_t> offsets{0, 1, 2, 2};
    const std::vector<Index> columns{1, 3};
    const auto walk = [&](const std::vector<std::int64_t>& starts, std::int64_t bad) {
      std::vector<std::int64_t> walks = unwritten_index(static_cast<std::int64_t>(starts.size()) * 4);
      Device device;
      cuda::random_walk<Index>({offsets.data(), columns.data(), starts.data(), std::ssize(starts), 4, 5, walks.data()},
                               3, 2, device.call());
      CHECK(device.bad_index() == bad);
      return walks;
    };
    CHECK_EQUAL(walk({0, 2, 3}, 1), (std::vector<std::int64_t>{0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3}));
    CHECK_EQUAL(walk({2, -1}, 3), (std::vector<std::int64_t>{2, 2, 2, 2, -1, -1, -1, -1}));
  });
}

template <typename Index>
TwoHop<Index> two_hop(const core::TwoHopGraph<Index>& a, std::int64_t num_edges, std::int64_t bad) {
  std::vector<std::int64_t> offsets = unwritten_index(a.num_nodes + 1);
  Device device;
  cuda::two_hop_offsets(a, num_edges, offsets.data(), device.call(cuda::two_hop_offsets_workspace(a.num_nodes)));
  CHECK(device.bad_index() == bad);
  TwoHop<Index> out;
  CHECK(offsets[0] == 0);
  for (std::int64_t i = 0; i < a.num_nodes; ++i) out.degree.push_back(offsets[i + 1] - offsets[i]);
  out.columns.resize(static_cast<std::size_t>(offsets.back()), Index{-1});
  if (a.edge_type != nullptr) out.edge_type.resize(out.columns.size(), Index{-1});
  const cuda::TwoHopResult<Index> result{offsets.data(), offsets.back(), out.columns.data(),
                                         a.edge_type != nullptr ? out.edge_type.data() : nullptr};
  cuda::two_hop_edges(a, num_edges, result, device.call(cuda::two_hop_edges_workspace(result)));
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
constexpr GraphSizes kGraphs[] = {{0, 0, 0}, {1, 0, 0}, {1, 3, 0}, {17, 40, 0}, {67, 90, 71}};
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
                                   rows.num_edges(), -1),
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
                            rows.num_edges(), -1),
      naive_two_hop(rows, types.data(), kTypes, true, true));
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

}  // namespace
}  // namespace gmoe::test
