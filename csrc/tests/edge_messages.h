// Messages over typed edges for the operators' tests, and what they make by a loop over every edge, slot and column.
#pragma once

#include <cstdint>
#include <vector>

#include "core/routed_edge_aggregate.h"
#include "tests/inputs.h"

namespace gmoe::test {

// Which experts there are and who chose them; without `routed`, one that every destination chose.
struct Routing {
  bool routed, shared;
  std::int64_t experts, k, types;
};
inline constexpr Routing kRoutings[] = {
    {false, true, 1, 1, 5}, {true, true, 4, 2, 3}, {true, false, 3, 3, 1}, {true, false, 2, 0, 7}};
inline constexpr std::int64_t kFirstExpert = 2;

template <typename T, typename Index>
struct Messages {
  // Rows are destinations, or sources in the gradient of x and table.
  Messages(Random& random, const Routing& r, const CompressedRows<Index>& rows, std::int64_t num_columns,
           std::int64_t dim, const core::Accumulator<T>* weight, bool rows_are_sources)
      : num_sources(rows_are_sources ? rows.num_rows() : num_columns),
        num_destinations(rows_are_sources ? num_columns : rows.num_rows()),
        x(random.values<T>((r.shared ? 1 : r.experts) * num_sources * dim)),
        table(random.values<T>(r.experts * r.types * dim)),
        grad_y(random.values<T>(num_destinations * r.k * dim)),
        edge_type(random.indices<Index>(rows.num_edges(), r.types)),
        // Some of them are experts before and after those given here.
        index(random.indices<std::int64_t>(r.routed ? num_destinations * r.k : 0, r.experts + kFirstExpert + 1)) {
    call = {x.data(),
            table.data(),
            r.routed ? index.data() : nullptr,
            r.routed ? kFirstExpert : 0,
            r.experts,
            r.k,
            r.shared,
            rows.offsets.data(),
            rows.columns.data(),
            edge_type.data(),
            weight,
            num_sources,
            num_destinations,
            rows.num_edges(),
            r.types,
            dim};
  }
  Messages(const Messages&) = delete;

  std::int64_t num_sources, num_destinations;
  std::vector<T> x, table, grad_y;
  std::vector<Index> edge_type;
  std::vector<std::int64_t> index;
  core::EdgeMessages<T, Index> call;
};

struct NaiveMessages {
  std::vector<double> y, grad_x, grad_table, grad_weight;
};

// Edges with a bad column or type are left out.
template <typename T, typename Index>
NaiveMessages naive(const Messages<T, Index>& m, bool rows_are_sources) {
  const auto& c = m.call;
  NaiveMessages n{zeros(m.num_destinations * c.k * c.dim), zeros(static_cast<std::int64_t>(m.x.size())),
                  zeros(static_cast<std::int64_t>(m.table.size())), zeros(c.num_edges)};
  const std::int64_t num_rows = rows_are_sources ? m.num_sources : m.num_destinations;
  const std::int64_t num_columns = rows_are_sources ? m.num_destinations : m.num_sources;
  for (std::int64_t row = 0; row < num_rows; ++row) {
    for (std::int64_t edge = c.offsets[row]; edge < c.offsets[row + 1]; ++edge) {
      const auto column = static_cast<std::int64_t>(c.columns[edge]),
                 type = static_cast<std::int64_t>(c.edge_type[edge]);
      if (column < 0 || column >= num_columns || type < 0 || type >= c.num_types) continue;
      const std::int64_t source = rows_are_sources ? row : column, destination = rows_are_sources ? column : row;
      const double weight = c.weight != nullptr ? c.weight[edge] : 1;
      for (std::int64_t slot = destination * c.k; slot < (destination + 1) * c.k; ++slot) {
        const std::int64_t e = c.expert != nullptr ? c.expert[slot] - c.first_expert : 0;
        if (e < 0 || e >= c.num_experts) continue;
        for (std::int64_t d = 0; d < c.dim; ++d) {
          const std::int64_t at_x = ((c.shared ? 0 : e * m.num_sources) + source) * c.dim + d;
          const std::int64_t at_table = (e * c.num_types + type) * c.dim + d;
          const double message = wide(c.x[at_x]) + wide(c.table[at_table]);
          if (message <= 0) continue;
          const double grad = wide(m.grad_y[slot * c.dim + d]);
          n.y[slot * c.dim + d] += weight * message;
          n.grad_x[at_x] += weight * grad;
          n.grad_table[at_table] += weight * grad;
          n.grad_weight[edge] += grad * message;
        }
      }
    }
  }
  return n;
}

}  // namespace gmoe::test
