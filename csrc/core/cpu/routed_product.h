// out[out_row(s)] += gate[s] (B_e in[in_row(s)] + bias_e) over the slots s of every expert e: the product behind
// expert_linear, its gradient with respect to x (B = W^T) and, with a dot product for the sum, to the gate.
//
// Output rows are cut into blocks that stay in the second-level cache and have one owner, so there are no atomics. In a
// block the slots of an expert are a contiguous piece of the plan (it is sorted by output row); they are gathered into
// a buffer and multiplied tile by tile with the packed weights; gate, bias and sum happen while a tile is in registers.
// A row is summed over experts in ascending order and over depth in fixed blocks: the result depends neither on the
// number of threads nor on how rows fall into blocks. Experts with few rows skip the packing: one dot product per
// output. Floor: the same multiply-adds at the register tile's peak.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <utility>
#include <vector>

#include "core/cpu/few_rows.h"
#include "core/cpu/register_tile.h"
#include "core/parallel.h"

namespace gmoe::core::GMOE_ISA {

inline constexpr std::int64_t kDepthBlock = 256;  // a panel of 256 x 32 floats is 32 KiB, first-level cache
template <typename A>
inline constexpr int kGatherStride = kDepthBlock + 64 / sizeof(A);  // one cache line more: rows start in different sets
inline constexpr std::int64_t kGatherRows = 12 * kTileRows;         // 168 rows of 1 KiB: gathered rows stay in L2
inline constexpr std::int64_t kMinBlockRows = 512;                  // 512 rows of 256 floats are 0.5 MiB of L2
inline constexpr std::int64_t kMaxBlockRows = 2048;
inline constexpr std::int64_t kRowsPerExpert = 128;   // wished for in a block, so that tiles are mostly full
inline constexpr std::int64_t kMaxPacked = 16 << 20;  // elements of packed weights at a time; more go in passes
inline constexpr std::int64_t kFewRows = 6;           // up to here packing costs more than it saves

// Row of a slot: a table, or slot / divisor.
struct RowOf {
  const std::int64_t* table;
  std::int64_t divisor;
  std::int64_t operator()(std::int64_t slot) const {
    return table != nullptr ? table[slot] : divisor == 1 ? slot : slot / divisor;
  }
};

enum class WeightLayout { columns_by_depth, depth_by_columns };

template <typename T>
struct RoutedProduct {
  const T* in;  // [*, depth]
  RowOf in_row;
  RowOf out_row;
  const T* weight;  // [num_experts, columns, depth] or [num_experts, depth, columns]
  WeightLayout layout;
  const T* bias;                // [num_experts, columns] or null
  const T* gate;                // [num_slots] or null
  const std::int64_t* offsets;  // [num_experts + 1]
  const std::int64_t* order;    // slots by expert, ascending in out_row
  std::int64_t num_experts, depth, columns, out_rows;
  bool rows_are_slots;  // each output row has exactly one slot
  T* out;               // [out_rows, columns]; null: the dot form below
  // Dot form: slot_value[s] = (B_e in[in_row(s)] + bias_e) . against[out_row(s)]
  const T* against;            // [out_rows, columns]
  Accumulator<T>* slot_value;  // [num_slots], zeroed by the caller

  std::int64_t num_slots() const { return offsets[num_experts]; }
  bool is_packed(std::int64_t e) const { return offsets[e + 1] - offsets[e] > kFewRows; }
};

// ---- stage 1: weights into panels [depth][kTileColumns], widened and zero-padded

template <typename T, typename A>
void pack_panel(const RoutedProduct<T>& p, std::int64_t expert, std::int64_t column, A* panel) {
  const std::int64_t width = std::min<std::int64_t>(kTileColumns<A>, p.columns - column);
  const T* weight = p.weight + expert * p.columns * p.depth;
  if (width < kTileColumns<A>) std::fill(panel, panel + p.depth * kTileColumns<A>, A{0});
  if (p.layout == WeightLayout::depth_by_columns) {
    for (std::int64_t d = 0; d < p.depth; ++d) {
      const T* row = weight + d * p.columns + column;
      A* to = panel + d * kTileColumns<A>;
      for (std::int64_t c = 0; c < width; ++c) to[c] = widen(row[c]);
    }
    return;
  }
  // Squares of a register's lanes are transposed in registers; what is left over goes element by element.
  constexpr int kLanes = kRegisterLanes<A>;
  const std::int64_t square_columns = width - width % kLanes, square_depth = p.depth - p.depth % kLanes;
  for (std::int64_t c = 0; c < square_columns; c += kLanes) {
    const T* rows = weight + (column + c) * p.depth;
    for (std::int64_t d = 0; d < square_depth; d += kLanes) {
      Register<A> square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) square[i] = load_register(rows + i * p.depth + d);
      transpose<kLanes / 2, A>(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) at(panel + (d + i) * kTileColumns<A> + c) = square[i];
    }
  }
  for (std::int64_t c = 0; c < width; ++c) {
    const T* row = weight + (column + c) * p.depth;
    for (std::int64_t d = c < square_columns ? square_depth : 0; d < p.depth; ++d) {
      panel[d * kTileColumns<A> + c] = widen(row[d]);
    }
  }
}

