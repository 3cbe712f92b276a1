// Messages are computed and added in registers: nothing of size [M, D] is stored. A batch of molecules is
// ~800 nodes and ~2,500 edges, so x, the tables and y stay in the second-level cache; what matters there is to decide
// everything (tile width, weights) once per piece instead of once per edge. Floor: three loads per edge, slot and
// column.
//
// The gradient of x walks the rows of sources, so each row of it has one owner; the same pass adds the gradient of the
// table into one table per task. Tasks depend only on the graph, and their tables are added in order.
#include "core/routed_edge_aggregate.h"

#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#include "core/cpu/edge_messages.h"
#include "core/cpu/row_pieces.h"
#include "core/cpu/row_tile.h"

namespace gmoe::core::GMOE_ISA {
namespace {

template <typename T, typename Index>
struct ForwardWorker {
  using A = Accumulator<T>;
  const EdgeMessages<T, Index>& m;
  T* y;

  template <int V, typename Out>
  void sum_slots(const Tile<A, V>& tile, std::int64_t row, std::int64_t begin, std::int64_t end, Out* out) const {
    for (std::int64_t r = 0; r < m.k; ++r) {
      const std::int64_t e = m.expert_of(row, r);
      Vector<A> sum[V] = {};
      if (e >= 0) add_messages(m, tile, e, begin, end, sum);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) tile.write(out + r * m.dim, v, sum[v]);
    }
  }

  void rows(std::int64_t first, std::int64_t last) const {
    for_each_tile<A>(m.dim, [&](auto tile) {
      for (std::int64_t row = first; row < last; ++row) {
        sum_slots(tile, row, m.offsets[row], m.offsets[row + 1], y + row * m.k * m.dim);
      }
    });
  }
  void part(std::int64_t row, std::int64_t begin, std::int64_t end, A* sum) const {
    for_each_tile<A>(m.dim, [&](auto tile) { sum_slots(tile, row, begin, end, sum); });
  }
};

template <typename T, typename Index>
struct GradWorker {
  using A = Accumulator<T>;
  const RoutedEdgeAggregateGrad<T, Index>& a;
  A* table;                    // this task's sums of the table's gradient, or null
  std::int64_t num_rows_of_x;  // experts that have a row of their own
  std::vector<A> row_sum = std::vector<A>(static_cast<std::size_t>(num_rows_of_x * a.messages.dim));
  std::vector<char> touched = std::vector<char>(static_cast<std::size_t>(num_rows_of_x));

  // Adds one edge and slot: where the message was positive, w dy goes to the source's row and to the edge type's.
  template <bool ToX, bool ToTable>
  void add(const T* source, const T* embedding, A weight, const T* grad_y, A* to_x, A* to_table) const {
    const std::int64_t dim = a.messages.dim;
    std::int64_t d = 0;
    for (; d + kLanes<A> <= dim; d += kLanes<A>) {
      const Vector<A> grad = relu_grad(load(source + d) + load(embedding + d), weight * load(grad_y + d));
      if constexpr (ToX) store(to_x + d, load(to_x + d) + grad);
      if constexpr (ToTable) store(to_table + d, load(to_table + d) + grad);
    }
    if (d < dim) {
      const std::int64_t n = dim - d;
      const Vector<A> grad =
          relu_grad(load_first(source + d, n) + load_first(embedding + d, n), weight * load_first(grad_y + d, n));
      if constexpr (ToX) store_first(to_x + d, load_first(to_x + d, n) + grad, n);
      if constexpr (ToTable) store_first(to_table + d, load_first(to_table + d, n) + grad, n);
    }
  }

