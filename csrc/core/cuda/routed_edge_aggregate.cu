// Messages are made in registers and added where they are made: nothing of size [M, D] exists. Every sum has an owner:
// y (destination, slot), grad_x (source, expert), grad_table (edge type, expert). The owner of a gradient's row walks
// its own edges, for the table in the order of their types: rows of dy are read twice when both gradients are wanted,
// but no pass needs a table for each of its warps, and one bond type that most edges have is divided like any hub.
// Floor: the gathered rows at the speed of the cache they are in.
#include "core/routed_edge_aggregate.h"

#include "core/cuda/edge_messages.cuh"
#include "core/cuda/edge_type_rows.cuh"
#include "core/types.h"

namespace gmoe::core::cuda {
namespace {

// What dy gives, through the messages that were positive, to a row of x or of the table. Rows are sources, or edge
// types with `by_type`; the list is the expert, or none where x is shared.
template <typename T, typename Index>
struct GradSum {
  using Value = T;
  using A = Accumulator<T>;
  static constexpr int kStreams = 3;
  static constexpr bool kMixes = false;
  RowSums<T> to;
  Messages<T, Index> messages;
  const T* grad_y;
  const std::int64_t *order, *source_of;  // edges by type and the source of each; null where rows are sources
  bool any_expert;
  std::int64_t inner = 1, slots;

  __device__ const T* stream(int n) const { return n == 0 ? grad_y : n == 1 ? messages.m.x : messages.m.table; }
  __device__ bool stage(std::int64_t row, std::int64_t list, std::int64_t place, std::int64_t slot,
                        Staged<A>& out) const {
    const std::int64_t edge = order == nullptr ? place : order[place];
    if (!messages.check(edge, messages.m.num_destinations)) return false;
    const std::int64_t destination = messages.m.columns[edge], e = messages.expert(destination, slot);
    if (e < 0 || (e != list && !any_expert)) return false;
    out.at[0] = (destination * messages.m.k + slot) * messages.m.dim;
    out.at[1] = messages.source_at(e, order == nullptr ? row : source_of[edge]);
    out.at[2] = messages.table_at(e, edge);
    out.weight = messages.weight(edge);
    return true;
  }
  static __device__ A contribution(const A (&value)[kStreams], A weight) {
    return relu_grad(value[1] + value[2], weight * value[0]);
  }
};

template <typename T, typename Index>
RowSegments rows_of(const EdgeMessages<T, Index>& m, std::int64_t num_rows, BadIndex* bad) {
  return {m.offsets, num_rows, m.num_edges, kSegmentItems, bad, 2 * m.num_edges};
}

template <typename T, typename Index>
RowSums<T> sums_of_y(const EdgeMessages<T, Index>& m, T* y, BadIndex* bad) {
  return {rows_of(m, m.num_destinations, bad), m.k, m.dim, m.k, 1, y, nullptr};
}

template <typename T, typename Index>
RowSums<T> sums_of_grad_x(const EdgeMessages<T, Index>& m, T* grad_x, BadIndex* bad) {
  return {rows_of(m, m.num_sources, bad), m.shared ? 1 : m.num_experts, m.dim, 1, m.num_sources, grad_x, nullptr};
}

// Few types have most of the edges: longer segments, so that a row has at most ~1000 pieces to add up.
template <typename T, typename Index>
RowSums<T> sums_of_grad_table(const EdgeMessages<T, Index>& m, const std::int64_t* offsets, T* grad_table) {
  constexpr std::int64_t kMaxPieces = 1024;
  const std::int64_t least = divide_up(m.num_edges, kMaxPieces);
  return {{offsets, m.num_types, m.num_edges, least > kSegmentItems ? least : kSegmentItems},
          m.num_experts,
          m.dim,
          1,
          m.num_types,
          grad_table,
          nullptr};
}

// Both gradients use the same pieces, one after the other.
template <typename T, typename Index>
struct GradWorkspace {
  Workspace all;
  EdgeTypeRows types;
  Accumulator<T>* piece;

