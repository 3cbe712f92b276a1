// Sums over neighbours, two-hop neighbourhoods and walks against loops over every edge.
#include <algorithm>

#include "core/aggregate.h"
#include "core/cpu/check_index.h"
#include "core/random_walk.h"
#include "core/routed_edge_aggregate.h"
#include "core/routed_edge_mixture.h"
#include "core/two_hop_graph.h"
#include "tests/check.h"
#include "tests/edge_messages.h"
#include "tests/inputs.h"
#include "tests/naive_graphs.h"

namespace gmoe::test {
namespace {

struct Sizes {
  std::int64_t rows, columns, edges, hub_edges, dim;
  bool large = false;
};
// A row of more than 8192 edges is split. Wide rows share their edges, 2048 at a time, among threads; the gradient of a
// table does so 8192 at a time.
constexpr Sizes kSizes[] = {{0, 0, 0, 0, 5},
                            {3, 0, 0, 0, 4},
                            {1, 1, 1, 0, 1},
                            {5, 7, 23, 0, 0},
                            {101, 83, 700, 0, 33},
                            {61, 9, 300, 0, 523},
                            {60, 50, 1000, 9001, 17, true},
                            {3, 31, 40, 16411, 5, true},
                            {13, 9, 8501, 0, 517, true}};

// f(random, sizes, rows, weight or null, T) for every case; the large ones for two types only.
template <typename F>
void for_each_case(const F& f) {
  Random random(1);
  for_each_row_type([&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    for (const Sizes& s : kSizes) {
      for (const bool weighted : {false, true}) {
        if (s.large && (sizeof(Index) == 8 || weighted != (sizeof(T) == 4))) continue;
        set_case(sizeof(T), " bytes, ", s.rows, " rows, ", s.columns, " columns, ", s.edges, " + ", s.hub_edges,
                 " edges, dim ", s.dim, weighted ? ", weighted" : "");
        const auto rows = random_rows<Index>(random, s.rows, s.columns, s.edges, s.hub_edges);
        const auto weight = random.values<core::Accumulator<T>>(weighted ? rows.num_edges() : 0);
        f(random, s, rows, weighted ? weight.data() : nullptr, type);
      }
    }
  });
}

GMOE_PARALLEL_TEST(aggregate) {
  for_each_case([]<typename Index, typename A, typename T>(
                    Random& random, const Sizes& s, const CompressedRows<Index>& rows, const A* weight, Type<T>) {
    const auto x = random.values<T>(s.columns * s.dim);
    std::vector<T> y = unwritten<T>(s.rows * s.dim);
    core::aggregate<T, Index>(
        {x.data(), rows.offsets.data(), rows.columns.data(), weight, s.rows, rows.num_edges(), s.dim, y.data()},
        s.columns);
    std::vector<double> want = zeros(s.rows * s.dim);
    for (std::int64_t i = 0; i < s.rows; ++i) {
      for (std::int64_t e = rows.offsets[i]; e < rows.offsets[i + 1]; ++e) {
        const double w = weight != nullptr ? weight[e] : 1;
        for (std::int64_t d = 0; d < s.dim; ++d) want[i * s.dim + d] += w * wide(x[rows.columns[e] * s.dim + d]);
      }
    }
    CHECK_CLOSE(y, want);
  });
}

GMOE_PARALLEL_TEST(aggregate_grad_weight) {
  for_each_case([]<typename Index, typename A, typename T>(Random& random, const Sizes& s,
                                                           const CompressedRows<Index>& rows, const A*, Type<T>) {
    const auto x = random.values<T>(s.columns * s.dim), grad_y = random.values<T>(s.rows * s.dim);
    std::vector<A> grad_weight = unwritten<A>(rows.num_edges());
    core::aggregate_grad_weight<T, Index>({grad_y.data(), x.data(), rows.offsets.data(), rows.columns.data(), s.rows,
                                           rows.num_edges(), s.dim, grad_weight.data()});
    std::vector<double> want = zeros(rows.num_edges());
    for (std::int64_t i = 0; i < s.rows; ++i) {
      for (std::int64_t e = rows.offsets[i]; e < rows.offsets[i + 1]; ++e) {
        for (std::int64_t d = 0; d < s.dim; ++d) {
          want[e] += wide(grad_y[i * s.dim + d]) * wide(x[rows.columns[e] * s.dim + d]);
        }
      }
    }
    CHECK_CLOSE(grad_weight, want);
  });
}

// ---- messages over typed edges

// f(messages, what they make) for every case and routing.
template <typename F>
void for_each_routing(bool rows_are_sources, const F& f) {
  for_each_case([&]<typename Index, typename A, typename T>(
                    Random& random, const Sizes& s, const CompressedRows<Index>& rows, const A* weight, Type<T>) {
    for (const Routing& r : kRoutings) {
      if (s.large && !r.shared) continue;
      const Messages<T, Index> messages(random, r, rows, s.columns, s.dim, weight, rows_are_sources);
      f(messages, naive(messages, rows_are_sources));
    }
  });
}

GMOE_PARALLEL_TEST(routed_edge_aggregate) {
  for_each_routing(false, []<typename T, typename Index>(const Messages<T, Index>& m, const NaiveMessages& want) {
    std::vector<T> y = unwritten<T>(static_cast<std::int64_t>(want.y.size()));
    core::routed_edge_aggregate<T, Index>({m.call, y.data()});
    CHECK_CLOSE(y, want.y);
  });
}

GMOE_PARALLEL_TEST(routed_edge_aggregate_grad_x) {
  for_each_routing(true, []<typename T, typename Index>(const Messages<T, Index>& m, const NaiveMessages& want) {
    std::vector<T> grad_x = unwritten<T>(static_cast<std::int64_t>(m.x.size()));
    core::routed_edge_aggregate_grad<T, Index>({m.call, m.grad_y.data(), grad_x.data(), nullptr});
    CHECK_CLOSE(grad_x, want.grad_x);
  });
}

GMOE_PARALLEL_TEST(routed_edge_aggregate_grad_table) {
  for_each_routing(true, []<typename T, typename Index>(const Messages<T, Index>& m, const NaiveMessages& want) {
    std::vector<T> alone = unwritten<T>(static_cast<std::int64_t>(m.table.size())), grad_table = alone;
    core::routed_edge_aggregate_grad<T, Index>({m.call, m.grad_y.data(), nullptr, alone.data()});
    CHECK_CLOSE(alone, want.grad_table);
    std::vector<T> grad_x = unwritten<T>(static_cast<std::int64_t>(m.x.size()));
    core::routed_edge_aggregate_grad<T, Index>({m.call, m.grad_y.data(), grad_x.data(), grad_table.data()});
    CHECK_CLOSE(grad_x, want.grad_x);
    CHECK_CLOSE(grad_table, want.grad_table);
  });
}

GMOE_PARALLEL_TEST(routed_edge_aggregate_grad_weight) {
  for_each_routing(false, []<typename T, typename Index>(const Messages<T, Index>& m, const NaiveMessages& want) {
    std::vector<core::Accumulator<T>> grad_weight = unwritten<core::Accumulator<T>>(m.call.num_edges);
    core::routed_edge_aggregate_grad_weight<T, Index>({m.call, m.grad_y.data(), grad_weight.data()});
    CHECK_CLOSE(grad_weight, want.grad_weight);
  });
}

GMOE_PARALLEL_TEST(routed_edge_mixture) {
  Random random(5);
  for_each_routing(false, [&]<typename T, typename Index>(const Messages<T, Index>& m, const NaiveMessages& sums) {
    const auto& c = m.call;
    const auto gate = random.values<T>(c.num_destinations * c.k), onto = random.values<T>(c.num_destinations * c.dim);
    const auto scale = random.values<T>(c.num_experts * c.dim), shift = random.values<T>(c.num_experts * c.dim);
    for (const bool with : {false, true}) {
      std::vector<T> y = unwritten<T>(c.num_destinations * c.dim);
      core::routed_edge_mixture<T, Index>({c, gate.data(), with ? scale.data() : nullptr, with ? shift.data() : nullptr,
                                           with ? onto.data() : nullptr, y.data()});
      std::vector<double> want = with ? wide(onto) : zeros(c.num_destinations * c.dim);
      for (std::int64_t slot = 0; slot < c.num_destinations * c.k; ++slot) {
        const std::int64_t e = c.expert != nullptr ? c.expert[slot] - c.first_expert : 0;
        if (e < 0 || e >= c.num_experts) continue;
        for (std::int64_t d = 0; d < c.dim; ++d) {
          const double sum = sums.y[slot * c.dim + d];
          const double changed = with ? wide(scale[e * c.dim + d]) * sum + wide(shift[e * c.dim + d]) : sum;
          want[slot / c.k * c.dim + d] += wide(gate[slot]) * changed;
        }
      }
      CHECK_CLOSE(y, want);
    }
  });
}

GMOE_TEST(routed_edge_aggregate_without_index_is_one_expert_that_all_chose) {
  Random random(2);
  constexpr Sizes s{40, 40, 300, 0, 19};
  constexpr Routing r{false, true, 1, 1, 4};
  const auto rows = random_rows<std::int64_t>(random, s.rows, s.columns, s.edges);
  for (const bool rows_are_sources : {false, true}) {
    const Messages<float, std::int64_t> m(random, r, rows, s.columns, s.dim, nullptr, rows_are_sources);
    const NaiveMessages want = naive(m, rows_are_sources);
    const core::EdgeMessages<float, std::int64_t> messages{.x = m.x.data(),
                                                           .table = m.table.data(),
                                                           .expert = nullptr,
                                                           .first_expert = 0,
                                                           .num_experts = 1,
                                                           .k = 1,
                                                           .shared = true,
                                                           .offsets = rows.offsets.data(),
                                                           .columns = rows.columns.data(),
                                                           .edge_type = m.edge_type.data(),
                                                           .weight = nullptr,
                                                           .num_sources = s.columns,
                                                           .num_destinations = s.rows,
                                                           .num_edges = rows.num_edges(),
                                                           .num_types = r.types,
                                                           .dim = s.dim};
    std::vector<float> y = unwritten<float>(s.rows * s.dim), grad_x = y, grad_table = unwritten<float>(r.types * s.dim);
    std::vector<float> grad_weight = unwritten<float>(rows.num_edges());
    if (rows_are_sources) {
      core::routed_edge_aggregate_grad<float, std::int64_t>(
          {messages, m.grad_y.data(), grad_x.data(), grad_table.data()});
      CHECK_CLOSE(grad_x, want.grad_x);
      CHECK_CLOSE(grad_table, want.grad_table);
    } else {
      core::routed_edge_aggregate<float, std::int64_t>({messages, y.data()});
      core::routed_edge_aggregate_grad_weight<float, std::int64_t>({messages, m.grad_y.data(), grad_weight.data()});
      CHECK_CLOSE(y, want.y);
      CHECK_CLOSE(grad_weight, want.grad_weight);
    }
  }
}

// ---- graphs from graphs

GMOE_PARALLEL_TEST(two_hop_graph) {
  constexpr struct {
    std::int64_t nodes, edges;
  } kGraphs[] = {{0, 0}, {1, 0}, {1, 3}, {17, 40}, {2500, 6000}};
  Random random(3);
  for_each_index([&](auto type) {
    using Index = typename decltype(type)::type;
    for (const auto& g : kGraphs) {
      for (int with = 0; with < 8; ++with) {
        const bool self = (with & 1) != 0, one_hop = (with & 2) != 0, typed = (with & 4) != 0;
        test::set_case(g.nodes, " nodes, ", g.edges, " edges, exclude ", self, one_hop, ", typed ", typed);
        constexpr std::int64_t kTypes = 3;
        const auto rows = random_rows<Index>(random, g.nodes, g.nodes, g.edges);
        const auto edge_type = random.indices<Index>(g.edges, kTypes);
        std::vector<std::int64_t> degree = unwritten_index(g.nodes);
        std::vector<core::TwoHopRows<Index>> blocks;
        core::two_hop_graph<Index>({rows.offsets.data(), rows.columns.data(), typed ? edge_type.data() : nullptr,
                                    g.nodes, kTypes, self, one_hop},
                                   degree.data(), blocks);
        std::vector<Index> columns, types;
        for (const auto& block : blocks) {
          columns.insert(columns.end(), block.columns.begin(), block.columns.end());
          types.insert(types.end(), block.edge_type.begin(), block.edge_type.end());
        }
        const TwoHop<Index> want = naive_two_hop(rows, typed ? edge_type.data() : nullptr, kTypes, self, one_hop);
        CHECK_EQUAL(degree, want.degree);
        CHECK_EQUAL(columns, want.columns);
        CHECK_EQUAL(types, want.edge_type);
      }
    }
  });
}

GMOE_PARALLEL_TEST(random_walk) {
  constexpr struct {
    std::int64_t nodes, edges, walks, length, seed;
  } kWalks[] = {{1, 0, 0, 3, 0}, {1, 0, 5, 1, 1}, {2, 7, 33, 4, -1}, {500, 900, 4001, 11, std::int64_t{1} << 62}};
  Random random(4);
  for_each_index([&](auto type) {
    using Index = typename decltype(type)::type;
    for (const auto& w : kWalks) {
      test::set_case(w.nodes, " nodes, ", w.edges, " edges, ", w.walks, " walks of ", w.length);
      const auto rows = random_rows<Index>(random, w.nodes, w.nodes, w.edges);
      const auto starts = random.indices<std::int64_t>(w.walks, w.nodes);
      std::vector<std::int64_t> walks = unwritten_index(w.walks * w.length);
      core::random_walk<Index>(
          {rows.offsets.data(), rows.columns.data(), starts.data(), w.walks, w.length, w.seed, walks.data()});
      CHECK_EQUAL(walks, naive_walks(rows, starts, w.length, w.seed));
    }
  });
}

GMOE_TEST(find_bad_offset_finds_the_first) {
  const auto find = [](std::vector<std::int64_t> offsets, std::int64_t total) {
    return core::find_bad_offset(offsets.data(), static_cast<std::int64_t>(offsets.size()) - 1, total);
  };
  CHECK(find({0}, 0) == -1);
  CHECK(find({0}, 1) == 0);
  CHECK(find({1}, 1) == 0);
  CHECK(find({0, 0, 3}, 3) == -1);
  CHECK(find({0, 2, 1}, 1) == 2);
  CHECK(find({0, -1, 1}, 1) == 1);
  CHECK(find({0, 2, 3}, 4) == 2);
}

}  // namespace
}  // namespace gmoe::test
