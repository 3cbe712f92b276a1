// CUDA sums over neighbours against loops over every edge.
#include "core/aggregate.h"
#include "tests/check.h"
#include "tests/cuda/device.h"
#include "tests/inputs.h"

namespace gmoe::test {
namespace {

namespace cuda = core::cuda;

struct Sizes {
  std::int64_t rows, columns, edges, hub_edges, dim;
};
// A segment is 64 rows and edges, a row of more edges is divided; lanes load 16 bytes, 8 bytes or a value.
constexpr Sizes kSizes[] = {{0, 0, 0, 0, 5},    {3, 0, 0, 0, 4},     {1, 1, 1, 0, 1},
                            {5, 7, 23, 0, 0},   {200, 3, 1, 0, 2},   {101, 83, 700, 0, 33},
                            {3, 5, 300, 0, 16}, {1, 9, 129, 0, 131}, {40, 31, 90, 701, 136}};

template <typename Index>
std::vector<Index> spoiled(std::vector<Index> columns, std::int64_t num_columns, bool bad) {
  if (bad) columns[1] = static_cast<Index>(num_columns);
  if (bad) columns.back() = -1;
  return columns;
}

// f(random, sizes, rows, weight or null, bad, T) for every case. Of bad columns, the second and the last edge have one.
template <typename F>
void for_each_case(const F& f) {
  Random random(1);
  for_each_row_type([&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using Index = typename decltype(index_type)::type;
    for (const Sizes& s : kSizes) {
      for (const bool bad : {false, true}) {
        if (bad && s.edges < 2) continue;
        set_case(sizeof(T), " bytes, ", s.rows, " rows, ", s.columns, " columns, ", s.edges, " + ", s.hub_edges,
                 " edges, dim ", s.dim, bad ? ", bad columns" : "");
        auto rows = random_rows<Index>(random, s.rows, s.columns, s.edges, s.hub_edges);
        rows.columns = spoiled(rows.columns, s.columns, bad);
        const auto weight = random.values<core::Accumulator<T>>(rows.num_edges());
        f(random, s, rows, bad ? nullptr : weight.data(), bad, type);
      }
    }
  });
}

GMOE_PARALLEL_TEST(aggregate) {
  for_each_case([]<typename Index, typename A, typename T>(Random& random, const Sizes& s,
                                                           const CompressedRows<Index>& rows, const A* weight, bool bad,
                                                           Type<T>) {
    const auto x = random.values<T>(s.columns * s.dim);
    std::vector<T> y = unwritten<T>(s.rows * s.dim);
    Device device;
    cuda::aggregate<T, Index>(
        {x.data(), rows.offsets.data(), rows.columns.data(), weight, s.rows, rows.num_edges(), s.dim, y.data()},
        s.columns, device.call(cuda::aggregate_workspace<T>(s.rows, rows.num_edges(), s.dim)));
    CHECK(device.bad_index() == (bad && s.dim > 0 ? 1 : -1));
    std::vector<double> want = zeros(s.rows * s.dim);
    for (std::int64_t i = 0; i < s.rows; ++i) {
      for (std::int64_t e = rows.offsets[i]; e < rows.offsets[i + 1]; ++e) {
        if (rows.columns[e] < 0 || rows.columns[e] >= s.columns) continue;
        const double w = weight != nullptr ? weight[e] : 1;
        for (std::int64_t d = 0; d < s.dim; ++d) want[i * s.dim + d] += w * wide(x[rows.columns[e] * s.dim + d]);
      }
    }
    CHECK_CLOSE(y, want);
  });
}

GMOE_PARALLEL_TEST(aggregate_grad_weight) {
  for_each_case([]<typename Index, typename A, typename T>(
                    Random& random, const Sizes& s, const CompressedRows<Index>& rows, const A*, bool bad, Type<T>) {
    const auto x = random.values<T>(s.columns * s.dim), grad_y = random.values<T>(s.rows * s.dim);
    std::vector<A> grad_weight = unwritten<A>(rows.num_edges());
    Device device;
    cuda::aggregate_grad_weight<T, Index>({grad_y.data(), x.data(), rows.offsets.data(), rows.columns.data(), s.rows,
                                           rows.num_edges(), s.dim, grad_weight.data()},
                                          s.columns, device.call());
    CHECK(device.bad_index() == (bad ? 1 : -1));
    std::vector<double> want = zeros(rows.num_edges());
    for (std::int64_t i = 0; i < s.rows; ++i) {
      for (std::int64_t e = rows.offsets[i]; e < rows.offsets[i + 1]; ++e) {
        if (rows.columns[e] < 0 || rows.columns[e] >= s.columns) continue;
        for (std::int64_t d = 0; d < s.dim; ++d) {
          want[e] += wide(grad_y[i * s.dim + d]) * wide(x[rows.columns[e] * s.dim + d]);
        }
      }
    }
    CHECK_CLOSE(grad_weight, want);
  });
}

GMOE_PARALLEL_TEST(aggregate_of_two_hops_is_two_calls) {
  Random random(2);
  const auto rows = random_rows<std::int32_t>(random, 70, 70, 300, 150);
  const auto x = random.values<double>(70 * 6);
  const auto hop = [&](const std::vector<double>& from) {
    std::vector<double> to = unwritten<double>(70 * 6);
    Device device;
    cuda::aggregate<double, std::int32_t>(
        {from.data(), rows.offsets.data(), rows.columns.data(), nullptr, 70, rows.num_edges(), 6, to.data()}, 70,
        device.call(cuda::aggregate_workspace<double>(70, rows.num_edges(), 6)));
    return to;
  };
  std::vector<double> want = zeros(70 * 6);
  for (std::int64_t i = 0; i < 70; ++i) {
    for (std::int64_t e = rows.offsets[i]; e < rows.offsets[i + 1]; ++e) {
      const std::int64_t via = rows.columns[e];
      for (std::int64_t f = rows.offsets[via]; f < rows.offsets[via + 1]; ++f) {
        for (std::int64_t d = 0; d < 6; ++d) want[i * 6 + d] += x[rows.columns[f] * 6 + d];
      }
    }
  }
  CHECK_CLOSE(hop(hop(x)), want);
}

}  // namespace
}  // namespace gmoe::test