// ---- stage 2: one tile of rows against one panel

template <typename A>
struct TileTask {
  const A* rows;   // gathered input, kGatherStride apart
  const A* panel;  // [depth][kTileColumns]
  std::int64_t depth;
  const A* bias;               // kTileColumns values, or null
  std::int64_t column, width;  // of the output; width <= kTileColumns
  bool add;                    // to what the output holds
  A* const* out;               // output row of each input row
  const A* gate;
  A* dot;  // [rows][kRegisterLanes], dot form only
};

template <int Rows, bool Dot, typename A>
void run_tile(const TileTask<A>& t) {
  constexpr int kLanes = kRegisterLanes<A>;
  Register<A> c[Rows][2];
  Register<A> start[2] = {};
  if (t.bias != nullptr) start[0] = at(t.bias), start[1] = at(t.bias + kLanes);
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) c[m][0] = start[0], c[m][1] = start[1];
  multiply_tile<Rows, kGatherStride<A>, 1, kTileColumns<A>>(t.rows, t.panel, t.depth, c);
  if (t.width == kTileColumns<A>) {
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
      A* out = t.out[m] + t.column;
      if constexpr (Dot) {
        at(t.dot + m * kLanes) += c[m][0] * at(out) + c[m][1] * at(out + kLanes);
      } else {
        Register<A> y0 = t.gate[m] * c[m][0], y1 = t.gate[m] * c[m][1];
        if (t.add) y0 += at(out), y1 += at(out + kLanes);
        at(out) = y0, at(out + kLanes) = y1;
      }
    }
    return;
  }
  for (int m = 0; m < Rows; ++m) {
    A value[kTileColumns<A>];
    at(value) = c[m][0], at(value + kLanes) = c[m][1];
    A* out = t.out[m] + t.column;
    for (std::int64_t j = 0; j < t.width; ++j) {
      if constexpr (Dot) {
        t.dot[m * kLanes] += value[j] * out[j];
      } else {
        out[j] = t.add ? out[j] + t.gate[m] * value[j] : t.gate[m] * value[j];
      }
    }
  }
}

template <bool Dot, typename A, int... Less>
void run_tile(int rows, const TileTask<A>& task, std::integer_sequence<int, Less...>) {
  using Function = void (*)(const TileTask<A>&);
  static constexpr Function kBySize[] = {run_tile<Less + 1, Dot, A>...};
  kBySize[rows - 1](task);
}

// ---- stage 3: the slots of one expert that fall into one block of output rows

template <typename A>
struct BlockBuffers {
  BlockBuffers(bool any_packed, std::int64_t local_size, std::int64_t depth, std::int64_t width)
      : gathered(any_packed ? kGatherRows * kGatherStride<A> : 0), local(local_size), row(depth), value(width) {}
  Workspace<A> gathered;    // packed experts: input rows
  Workspace<A> local;       // output rows of the block where the output's type is narrower than A
  Workspace<A> row, value;  // unpacked experts: one input row, one output row
  A gate[kGatherRows];
  A* out[kGatherRows];
  alignas(64) A dot[kGatherRows * kRegisterLanes<A>];
};

// What a pass over a range of columns works with.
template <typename A>
struct Pass {
  std::int64_t first_column, last_column;
  const A* packed;  // per packed expert: its panels of the pass
  const A* bias;    // [num_experts][round_up(columns)], or null
  std::int64_t bias_stride;
  const std::int64_t* packed_at;  // [num_experts]
};

