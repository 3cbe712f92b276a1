// Sums over neighbours against loops over every edge.
#include "core/aggregate.h"

#include <span>

#include "core/cpu/check_index.h"
#include "tests/device.h"
#include "tests/inputs.h"

namespace gmoe::test {
namespace {

// A segment is 64 rows and edges, a row of more edges is divided; lanes load 16 bytes, 8 bytes or a value.
constexpr RowSizes kCudaSizes[] = {{0, 0, 0, 0, 5},    {3, 0, 0, 0, 4},     {1, 1, 1, 0, 1},
                                   {5, 7, 23, 0, 0},   {200, 3, 1, 0, 2},   {101, 83, 700, 0, 33},
                                   {3, 5, 300, 0, 16}, {1, 9, 129, 0, 131}, {40, 31, 90, 701, 136}};
constexpr std::span<const RowSizes> kSizes = kOnDevice ? std::span<const RowSizes>(kCudaSizes) : kRowSizes;

template <typename T, typename Index>
void run(const core::Aggregate<T, Index>& a, std::int64_t num_columns, Device& device) {
  if constexpr (kOnDevice) {
    const std::int64_t bytes = core::cuda::aggregate_workspace<T>(a.num_rows, a.num_edges, a.dim);
    core::cuda::aggregate(a, num_columns, device.call(bytes));
  } else {
    core::aggregate(a, num_columns);
  }
}
template <typename T, typename Index>
void run(const core::AggregateGradWeight<T, Index>& a, [[maybe_unused]] std::int64_t num_columns, Device& device) {
  if constexpr (kOnDevice) {
    core::cuda::aggregate_grad_weight(a, num_columns, device.call());
  } else {
    core::aggregate_grad_weight(a);
  }
}

// f(random, sizes, rows, weight or null, bad, T) for every case; the large ones for two types only. Of bad columns, the
// second and the last edge have one.
template <typename F>
void for_each_case(const F& f) {
  Random random(1);
  for_each_row_type([&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    for (const RowSizes& s : kSizes) {
      for (const bool weighted : {false, true}) {
        const bool bad = kOnDevice && !weighted && s.edges > 1;
        if (s.large && (sizeof(Index) == 8 || weighted != (sizeof(T) == 4))) continue;
        set_case(sizeof(T), " bytes, ", s.rows, " rows, ", s.columns, " columns, ", s.edges, " + ", s.hub_edges,
                 " edges, dim ", s.dim, weighted ? ", weighted" : "", bad ? ", bad columns" : "");
        auto rows = random_rows<Index>(random, s.rows, s.columns, s.edges, s.hub_edges);
        if (bad) rows.columns[1] = static_cast<Index>(s.columns);
        if (bad) rows.columns.back() = -1;
        const auto weight = random.values<core::Accumulator<T>>(weighted ? rows.num_edges() : 0);
        f(random, s, rows, weighted ? weight.data() : nullptr, bad, type);
      }
    }
  });
}

// f(row, edge, column) for every edge whose column exists.
template <typename Index, typename F>
void for_each_edge(const CompressedRows<Index>& rows, std::int64_t num_columns, const F& f) {
  for (std::int64_t i = 0; i < rows.num_rows(); ++i) {
    for (std::int64_t e = rows.offsets[i]; e < rows.offsets[i + 1]; ++e) {
      const auto column = static_cast<std::int64_t>(rows.columns[e]);
      if (column >= 0 && column < num_columns) f(i, e, column);
    }
  }
}

GMOE_PARALLEL_TEST(aggregate) {
  for_each_case([]<typename Index, typename A, typename T>(Random& random, const RowSizes& s,
                                                           const CompressedRows<Index>& rows, const A* weight, bool bad,
                                                           Type<T>) {
    const auto x = random.values<T>(s.columns * s.dim);
    std::vector<T> y = unwritten<T>(s.rows * s.dim);
    Device device;
    run(core::Aggregate<T, Index>{x.data(), rows.offsets.data(), rows.columns.data(), weight, s.rows, rows.num_edges(),
                                  s.dim, y.data()},
        s.columns, device);
    CHECK(device.bad_index() == (bad && s.dim > 0 ? 1 : -1));
    std::vector<double> want = zeros(s.rows * s.dim);
    for_each_edge(rows, s.columns, [&](std::int64_t i, std::int64_t e, std::int64_t column) {
      const double w = weight != nullptr ? weight[e] : 1;
      for (std::int64_t d = 0; d < s.dim; ++d) want[i * s.dim + d] += w * wide(x[column * s.dim + d]);
    });
    CHECK_CLOSE(y, want);
  });
}

GMOE_PARALLEL_TEST(aggregate_grad_weight) {
  for_each_case([]<typename Index, typename A, typename T>(
                    Random& random, const RowSizes& s, const CompressedRows<Index>& rows, const A*, bool bad, Type<T>) {
    const auto x = random.values<T>(s.columns * s.dim), grad_y = random.values<T>(s.rows * s.dim);
    std::vector<A> grad_weight = unwritten<A>(rows.num_edges());
    Device device;
    run(core::AggregateGradWeight<T, Index>{grad_y.data(), x.data(), rows.offsets.data(), rows.columns.data(), s.rows,
                                            rows.num_edges(), s.dim, grad_weight.data()},
        s.columns, device);
    CHECK(device.bad_index() == (bad ? 1 : -1));
    std::vector<double> want = zeros(rows.num_edges());
    for_each_edge(rows, s.columns, [&](std::int64_t i, std::int64_t e, std::int64_t column) {
      for (std::int64_t d = 0; d < s.dim; ++d) want[e] += wide(grad_y[i * s.dim + d]) * wide(x[column * s.dim + d]);
    });
    CHECK_CLOSE(grad_weight, want);
  });
}

GMOE_SMALL_TEST(aggregate_of_two_hops_is_two_calls) {
  Random random(2);
  const auto rows = random_rows<std::int64_t>(random, 70, 70, 300, 150);
  const auto x = random.values<double>(70 * 6);
  const auto hop = [&](const std::vector<double>& from) {
    std::vector<double> to = unwritten<double>(70 * 6);
    Device device;
    run(core::Aggregate<double, std::int64_t>{from.data(), rows.offsets.data(), rows.columns.data(), nullptr, 70,
                                              rows.num_edges(), 6, to.data()},
        70, device);
    return to;
  };
  std::vector<double> want = zeros(70 * 6);
  for_each_edge(rows, 70, [&](std::int64_t i, std::int64_t, std::int64_t via) {
    for (std::int64_t f = rows.offsets[via]; f < rows.offsets[via + 1]; ++f) {
      for (std::int64_t d = 0; d < 6; ++d) want[i * 6 + d] += x[rows.columns[f] * 6 + d];
    }
  });
  CHECK_CLOSE(hop(hop(x)), want);
}

#ifndef GMOE_TEST_CUDA

GMOE_TEST(find_bad_index_finds_the_first) {
  for_each_index([](auto type) {
    using Index = typename decltype(type)::type;
    constexpr std::int64_t kLargest = std::numeric_limits<Index>::max();
    const auto find = [](std::vector<Index> values, std::int64_t bound) {
      return core::find_bad_index(values.data(), static_cast<std::int64_t>(values.size()), bound);
    };
    constexpr Index kLast = std::numeric_limits<Index>::max(), kFirst = std::numeric_limits<Index>::min();
    CHECK(find({}, 0) == -1);
    CHECK(find({}, 5) == -1);
    CHECK(find({0}, 0) == 0);
    CHECK(find({0}, -3) == 0);
    CHECK(find({0, 4, 3}, 5) == -1);
    CHECK(find({0, 4, 5, 5}, 5) == 2);
    CHECK(find({0, -1, 9}, 5) == 1);
    CHECK(find({0, kFirst}, 5) == 1);
    CHECK(find({0, kLast}, kLargest) == 1);
    CHECK(find({0, kLast, kFirst}, std::numeric_limits<std::int64_t>::max()) == (sizeof(Index) == 8 ? 1 : 2));
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

#endif

}  // namespace
}  // namespace gmoe::test
