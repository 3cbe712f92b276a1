// Offsets that do not rise from 0 to the number of edges: noted, and never followed out of an array. What the kernels
// make of them does not matter, nor whether they need their barriers for it: one order is enough. That they stay inside
// shows under AddressSanitizer, where arrays end exactly.
#include <algorithm>
#include <limits>

#include "core/aggregate.h"
#include "core/random_walk.h"
#include "core/routed_edge_aggregate.h"
#include "core/routed_edge_mixture.h"
#include "core/two_hop_graph.h"
#include "tests/check.h"
#include "tests/device.h"
#include "tests/edge_messages.h"
#include "tests/inputs.h"

namespace gmoe::test {
namespace {

constexpr std::int64_t kNodes = 71, kEdges = 230, kHubEdges = 200, kDim = 6;
constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();

using Rows = CompressedRows<std::int32_t>;

// f(rows) for rows of which the offsets are broken in one way each.
template <typename F>
void for_each_breakage(const F& f) {
  Random random(5);
  const Rows good = random_rows<std::int32_t>(random, kNodes, kNodes, kEdges, kHubEdges);
  int way = 0;
  const auto with = [&](const auto& change) {
    Rows rows = good;
    change(rows.offsets);
    set_case("breakage ", way++);
    f(rows);
  };
  struct One {
    std::int64_t place, value;
  };
  for (const One& one : {One{0, -5}, One{0, 1}, One{30, 1'000'000'000'000}, One{30, -1}, One{kNodes, 0},
                         One{kNodes, kHuge}, One{kNodes, -kHuge - 1}, One{0, kHuge}, One{1, -kHuge - 1}}) {
    with([&](auto& offsets) { offsets[static_cast<std::size_t>(one.place)] = one.value; });
  }
  with([](auto& offsets) { std::reverse(offsets.begin(), offsets.end()); });
  with([](auto& offsets) { std::fill(offsets.begin(), offsets.end(), 0); });
  with([](auto& offsets) { std::fill(offsets.begin(), offsets.end(), kEdges); });
  for (int i = 0; i < 4; ++i) {
    with([&](auto& offsets) {
      for (std::int64_t& o : offsets) o = random.indices<std::int64_t>(1, 3 * kEdges)[0] - kEdges;
    });
  }
}

GMOE_TEST(aggregate_stays_inside_of_broken_offsets) {
  for_each_breakage([](const Rows& rows) {
    const std::vector<float> x(kNodes * kDim, 1.0f), weight(rows.columns.size(), 1.0f);
    std::vector<float> y(kNodes * kDim), grad_weight(rows.columns.size());
    Device device;
    core::cuda::aggregate<float, std::int32_t>(
        {x.data(), rows.offsets.data(), rows.columns.data(), weight.data(), kNodes, rows.num_edges(), kDim, y.data()},
        kNodes, device.call(core::cuda::aggregate_workspace<float>(kNodes, rows.num_edges(), kDim)));
    CHECK(device.bad_index() == rows.num_edges());
    core::cuda::aggregate_grad_weight<float, std::int32_t>(
        {y.data(), x.data(), rows.offsets.data(), rows.columns.data(), kNodes, rows.num_edges(), kDim,
         grad_weight.data()},
        kNodes, device.call());
    CHECK(device.bad_index() == rows.num_edges());
  });
}

GMOE_TEST(routed_edges_stay_inside_of_broken_offsets) {
  constexpr Routing kRouting = {true, false, 3, 2, 5};
  for_each_breakage([&](const Rows& rows) {
    for (const bool rows_are_sources : {false, true}) {
      Random random(6);
      Rows good = random_rows<std::int32_t>(random, kNodes, kNodes, kEdges, kHubEdges);
      Messages<float, std::int32_t> m(random, kRouting, good, kNodes, kDim, nullptr, rows_are_sources);
      auto call = m.call;
      call.offsets = rows.offsets.data();
      const std::int64_t slots = kNodes * call.k;
      std::vector<float> y(slots * kDim), table(call.num_experts * call.num_types * kDim);
      std::vector<float> x(call.num_experts * kNodes * kDim), weight(rows.columns.size());
      const std::vector<float> gate(slots, 0.5f), scale(call.num_experts * kDim, 1.0f), onto(kNodes * kDim);
      Device device;
      if (rows_are_sources) {
        core::cuda::routed_edge_aggregate_grad<float, std::int32_t>(
            {call, y.data(), x.data(), table.data()},
            device.call(core::cuda::routed_edge_aggregate_grad_workspace(call)));
        CHECK(device.bad_index() == 2 * call.num_edges);
        continue;
      }
      core::cuda::routed_edge_aggregate<float, std::int32_t>(
          {call, y.data()}, device.call(core::cuda::routed_edge_aggregate_workspace(call)));
      CHECK(device.bad_index() == 2 * call.num_edges);
      core::cuda::routed_edge_aggregate_grad_weight<float, std::int32_t>({call, y.data(), weight.data()},
                                                                         device.call());
      CHECK(device.bad_index() == 2 * call.num_edges);
      std::vector<float> mixture(kNodes * kDim);
      core::cuda::routed_edge_mixture<float, std::int32_t>(
          {call, gate.data(), scale.data(), scale.data(), onto.data(), mixture.data()},
          device.call(core::cuda::routed_edge_mixture_workspace(call)));
      CHECK(device.bad_index() == 2 * call.num_edges);
    }
  });
}

GMOE_TEST(graphs_and_walks_stay_inside_of_broken_offsets) {
  for_each_breakage([](const Rows& rows) {
    const std::int64_t num_edges = rows.num_edges();
    const std::vector<std::int64_t> starts(40, kNodes - 1);
    std::vector<std::int64_t> walks(starts.size() * 9), offsets(kNodes + 1);
    Device device;
    core::cuda::random_walk<std::int32_t>({rows.offsets.data(), rows.columns.data(), starts.data(),
                                           static_cast<std::int64_t>(starts.size()), 9, 1, walks.data()},
                                          kNodes, num_edges, device.call());
    CHECK(device.bad_index() == num_edges + 40);
    const std::vector<std::int32_t> edge_type(rows.columns.size(), 1);
    const core::TwoHopGraph<std::int32_t> graph{
        rows.offsets.data(), rows.columns.data(), edge_type.data(), kNodes, 2, true, true};
    core::cuda::two_hop_offsets(graph, num_edges, offsets.data(),
                                device.call(core::cuda::two_hop_offsets_workspace(kNodes)));
    CHECK(device.bad_index() == 2 * num_edges);
    std::vector<std::int32_t> columns(static_cast<std::size_t>(offsets.back())), types(columns.size());
    const core::cuda::TwoHopResult<std::int32_t> result{offsets.data(), offsets.back(), columns.data(), types.data()};
    core::cuda::two_hop_edges(graph, num_edges, result, device.call(core::cuda::two_hop_edges_workspace(result)));
  });
}

}  // namespace
}  // namespace gmoe::test