  void edges(std::int64_t row, std::int64_t begin, std::int64_t end) {
    const auto& m = a.messages;
    std::fill(touched.begin(), touched.end(), char{0});
    for (std::int64_t edge = begin; edge < end; ++edge) {
      const auto destination = static_cast<std::int64_t>(m.columns[edge]);
      const A weight = m.weight == nullptr ? A{1} : m.weight[edge];
      for (std::int64_t r = 0; r < m.k; ++r) {
        const std::int64_t e = m.expert_of(destination, r);
        if (e < 0) continue;
        const std::int64_t place = m.shared ? 0 : e, embedding = m.table_row(e, edge);
        const T* grad_y = a.grad_y + (destination * m.k + r) * m.dim;
        A* to_x = row_sum.data() + place * m.dim;
        if (!touched[place]) {
          touched[place] = 1;
          std::fill_n(to_x, m.dim, A{0});
        }
        const T* source = m.source_row(e, row);
        if (a.grad_x == nullptr) {
          add<false, true>(source, m.table + embedding, weight, grad_y, nullptr, table + embedding);
        } else if (table == nullptr) {
          add<true, false>(source, m.table + embedding, weight, grad_y, to_x, nullptr);
        } else {
          add<true, true>(source, m.table + embedding, weight, grad_y, to_x, table + embedding);
        }
      }
    }
  }

  void rows(std::int64_t first, std::int64_t last) {
    const auto& m = a.messages;
    for (std::int64_t row = first; row < last; ++row) {
      edges(row, m.offsets[row], m.offsets[row + 1]);
      if (a.grad_x == nullptr) continue;
      for (std::int64_t e = 0; e < num_rows_of_x; ++e) {
        T* out = a.grad_x + (e * m.num_sources + row) * m.dim;
        const A* sum = row_sum.data() + e * m.dim;
        for (std::int64_t d = 0; d < m.dim; ++d) out[d] = narrow<T>(touched[e] ? sum[d] : A{0});
      }
    }
  }
  void part(std::int64_t row, std::int64_t begin, std::int64_t end, A* sum) {
    edges(row, begin, end);
    for (std::int64_t e = 0; e < num_rows_of_x; ++e) {
      const A* from = row_sum.data() + e * a.messages.dim;
      for (std::int64_t d = 0; d < a.messages.dim; ++d) sum[e * a.messages.dim + d] = touched[e] ? from[d] : A{0};
    }
  }
};

// A task has enough edges to be worth clearing and adding its own table, and all tables fit in kMaxTables.
template <typename T, typename Index>
std::int64_t pieces_per_task(const EdgeMessages<T, Index>& m, std::int64_t num_pieces, bool tables) {
  if (!tables) return 1;
  constexpr std::int64_t kMinPieces = 4;  // a batch of molecules is one task
  constexpr std::int64_t kMaxTasks = 64;
  constexpr std::int64_t kMaxTables = 1 << 22;  // 16 MiB of float
  const std::int64_t table_rows = m.num_experts * m.num_types;
  const std::int64_t table_size = std::max<std::int64_t>(1, table_rows * m.dim);
  const std::int64_t max_tasks = std::clamp<std::int64_t>(kMaxTables / table_size, 1, kMaxTasks);
  const std::int64_t by_count = divide_up(num_pieces, max_tasks);
  const std::int64_t by_table = 2 * table_rows / kPieceCost;
  return std::max({kMinPieces, by_count, by_table});
}

}  // namespace

template <typename T, typename Index>
void routed_edge_aggregate(const RoutedEdgeAggregate<T, Index>& a) {
  const auto& m = a.messages;
  const std::int64_t width = m.k * m.dim;
  const auto make_worker = [&](std::int64_t) { return ForwardWorker<T, Index>{m, a.y}; };
  const auto finish = [&](std::int64_t row, const Accumulator<T>* sum) { narrow_row(sum, width, a.y + row * width); };
  for_each_row<Accumulator<T>>(RowLine(m.offsets, m.num_destinations), width, 1, make_worker, finish);
}

