// Messages over typed edges against loops over every edge, slot and column.
#include <iterator>
#include <span>

#include "core/routed_edge_aggregate.h"
#include "core/routed_edge_mixture.h"
#include "tests/device.h"
#include "tests/edge_messages.h"

namespace gmoe::test {
namespace {

// A segment is 64 rows and edges, a row of more edges is divided; a tile is 128 columns, lanes load up to four values.
constexpr RowSizes kCudaSizes[] = {{0, 0, 0, 0, 5},     {3, 0, 0, 0, 4},   {1, 1, 1, 0, 1},      {5, 7, 23, 0, 0},
                                   {41, 37, 90, 0, 33}, {3, 5, 200, 0, 6}, {13, 11, 40, 300, 4}, {7, 9, 30, 0, 132}};
constexpr std::span<const RowSizes> kSizes = kOnDevice ? std::span<const RowSizes>(kCudaSizes) : kRowSizes;
constexpr Routing kManyTypes = {true, false, 2, 2, 1500};  // more than one sort orders

// ---- kernels

template <typename T, typename Index>
void run(const core::RoutedEdgeAggregate<T, Index>& a, Device& device) {
  if constexpr (kOnDevice) {
    core::cuda::routed_edge_aggregate(a, device.call(core::cuda::routed_edge_aggregate_workspace(a.messages)));
  } else {
    core::routed_edge_aggregate(a);
  }
}
template <typename T, typename Index>
void run(const core::RoutedEdgeAggregateGrad<T, Index>& a, Device& device) {
  if constexpr (kOnDevice) {
    const std::int64_t bytes = core::cuda::routed_edge_aggregate_grad_workspace(a.messages);
    core::cuda::routed_edge_aggregate_grad(a, device.call(bytes));
  } else {
    core::routed_edge_aggregate_grad(a);
  }
}
template <typename T, typename Index>
void run(const core::RoutedEdgeAggregateGradWeight<T, Index>& a, Device& device) {
  if constexpr (kOnDevice) {
    core::cuda::routed_edge_aggregate_grad_weight(a, device.call());
  } else {
    core::routed_edge_aggregate_grad_weight(a);
  }
}
template <typename T, typename Index>
void run(const core::RoutedEdgeMixture<T, Index>& a, Device& device) {
  if constexpr (kOnDevice) {
    core::cuda::routed_edge_mixture(a, device.call(core::cuda::routed_edge_mixture_workspace(a.messages)));
  } else {
    core::routed_edge_mixture(a);
  }
}

// ---- cases

// Indices of a case: all good; a bad column and a bad type; bad types alone.
enum class Fault { none, column, type };

template <typename Index>
void spoil(std::vector<Index>& values, std::int64_t at, std::int64_t bound) {
  values[static_cast<std::size_t>(at)] = static_cast<Index>(bound);
  values.back() = -1;
}

// Routings of the next case: all of them, on a device the next two, so that each meets several sizes.
std::vector<Routing> next_routings(const RowSizes& s, std::size_t& next) {
  std::vector<Routing> chosen;
  if constexpr (kOnDevice) {
    const Routing all[] = {kRoutings[0], kRoutings[1], kRoutings[2], kRoutings[3], kManyTypes};
    for (int i = 0; i < 2; ++i) chosen.push_back(all[next++ % std::size(all)]);
  } else {
    for (const Routing& r : kRoutings) {
      if (!s.large || r.shared) chosen.push_back(r);
    }
  }
  return chosen;
}

// f(messages, what they make, position of the first bad index or -1) for every case; the large ones for two types only.
template <typename F>
void for_each_routing(bool rows_are_sources, const F& f) {
  Random random(1);
  const auto run_case = [&]<typename T, typename Index>(const RowSizes& s, const Routing& r, bool weighted, Fault fault,
                                                        Type<T>, Type<Index>) {
    set_case(sizeof(T), " bytes, ", s.rows, " rows, ", s.columns, " columns, ", s.edges, " + ", s.hub_edges,
             " edges, dim ", s.dim, ", ", r.experts, " experts, k ", r.k, ", ", r.types, " types",
             weighted ? ", weighted" : "", ", fault ", static_cast<int>(fault));
    auto rows = random_rows<Index>(random, s.rows, s.columns, s.edges, s.hub_edges);
    const auto weight = random.values<core::Accumulator<T>>(weighted ? rows.num_edges() : 0);
    if (fault == Fault::column) spoil(rows.columns, 1, s.columns);
    Messages<T, Index> m(random, r, rows, s.columns, s.dim, weighted ? weight.data() : nullptr, rows_are_sources);
    if (fault != Fault::none) spoil(m.edge_type, 2, r.types);
    const bool met = fault != Fault::none && s.dim > 0 && r.k > 0;
    f(m, naive(m, rows_are_sources), !met ? -1 : fault == Fault::column ? 1 : rows.num_edges() + 2);
  };
  for_each_row_type([&](auto type, auto index_type) {
    constexpr bool is_float = sizeof(typename decltype(type)::type) == 4;
    constexpr bool is_long = sizeof(typename decltype(index_type)::type) == 8;
    std::size_t next = 0;
    for (const RowSizes& s : kSizes) {
      for (const Fault fault : {Fault::none, Fault::column, Fault::type}) {
        if (fault != Fault::none && !kOnDevice) continue;
        const std::vector<Routing> routings = next_routings(s, next);
        if (fault != Fault::none && s.edges < 3) continue;
        for (const bool weighted : {false, true}) {
          if (s.large && (is_long || weighted != is_float)) continue;
          if (kOnDevice && weighted != (fault == Fault::none)) continue;
          for (const Routing& r : routings) run_case(s, r, weighted, fault, type, index_type);
        }
      }
    }
  });
}

// ---- tests

GMOE_PARALLEL_TEST(routed_edge_aggregate) {
  for_each_routing(
      false, []<typename T, typename Index>(const Messages<T, Index>& m, const NaiveMessages& want, std::int64_t bad) {
        std::vector<T> y = unwritten<T>(std::ssize(want.y));
        Device device;
        run(core::RoutedEdgeAggregate<T, Index>{.messages = m.call, .y = y.data()}, device);
        CHECK_CLOSE(y, want.y);
        CHECK(device.bad_index() == bad);
      });
}

// Both gradients, or one of them.
GMOE_PARALLEL_TEST(routed_edge_aggregate_grad) {
  int turn = 0;
  for_each_routing(
      true, [&]<typename T, typename Index>(const Messages<T, Index>& m, const NaiveMessages& want, std::int64_t bad) {
        for (int asked = 0; asked < 3; ++asked) {
          if (kOnDevice && asked != turn % 3) continue;  // one of the three a case
          const bool want_x = asked != 1, want_table = asked != 2;
          std::vector<T> grad_x = unwritten<T>(std::ssize(m.x)), grad_table = unwritten<T>(std::ssize(m.table));
          Device device;
          run(core::RoutedEdgeAggregateGrad<T, Index>{.messages = m.call,
                                                      .grad_y = m.grad_y.data(),
                                                      .grad_x = want_x ? grad_x.data() : nullptr,
                                                      .grad_table = want_table ? grad_table.data() : nullptr},
              device);
          if (want_x) CHECK_CLOSE(grad_x, want.grad_x);
          if (want_table) CHECK_CLOSE(grad_table, want.grad_table);
          CHECK(device.bad_index() == bad);
        }
        ++turn;
      });
}

GMOE_PARALLEL_TEST(routed_edge_aggregate_grad_weight) {
  for_each_routing(
      false, []<typename T, typename Index>(const Messages<T, Index>& m, const NaiveMessages& want, std::int64_t bad) {
        std::vector<core::Accumulator<T>> grad_weight = unwritten<core::Accumulator<T>>(m.call.num_edges);
        Device device;
        run(
            core::RoutedEdgeAggregateGradWeight<T, Index>{
                .messages = m.call, .grad_y = m.grad_y.data(), .grad_weight = grad_weight.data()},
            device);
        CHECK_CLOSE(grad_weight, want.grad_weight);
        if (bad >= 0) CHECK(device.bad_index() == bad);
      });
}

GMOE_SMALL_TEST(routed_edge_aggregate_grad_table_of_one_type_that_all_edges_have) {
  Random random(2);
  const auto rows = random_rows<std::int32_t>(random, 999, 777, 70000);
  const Messages<float, std::int32_t> m(random, {true, true, 1, 1, 1}, rows, 777, 1, nullptr, true);
  std::vector<float> grad_table = unwritten<float>(1);
  Device device;
  run(core::RoutedEdgeAggregateGrad<float, std::int32_t>{m.call, m.grad_y.data(), nullptr, grad_table.data()}, device);
  CHECK_CLOSE(grad_table, naive(m, true).grad_table);
}

GMOE_PARALLEL_TEST(routed_edge_mixture) {
  Random random(4);
  for_each_routing(false, [&]<typename T, typename Index>(const Messages<T, Index>& m, const NaiveMessages& sums,
                                                          std::int64_t bad) {
    const auto& c = m.call;
    const auto gate = random.values<T>(c.num_destinations * c.k), onto = random.values<T>(c.num_destinations * c.dim);
    const auto scale = random.values<T>(c.num_experts * c.dim), shift = random.values<T>(c.num_experts * c.dim);
    for (const bool with : {false, true}) {
      std::vector<T> y = unwritten<T>(c.num_destinations * c.dim);
      Device device;
      run(core::RoutedEdgeMixture<T, Index>{.messages = c,
                                            .gate = gate.data(),
                                            .scale = with ? scale.data() : nullptr,
                                            .shift = with ? shift.data() : nullptr,
                                            .onto = with ? onto.data() : nullptr,
                                            .y = y.data()},
          device);
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
      CHECK(device.bad_index() == bad);
    }
  });
}

}  // namespace
}  // namespace gmoe::test
