// CUDA messages over typed edges against loops over every edge, slot and column.
#include "core/routed_edge_aggregate.h"
#include "core/routed_edge_mixture.h"
#include "tests/check.h"
#include "tests/cuda/device.h"
#include "tests/edge_messages.h"
#include "tests/inputs.h"

namespace gmoe::test {
namespace {

namespace cuda = core::cuda;

struct Sizes {
  std::int64_t rows, columns, edges, hub_edges, dim;
};
// A segment is 64 rows and edges, a row of more edges is divided; a tile is 128 columns, lanes load up to four values.
constexpr Sizes kSizes[] = {{0, 0, 0, 0, 5},     {3, 0, 0, 0, 4},   {1, 1, 1, 0, 1},      {5, 7, 23, 0, 0},
                            {41, 37, 90, 0, 33}, {3, 5, 200, 0, 6}, {13, 11, 40, 300, 4}, {7, 9, 30, 0, 132}};
constexpr Routing kManyTypes = {true, false, 2, 2, 1500};  // more than one sort orders

template <typename Index>
void spoil(std::vector<Index>& values, std::int64_t at, std::int64_t bound) {
  values[static_cast<std::size_t>(at)] = static_cast<Index>(bound);
  values.back() = -1;
}

// f(messages, what they make, position of the first bad index or -1) for every case and routing: good indices, a bad
// column and a bad type, bad types alone.
template <typename F>
void for_each_routing(bool rows_are_sources, const F& f) {
  Random random(1);
  for_each_row_type([&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    std::size_t next = 0;
    for (const Sizes& s : kSizes) {
      for (const int bad : {0, 1, 2}) {
        const Routing routings[] = {kRoutings[0], kRoutings[1], kRoutings[2], kRoutings[3], kManyTypes};
        // Two of them a case, so that each meets several sizes.
        for (int i = 0; i < 2; ++i) {
          const Routing& r = routings[next++ % std::size(routings)];
          if (bad > 0 && s.edges < 3) continue;
          set_case(sizeof(T), " bytes, ", s.rows, " rows, ", s.columns, " columns, ", s.edges, " + ", s.hub_edges,
                   " edges, dim ", s.dim, ", ", r.experts, " experts, k ", r.k, ", ", r.types, " types, ", bad, " bad");
          auto rows = random_rows<Index>(random, s.rows, s.columns, s.edges, s.hub_edges);
          const auto weight = random.values<core::Accumulator<T>>(rows.num_edges());
          if (bad == 1) spoil(rows.columns, 1, s.columns);
          Messages<T, Index> m(random, r, rows, s.columns, s.dim, bad == 0 ? weight.data() : nullptr, rows_are_sources);
          if (bad > 0) spoil(m.edge_type, 2, r.types);
          const bool met = s.dim > 0 && r.k > 0;
          f(m, naive(m, rows_are_sources), !met || bad == 0 ? -1 : bad == 1 ? 1 : rows.num_edges() + 2);
        }
      }
    }
  });
}

GMOE_PARALLEL_TEST(routed_edge_aggregate) {
  for_each_routing(
      false, []<typename T, typename Index>(const Messages<T, Index>& m, const NaiveMessages& want, std::int64_t bad) {
        std::vector<T> y = unwritten<T>(static_cast<std::int64_t>(want.y.size()));
        Device device;
        cuda::routed_edge_aggregate<T, Index>({m.call, y.data()},
                                              device.call(cuda::routed_edge_aggregate_workspace(m.call)));
        CHECK_CLOSE(y, want.y);
        CHECK(device.bad_index() == bad);
      });
}

GMOE_PARALLEL_TEST(routed_edge_aggregate_grad) {
  int turn = 0;
  for_each_routing(
      true, [&]<typename T, typename Index>(const Messages<T, Index>& m, const NaiveMessages& want, std::int64_t bad) {
        // Both, or one of them, in turn.
        const bool want_x = turn % 3 != 1, want_table = turn % 3 != 2;
        ++turn;
        std::vector<T> grad_x = unwritten<T>(static_cast<std::int64_t>(m.x.size()));
        std::vector<T> grad_table = unwritten<T>(static_cast<std::int64_t>(m.table.size()));
        Device device;
        cuda::routed_edge_aggregate_grad<T, Index>(
            {m.call, m.grad_y.data(), want_x ? grad_x.data() : nullptr, want_table ? grad_table.data() : nullptr},
            device.call(cuda::routed_edge_aggregate_grad_workspace(m.call)));
        if (want_x) CHECK_CLOSE(grad_x, want.grad_x);
        if (want_table) CHECK_CLOSE(grad_table, want.grad_table);
        CHECK(device.bad_index() == bad);
      });
}

GMOE_PARALLEL_TEST(routed_edge_aggregate_grad_weight) {
  for_each_routing(
      false, []<typename T, typename Index>(const Messages<T, Index>& m, const NaiveMessages& want, std::int64_t bad) {
        std::vector<core::Accumulator<T>> grad_weight = unwritten<core::Accumulator<T>>(m.call.num_edges);
        Device device;
        cuda::routed_edge_aggregate_grad_weight<T, Index>({m.call, m.grad_y.data(), grad_weight.data()}, device.call());
        CHECK_CLOSE(grad_weight, want.grad_weight);
        if (bad >= 0) CHECK(device.bad_index() == bad);
      });
}

GMOE_PARALLEL_TEST(routed_edge_aggregate_grad_table_of_one_type_that_all_edges_have) {
  Random random(2);
  const auto rows = random_rows<std::int32_t>(random, 999, 777, 70000);
  const Messages<float, std::int32_t> m(random, {true, true, 1, 1, 1}, rows, 777, 1, nullptr, true);
  std::vector<float> grad_table = unwritten<float>(1);
  Device device;
  cuda::routed_edge_aggregate_grad<float, std::int32_t>(
      {m.call, m.grad_y.data(), nullptr, grad_table.data()},
      device.call(cuda::routed_edge_aggregate_grad_workspace(m.call)));
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
      cuda::routed_edge_mixture<T, Index>({c, gate.data(), with ? scale.data() : nullptr, with ? shift.data() : nullptr,
                                           with ? onto.data() : nullptr, y.data()},
                                          device.call(cuda::routed_edge_mixture_workspace(c)));
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

GMOE_PARALLEL_TEST(routed_edge_aggregate_without_index_is_one_expert_that_all_chose) {
  Random random(3);
  constexpr Routing r{false, true, 1, 1, 4};
  const auto rows = random_rows<std::int64_t>(random, 40, 40, 300);
  for (const bool rows_are_sources : {false, true}) {
    const Messages<float, std::int64_t> m(random, r, rows, 40, 19, nullptr, rows_are_sources);
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
                                                           .num_sources = 40,
                                                           .num_destinations = 40,
                                                           .num_edges = rows.num_edges(),
                                                           .num_types = r.types,
                                                           .dim = 19};
    std::vector<float> y = unwritten<float>(40 * 19), grad_x = y, grad_table = unwritten<float>(r.types * 19);
    std::vector<float> grad_weight = unwritten<float>(rows.num_edges());
    Device device;
    if (rows_are_sources) {
      cuda::routed_edge_aggregate_grad<float, std::int64_t>(
          {messages, m.grad_y.data(), grad_x.data(), grad_table.data()},
          device.call(cuda::routed_edge_aggregate_grad_workspace(messages)));
      CHECK_CLOSE(grad_x, want.grad_x);
      CHECK_CLOSE(grad_table, want.grad_table);
    } else {
      cuda::routed_edge_aggregate<float, std::int64_t>({messages, y.data()},
                                                       device.call(cuda::routed_edge_aggregate_workspace(messages)));
      cuda::routed_edge_aggregate_grad_weight<float, std::int64_t>({messages, m.grad_y.data(), grad_weight.data()},
                                                                   device.call());
      CHECK_CLOSE(y, want.y);
      CHECK_CLOSE(grad_weight, want.grad_weight);
    }
  }
}

}  // namespace
}  // namespace gmoe::test