template <typename T, typename Index>
void routed_edge_aggregate_grad(const RoutedEdgeAggregateGrad<T, Index>& a) {
  using A = Accumulator<T>;
  const auto& m = a.messages;
  const RowLine line(m.offsets, m.num_sources);
  const std::int64_t num_rows_of_x = m.shared ? 1 : m.num_experts;
  const std::int64_t table_size = m.num_experts * m.num_types * m.dim;
  const std::int64_t per_task = pieces_per_task(m, pieces_of(line), a.grad_table != nullptr);
  const std::int64_t num_tasks = divide_up(pieces_of(line), per_task);
  // A single task of a type that needs no narrowing adds straight into the result.
  A* direct = nullptr;
  if constexpr (std::is_same_v<T, A>) direct = num_tasks <= 1 ? a.grad_table : nullptr;
  const bool own_tables = a.grad_table != nullptr && direct == nullptr;
  const std::unique_ptr<A[]> tables(own_tables ? new A[static_cast<std::size_t>(num_tasks * table_size)] : nullptr);
  if (direct != nullptr) std::fill_n(direct, table_size, A{0});

  const auto make_worker = [&](std::int64_t task) {
    A* table = direct;
    if (own_tables) {
      table = tables.get() + task * table_size;
      std::fill_n(table, table_size, A{0});
    }
    return GradWorker<T, Index>{a, table, num_rows_of_x};
  };
  const auto finish = [&](std::int64_t row, const A* sum) {
    if (a.grad_x == nullptr) return;
    for (std::int64_t e = 0; e < num_rows_of_x; ++e) {
      narrow_row(sum + e * m.dim, m.dim, a.grad_x + (e * m.num_sources + row) * m.dim);
    }
  };
  for_each_row<A>(line, num_rows_of_x * m.dim, per_task, make_worker, finish);

  if (!own_tables) return;
  parallel_for(table_size, grain_rows(num_tasks), [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t d = first; d < last; ++d) {
      A sum = 0;
      for (std::int64_t task = 0; task < num_tasks; ++task) sum += tables[task * table_size + d];
      a.grad_table[d] = narrow<T>(sum);
    }
  });
}

template <typename T, typename Index>
void routed_edge_aggregate_grad_weight(const RoutedEdgeAggregateGradWeight<T, Index>& a) {
  using A = Accumulator<T>;
  const auto& m = a.messages;
  const RowLine line(m.offsets, m.num_destinations);
  for_each_edge_range(line, m.k * m.dim, [&](std::int64_t row, std::int64_t begin, std::int64_t end) {
    for (std::int64_t edge = begin; edge < end; ++edge) {
      const auto column = static_cast<std::int64_t>(m.columns[edge]);
      Vector<A> sum = {};
      for (std::int64_t r = 0; r < m.k; ++r) {
        const std::int64_t e = m.expert_of(row, r);
        if (e < 0) continue;
        const T* source = m.source_row(e, column);
        const T* embedding = m.table + m.table_row(e, edge);
        const T* grad_y = a.grad_y + (row * m.k + r) * m.dim;
        std::int64_t d = 0;
        for (; d + kLanes<A> <= m.dim; d += kLanes<A>) {
          sum += load(grad_y + d) * relu(load(source + d) + load(embedding + d));
        }
        if (d < m.dim) {
          const std::int64_t n = m.dim - d;
          sum += load_first(grad_y + d, n) * relu(load_first(source + d, n) + load_first(embedding + d, n));
        }
      }
      a.grad_weight[edge] = horizontal_sum<A>(sum);
    }
  });
}

#define GMOE_INSTANTIATE(T, Index)                                                    \
  template void routed_edge_aggregate(const RoutedEdgeAggregate<T, Index>&);          \
  template void routed_edge_aggregate_grad(const RoutedEdgeAggregateGrad<T, Index>&); \
  template void routed_edge_aggregate_grad_weight(const RoutedEdgeAggregateGradWeight<T, Index>&);
GMOE_FOR_ROWS(GMOE_INSTANTIATE)
#undef GMOE_INSTANTIATE

}  // namespace gmoe::core::GMOE_ISA