template <typename T, typename A>
void multiply_gathered(const RoutedProduct<T>& p, const Pass<A>& pass, std::int64_t expert, std::int64_t column_begin,
                       std::int64_t column_end, std::int64_t rows, std::int64_t depth_begin, bool add,
                       BlockBuffers<A>& buffers) {
  const std::int64_t depth = std::min(kDepthBlock, p.depth - depth_begin);
  for (std::int64_t column = column_begin; column < column_end; column += kTileColumns<A>) {
    TileTask<A> task{};
    task.panel =
        pass.packed + pass.packed_at[expert] + (column - pass.first_column) * p.depth + depth_begin * kTileColumns<A>;
    task.depth = depth;
    task.bias = pass.bias != nullptr && depth_begin == 0 ? pass.bias + expert * pass.bias_stride + column : nullptr;
    task.column = column;
    task.width = std::min<std::int64_t>(kTileColumns<A>, column_end - column);
    task.add = add;
    for (std::int64_t m = 0; m < rows; m += kTileRows) {
      task.rows = buffers.gathered.data() + m * kGatherStride<A>;
      task.out = buffers.out + m;
      task.gate = buffers.gate + m;
      task.dot = buffers.dot + m * kRegisterLanes<A>;
      const int size = static_cast<int>(std::min<std::int64_t>(kTileRows, rows - m));
      const auto sizes = std::make_integer_sequence<int, kTileRows>{};
      p.out != nullptr ? run_tile<false>(size, task, sizes) : run_tile<true>(size, task, sizes);
    }
  }
}

// The output row of a slot as accumulators: the output itself, or the block's buffer where the types differ.
template <typename T, typename A>
A* output_row(const RoutedProduct<T>& p, const Pass<A>& pass, std::int64_t row, std::int64_t first_row,
              const BlockBuffers<A>& buffers) {
  if constexpr (std::is_same_v<T, A>) {
    return p.out != nullptr ? p.out + row * p.columns : const_cast<A*>(p.against) + row * p.columns;
  } else {
    return buffers.local.data() + (row - first_row) * (pass.last_column - pass.first_column) - pass.first_column;
  }
}

template <typename T, typename A>
void gather(const RoutedProduct<T>& p, const std::int64_t* slots, std::int64_t rows, std::int64_t depth_begin,
            A* gathered) {
  const std::int64_t depth = std::min(kDepthBlock, p.depth - depth_begin);
  for (std::int64_t m = 0; m < rows; ++m) {
    const T* from = p.in + p.in_row(slots[m]) * p.depth + depth_begin;
    A* to = gathered + m * kGatherStride<A>;
    for (std::int64_t d = 0; d < depth; ++d) to[d] = widen(from[d]);
  }
}

template <typename T, typename A>
void multiply_packed(const RoutedProduct<T>& p, const Pass<A>& pass, std::int64_t expert, const std::int64_t* slots,
                     std::int64_t n, std::int64_t first_row, std::int64_t column_begin, std::int64_t column_end,
                     BlockBuffers<A>& buffers) {
  constexpr int kLanes = kRegisterLanes<A>;
  for (std::int64_t begin = 0; begin < n; begin += kGatherRows) {
    const std::int64_t rows = std::min(kGatherRows, n - begin);
    for (std::int64_t m = 0; m < rows; ++m) {
      const std::int64_t slot = slots[begin + m];
      buffers.out[m] = output_row(p, pass, p.out_row(slot), first_row, buffers);
      buffers.gate[m] = p.gate != nullptr ? A{widen(p.gate[slot])} : A{1};
    }
    if (p.out == nullptr) std::fill(std::begin(buffers.dot), std::end(buffers.dot), A{0});
    for (std::int64_t d = 0; d < p.depth || d == 0; d += kDepthBlock) {
      gather(p, slots + begin, rows, d, buffers.gathered.data());
      // A slot's own row is stored, not added to, by its first block of depth, unless it is in the zeroed buffer.
      const bool add = !p.rows_are_slots || !std::is_same_v<T, A> || d > 0;
      multiply_gathered(p, pass, expert, column_begin, column_end, rows, d, add, buffers);
    }
    if (p.out != nullptr) continue;
    for (std::int64_t m = 0; m < rows; ++m) {
      for (int lane = 0; lane < kLanes; ++lane) p.slot_value[slots[begin + m]] += buffers.dot[m * kLanes + lane];
    }
  }
}