  GradWorkspace(const EdgeMessages<T, Index>& m, void* at) : all(at), types(m.num_edges, m.num_types, all) {
    const std::int64_t x = sums_of_grad_x<T>(m, nullptr, nullptr).piece_bytes();
    const std::int64_t table = sums_of_grad_table<T>(m, nullptr, nullptr).piece_bytes();
    piece = reinterpret_cast<Accumulator<T>*>(all.take<unsigned char>(x > table ? x : table));
  }
};

// Dot products of 32 edges, a warp: lane l gets that of edge l.
template <int V, typename T, typename Index>
__global__ void __launch_bounds__(kSumWarps* kWarp)
    routed_edge_aggregate_grad_weight_kernel(Messages<T, Index> messages, const T* grad_y,
                                             Accumulator<T>* grad_weight) {
  using A = Accumulator<T>;
  GMOE_SHARED_ARRAY(Staged<A>, all_staged, kSumWarps * kWarp);
  Staged<A>* staged = all_staged + warp_id() * kWarp;
  const auto& m = messages.m;
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * kSumWarps + warp_id()) * kWarp;
  if (first >= m.num_edges) return;
  const std::int64_t edge = first + lane_id();
  check_offsets(m.offsets, m.num_destinations, m.num_edges, edge, divide_up(m.num_edges, kWarp) * kWarp,
                2 * m.num_edges, messages.bad);
  std::int64_t row = last_at_or_before(m.num_destinations, first, [&](std::int64_t r) { return m.offsets[r]; });
  bool valid = false;
  if (edge < m.num_edges) {
    while (row + 1 < m.num_destinations && m.offsets[row + 1] <= edge) ++row;
    valid = messages.check(edge, m.num_sources);
  }
  A dot[kWarp] = {};
  for (std::int64_t slot = 0; slot < m.k; ++slot) {
    const std::int64_t e = valid ? messages.expert(row, slot) : -1;
    Staged<A>& own = staged[lane_id()];
    own.sum = e < 0 ? 0 : 1;
    if (e >= 0) {
      own.at[0] = messages.source_at(e, m.columns[edge]);
      own.at[1] = messages.table_at(e, edge);
      own.at[2] = (row * m.k + slot) * m.dim;
    }
    __syncwarp();
    for (std::int64_t from = 0; from < m.dim; from += kWarp * V) {
      const std::int64_t d = from + lane_id() * V;
      if (d >= m.dim) continue;
#pragma unroll
      for (int i = 0; i < kWarp; ++i) {
        if (staged[i].sum == 0) continue;
        const Pack<T, V> x = load<V>(m.x + staged[i].at[0] + d), embedding = load<V>(m.table + staged[i].at[1] + d);
        const Pack<T, V> grad = load<V>(grad_y + staged[i].at[2] + d);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          dot[i] += widened(grad.value[v]) * relu(widened(x.value[v]) + widened(embedding.value[v]));
        }
      }
    }
    __syncwarp();
  }
  const A sum = warp_sum_32(dot);
  if (edge < m.num_edges) grad_weight[edge] = sum;
}

constexpr SumNames kGradNames = {"routed_edge_aggregate_grad", "routed_edge_aggregate_grad/divided_rows"};

}  // namespace

template <typename T, typename Index>
std::int64_t routed_edge_aggregate_workspace(const EdgeMessages<T, Index>& m) {
  return sums_of_y<T>(m, nullptr, nullptr).piece_bytes();
}

template <typename T, typename Index>
void routed_edge_aggregate(const RoutedEdgeAggregate<T, Index>& a, const Call& call) {
  const auto& m = a.messages;
  MessageSum<T, Index> s{sums_of_y(m, a.y, call.bad_index), {m, call.bad_index}};
  s.to.piece = static_cast<Accumulator<T>*>(call.workspace);
  sum_edges({"routed_edge_aggregate", "routed_edge_aggregate/divided_rows"}, s, call, m.x, m.table);
}

template <typename T, typename Index>
std::int64_t routed_edge_aggregate_grad_workspace(const EdgeMessages<T, Index>& m) {
  return GradWorkspace<T, Index>(m, nullptr).all.bytes();
}

template <typename T, typename Index>
void routed_edge_aggregate_grad(const RoutedEdgeAggregateGrad<T, Index>& a, const Call& call) {
  const auto& m = a.messages;
  const GradWorkspace<T, Index> workspace(m, call.workspace);
  GradSum<T, Index> s{{}, {m, call.bad_index}, a.grad_y, nullptr, nullptr, m.shared, 1, m.k};
  if (a.grad_x != nullptr) {
    s.to = sums_of_grad_x(m, a.grad_x, call.bad_index);
    s.to.piece = workspace.piece;
    sum_edges(kGradNames, s, call, m.x, m.table, a.grad_y);
  }
  if (a.grad_table == nullptr || m.num_types == 0) return;
  make_edge_type_rows(workspace.types, m.edge_type, m.offsets, m.num_sources, call);
  s.to = sums_of_grad_table(m, workspace.types.edges.start, a.grad_table);
  s.to.piece = workspace.piece;
  s.order = workspace.types.edges.order;
  s.source_of = workspace.types.row;
  s.any_expert = false;
  sum_edges(kGradNames, s, call, m.x, m.table, a.grad_y);
}

template <typename T, typename Index>
void routed_edge_aggregate_grad_weight(const RoutedEdgeAggregateGradWeight<T, Index>& a, const Call& call) {
  const auto& m = a.messages;
  if (m.num_edges == 0) return;
  const auto go = [&](auto kernel) {
    launch("routed_edge_aggregate_grad_weight", kernel, divide_up(m.num_edges, kSumWarps * kWarp), kSumWarps * kWarp, 0,
           call.stream, Messages<T, Index>{m, call.bad_index}, a.grad_y, a.grad_weight);
  };
  if (fits_packs<kPack<T>>(m.dim, m.x, m.table, a.grad_y)) {
    return go(routed_edge_aggregate_grad_weight_kernel<kPack<T>, T, Index>);
  }
  go(routed_edge_aggregate_grad_weight_kernel<1, T, Index>);
}

#define GMOE_INSTANTIATE(T, Index)                                                                 \
  template std::int64_t routed_edge_aggregate_workspace(const EdgeMessages<T, Index>&);            \
  template void routed_edge_aggregate(const RoutedEdgeAggregate<T, Index>&, const Call&);          \
  template std::int64_t routed_edge_aggregate_grad_workspace(const EdgeMessages<T, Index>&);       \
  template void routed_edge_aggregate_grad(const RoutedEdgeAggregateGrad<T, Index>&, const Call&); \
  template void routed_edge_aggregate_grad_weight(const RoutedEdgeAggregateGradWeight<T, Index>&, const Call&);
GMOE_FOR_ROWS(GMOE_INSTANTIATE)
#undef GMOE_INSTANTIATE

}  // namespace gmoe::core::cuda
