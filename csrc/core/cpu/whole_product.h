// A routed product cut into passes over columns, blocks of rows and tasks: by register tiles (routed_product.h), or by
// the non-zero values of rows that are mostly zeros (sparse_product.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "core/cpu/pack_panel.h"
#include "core/cpu/routed_product.h"
#include "core/cpu/sparse_product.h"
#include "core/parallel.h"

namespace gmoe::core::GMOE_ISA {

// Panels lie one after another, or row by row beside each other where `together` > 1 of them are a group.
template <typename T, typename A>
void pack_pass(const RoutedProduct<T>& p, const std::vector<std::int64_t>& packed_experts, std::int64_t first_column,
               std::int64_t last_column, std::int64_t together, A* packed) {
  const std::int64_t panels = round_up(last_column - first_column, kTileColumns<A>) / kTileColumns<A>;
  const std::int64_t panel_size = p.depth * kTileColumns<A>;
  const auto num_packed = static_cast<std::int64_t>(packed_experts.size());
  parallel_for(num_packed * panels, grain_rows(panel_size), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t panel = i % panels, in_group = panel % together, group = panel - in_group;
      A* to = packed + (i - in_group) * panel_size + in_group * kTileColumns<A>;
      pack_panel<T>({p.weight, p.layout, p.depth, p.columns}, packed_experts[i / panels],
                    first_column + panel * kTileColumns<A>, to, std::min(together, panels - group) * kTileColumns<A>);
    }
  });
}

// The cut into blocks and columns follows sizes and threads; it changes no bit of the result.
template <typename T>
std::int64_t block_rows(const RoutedProduct<T>& p) {
  const std::int64_t wished = kRowsPerExpert * p.num_experts * p.out_rows / std::max<std::int64_t>(1, p.num_slots());
  const std::int64_t rows = std::clamp(wished, kMinBlockRows, kMaxBlockRows);
  const std::int64_t tasks = num_threads() == 1 ? 1 : 2 * num_threads();
  return std::min(rows, std::max(kMinRowsPerTask, (p.out_rows + tasks - 1) / tasks));
}

// Few blocks: cut the columns too, which repeats the gathering, so only as far as there are threads to feed. A dot
// product sums over columns and stays whole.
template <typename T>
std::int64_t column_cuts(const RoutedProduct<T>& p, std::int64_t num_blocks, std::int64_t panels) {
  if (p.against != nullptr || num_threads() == 1 || num_blocks == 0) return 1;
  return std::clamp<std::int64_t>((num_threads() + num_blocks - 1) / num_blocks, 1, panels);
}

// run(block, buffers) on every block of `rows` rows, with buffers = make() for each thread's share of them.
template <typename T, typename A, typename Make, typename Run>
void for_each_block(const RoutedProduct<T>& p, const Pass<A>& pass, std::int64_t rows, std::int64_t together,
                    const Make& make, const Run& run) {
  const std::int64_t width = pass.last_column - pass.first_column;
  const std::int64_t panels = round_up(width, kTileColumns<A>) / kTileColumns<A>;
  const std::int64_t num_blocks = (p.out_rows + rows - 1) / rows;
  const std::int64_t cuts = column_cuts(p, num_blocks, (panels + together - 1) / together);
  const std::int64_t cut = round_up((panels + cuts - 1) / cuts, together) * kTileColumns<A>;
  const std::int64_t tasks = num_blocks * cuts;
  const std::int64_t work = p.num_slots() * p.depth * width / 16 / std::max<std::int64_t>(1, tasks);
  parallel_for(tasks, grain_rows(work), [&](std::int64_t begin, std::int64_t end) {
    auto buffers = make();
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t row = task / cuts * rows, column = pass.first_column + task % cuts * cut;
      if (column >= pass.last_column) continue;
      run(Block{row, std::min(p.out_rows, row + rows), column, std::min(pass.last_column, column + cut)}, buffers);
    }
  });
}