template <typename T, typename A>
void multiply_unpacked(const RoutedProduct<T>& p, const Pass<A>& pass, std::int64_t expert, const std::int64_t* slots,
                       std::int64_t n, std::int64_t first_row, std::int64_t column_begin, std::int64_t column_end,
                       BlockBuffers<A>& buffers) {
  const std::int64_t width = column_end - column_begin;
  const T* weight = p.weight + expert * p.columns * p.depth;
  const A* bias = pass.bias != nullptr ? pass.bias + expert * pass.bias_stride + column_begin : nullptr;
  A* row = buffers.row.data();
  A* value = buffers.value.data();
  for (std::int64_t m = 0; m < n; ++m) {
    const T* in = p.in + p.in_row(slots[m]) * p.depth;
    for (std::int64_t d = 0; d < p.depth; ++d) row[d] = widen(in[d]);
    if (p.layout == WeightLayout::columns_by_depth) {
      dot_columns(weight + column_begin * p.depth, row, p.depth, width, bias, value);
    } else {
      add_weight_rows(weight + column_begin, p.columns, row, p.depth, width, bias, value);
    }
    A* out = output_row(p, pass, p.out_row(slots[m]), first_row, buffers) + column_begin;
    const A gate = p.gate != nullptr ? A{widen(p.gate[slots[m]])} : A{1};
    if (p.out == nullptr) {
      A dot = 0;
      for (std::int64_t c = 0; c < width; ++c) dot += value[c] * out[c];
      p.slot_value[slots[m]] += dot;
    } else if (p.rows_are_slots) {
      for (std::int64_t c = 0; c < width; ++c) out[c] = gate * value[c];
    } else {
      for (std::int64_t c = 0; c < width; ++c) out[c] += gate * value[c];
    }
  }
}

template <typename T, typename A>
void open_block(const RoutedProduct<T>& p, const Pass<A>& pass, std::int64_t first_row, std::int64_t last_row,
                std::int64_t column_begin, std::int64_t column_end, BlockBuffers<A>& buffers) {
  if (p.out != nullptr && p.rows_are_slots && std::is_same_v<T, A>) return;
  if (p.out == nullptr && std::is_same_v<T, A>) return;
  for (std::int64_t i = first_row; i < last_row; ++i) {
    A* row = output_row(p, pass, i, first_row, buffers);
    for (std::int64_t c = column_begin; c < column_end; ++c) {
      row[c] = p.out != nullptr ? A{0} : A{widen(p.against[i * p.columns + c])};
    }
  }
}

template <typename T, typename A>
void close_block(const RoutedProduct<T>& p, const Pass<A>& pass, std::int64_t first_row, std::int64_t last_row,
                 std::int64_t column_begin, std::int64_t column_end, BlockBuffers<A>& buffers) {
  if (p.out == nullptr || std::is_same_v<T, A>) return;
  for (std::int64_t i = first_row; i < last_row; ++i) {
    const A* row = output_row(p, pass, i, first_row, buffers);
    for (std::int64_t c = column_begin; c < column_end; ++c) p.out[i * p.columns + c] = narrow<T>(row[c]);
  }
}

template <typename T, typename A>
void run_block(const RoutedProduct<T>& p, const Pass<A>& pass, std::int64_t first_row, std::int64_t last_row,
               std::int64_t column_begin, std::int64_t column_end, BlockBuffers<A>& buffers) {
  open_block(p, pass, first_row, last_row, column_begin, column_end, buffers);
  const auto before = [&](std::int64_t slot, std::int64_t row) { return p.out_row(slot) < row; };
  for (std::int64_t e = 0; e < p.num_experts; ++e) {
    const std::int64_t* end = p.order + p.offsets[e + 1];
    const std::int64_t* first = std::lower_bound(p.order + p.offsets[e], end, first_row, before);
    const std::int64_t* last = std::lower_bound(first, end, last_row, before);
    if (first == last) continue;
    const auto multiply = p.is_packed(e) ? multiply_packed<T, A> : multiply_unpacked<T, A>;
    multiply(p, pass, e, first, last - first, first_row, column_begin, column_end, buffers);
  }
  close_block(p, pass, first_row, last_row, column_begin, column_end, buffers);
}

// ---- the whole product

template <typename T, typename A>
void pack_pass(const RoutedProduct<T>& p, const std::vector<std::int64_t>& packed_experts, std::int64_t first_column,
               std::int64_t last_column, A* packed) {
  const std::int64_t panels = round_up(last_column - first_column, kTileColumns<A>) / kTileColumns<A>;
  const std::int64_t panel_size = p.depth * kTileColumns<A>;
  const auto num_packed = static_cast<std::int64_t>(packed_experts.size());
  parallel_for(num_packed * panels, grain_rows(panel_size), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      pack_panel(p, packed_experts[i / panels], first_column + i % panels * kTileColumns<A>, packed + i * panel_size);
    }
  });
}

// Depends on the sizes alone, as does everything that could change a bit of the result.
template <typename T>
std::int64_t block_rows(const RoutedProduct<T>& p) {
  const std::int64_t wished = kRowsPerExpert * p.num_experts * p.out_rows / std::max<std::int64_t>(1, p.num_slots());
  return std::clamp(wished, kMinBlockRows, kMaxBlockRows);
}

template <typename T>
void run_routed_product(const RoutedProduct<T>& p) {
  using A = Accumulator<T>;
  std::vector<std::int64_t> packed_experts, packed_at(static_cast<std::size_t>(p.num_experts), 0);
  for (std::int64_t e = 0; e < p.num_experts; ++e) {
    if (p.is_packed(e)) packed_experts.push_back(e);
  }
  const auto num_packed = static_cast<std::int64_t>(packed_experts.size());
  const std::int64_t padded_columns = round_up(p.columns, kTileColumns<A>);
  const std::int64_t pass_columns =
      std::clamp(kMaxPacked / std::max<std::int64_t>(1, num_packed * p.depth) / kTileColumns<A> * kTileColumns<A>,
                 std::int64_t{kTileColumns<A>}, std::max<std::int64_t>(padded_columns, kTileColumns<A>));
  Workspace<A> packed(num_packed * p.depth * pass_columns);
  std::vector<A> bias(p.bias != nullptr ? static_cast<std::size_t>(p.num_experts * padded_columns) : 0);
  for (std::int64_t e = 0; p.bias != nullptr && e < p.num_experts; ++e) {
    for (std::int64_t c = 0; c < p.columns; ++c) bias[e * padded_columns + c] = widen(p.bias[e * p.columns + c]);
  }
  const std::int64_t rows = block_rows(p);
  const std::int64_t num_blocks = (p.out_rows + rows - 1) / rows;
  for (std::int64_t first = 0; first < p.columns; first += pass_columns) {
    const std::int64_t last = std::min(p.columns, first + pass_columns);
    const std::int64_t panels = round_up(last - first, kTileColumns<A>) / kTileColumns<A>;
    for (std::int64_t i = 0; i < num_packed; ++i) {
      packed_at[packed_experts[i]] = i * panels * p.depth * kTileColumns<A>;
    }
    pack_pass(p, packed_experts, first, last, packed.data());
    const Pass<A> pass{first,           last, packed.data(), p.bias != nullptr ? bias.data() : nullptr, padded_columns,
                       packed_at.data()};
    // Few blocks: cut the columns too, which repeats the gathering, so only as far as there are threads to feed. The
    // dot form sums over columns and stays whole.
    const std::int64_t wished =
        p.out == nullptr ? 1 : (2 * num_threads() + num_blocks - 1) / std::max<std::int64_t>(1, num_blocks);
    const std::int64_t cuts = num_threads() == 1 ? 1 : std::clamp<std::int64_t>(wished, 1, panels);
    const std::int64_t cut = round_up((panels + cuts - 1) / cuts * kTileColumns<A>, kTileColumns<A>);
    const std::int64_t work =
        p.num_slots() * p.depth * (last - first) / 16 / std::max<std::int64_t>(1, num_blocks * cuts);
    parallel_for(num_blocks * cuts, grain_rows(work), [&](std::int64_t begin, std::int64_t end) {
      BlockBuffers<A> buffers(num_packed > 0, std::is_same_v<T, A> ? 0 : rows * (last - first), p.depth, last - first);
      for (std::int64_t task = begin; task < end; ++task) {
        const std::int64_t row = task / cuts * rows;
        const std::int64_t column = first + task % cuts * cut;
        if (column >= last) continue;
        run_block(p, pass, row, std::min(p.out_rows, row + rows), column, std::min(last, column + cut), buffers);
      }
    });
  }
}

}  // namespace gmoe::core::GMOE_ISA