// With a density, the input rows are mostly zeros.
template <typename T, typename A>
void run_pass(const RoutedProduct<T>& p, const Pass<A>& pass, bool any_packed, double density) {
  if (density > 0) {
    const std::int64_t rows = sparse_block_rows(p);
    const std::vector<A> kept = kept_features(p);
    const auto make = [&] { return SparseBuffers<T, A>(p, rows, density, kept); };
    for_each_block(p, pass, rows, kSegmentPanels, make,
                   [&](const Block& block, auto& buffers) { run_sparse_block(p, pass, block, buffers); });
    return;
  }
  const std::int64_t rows = block_rows(p);
  const std::int64_t wide = std::is_same_v<T, A> ? 0 : rows * (pass.last_column - pass.first_column);
  const auto make = [&] { return BlockBuffers<A>(any_packed, rows, wide, p.depth, p.columns); };
  for_each_block(p, pass, rows, 1, make,
                 [&](const Block& block, auto& buffers) { run_block(p, pass, block, buffers); });
}

template <typename T, typename A = Accumulator<T>>
std::vector<A> padded_bias(const RoutedProduct<T>& p, std::int64_t stride) {
  if (p.bias == nullptr) return {};
  std::vector<A> bias(static_cast<std::size_t>(p.num_experts * stride), A{0});
  for (std::int64_t e = 0; e < p.num_experts; ++e) {
    for (std::int64_t c = 0; c < p.columns; ++c) bias[e * stride + c] = widen(p.bias[e * p.columns + c]);
  }
  return bias;
}

template <typename T>
void run_routed_product(const RoutedProduct<T>& p) {
  using A = Accumulator<T>;
  const double density = sparse_density(p);
  std::vector<std::int64_t> packed_experts, packed_at(static_cast<std::size_t>(p.num_experts), 0);
  for (std::int64_t e = 0; e < p.num_experts; ++e) {
    if (p.is_packed(e) || (density > 0 && p.offsets[e + 1] > p.offsets[e])) packed_experts.push_back(e);
  }
  const auto num_packed = static_cast<std::int64_t>(packed_experts.size());
  // A tile reads whole registers of bias; without tiles the array as it is will do.
  const bool as_is = num_packed == 0 && std::is_same_v<T, A>;
  const std::int64_t bias_stride = as_is ? p.columns : round_up(p.columns, kTileColumns<A>);
  const std::vector<A> padded = as_is ? std::vector<A>{} : padded_bias(p, bias_stride);
  const A* bias = p.bias == nullptr ? nullptr : as_is ? reinterpret_cast<const A*>(p.bias) : padded.data();
  const std::int64_t panels_at_once = kMaxPacked / kTileColumns<A> / std::max<std::int64_t>(1, num_packed * p.depth);
  const std::int64_t pass_columns = std::clamp<std::int64_t>(panels_at_once * kTileColumns<A>, kTileColumns<A>,
                                                             std::max<std::int64_t>(bias_stride, kTileColumns<A>));
  const std::int64_t together = density > 0 ? kSegmentPanels : 1;
  Workspace<A> packed(num_packed * p.depth * pass_columns);
  for (std::int64_t first = 0; first < p.columns; first += pass_columns) {
    const std::int64_t last = std::min(p.columns, first + pass_columns);
    const std::int64_t panels = round_up(last - first, kTileColumns<A>) / kTileColumns<A>;
    for (std::int64_t i = 0; i < num_packed; ++i) {
      packed_at[packed_experts[i]] = i * panels * p.depth * kTileColumns<A>;
    }
    pack_pass(p, packed_experts, first, last, together, packed.data());
    const Pass<A> pass{first, last, packed.data(), bias, bias_stride, packed_at.data()};
    run_pass(p, pass, num_packed > 0, density);
  }
}

}  // namespace gmoe::core::GMOE_ISA
