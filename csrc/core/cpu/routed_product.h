// For the slots s of every expert e, with z_s = B_e in[in_row(s)] + bias_e,
//   out[out_row(s)] += gate[s] z_s                  the product behind expert_linear and its gradient for x (B = W^T),
//   slot_value[s]   += z_s . against[out_row(s)] + in[in_row(s)] . in_against_e    the gradient for the gate.
//
// Output rows are cut into blocks that stay in the second-level cache and have one owner, so there are no atomics. In a
// block the slots of an expert are a contiguous piece of the plan (it is sorted by output row). A tile's worth of rows
// is gathered into the first-level cache and multiplied with the expert's packed weights, which stream from the second
// level; gate, bias and sum happen while a tile is in registers. Rows that come next are fetched meanwhile.
// A row is summed over experts in ascending order and over depth in fixed blocks: the result depends neither on the
// number of threads nor on how rows fall into blocks. Experts with few rows skip the packing: one dot product per
// output. Floor: the same multiply-adds at the register tile's peak.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/cpu/few_rows.h"
#include "core/cpu/pack_panel.h"
#include "core/cpu/register_tile.h"
#include "core/cpu/tile.h"

namespace gmoe::core::GMOE_ISA {

inline constexpr std::int64_t kDepthBlock = 256;  // a panel of 256 x 32 floats is 32 KiB, first-level cache
template <typename A>
inline constexpr int kGatherStride = kDepthBlock + 64 / sizeof(A);  // one cache line more: rows start in different sets
inline constexpr std::int64_t kResidentWeights = 1 << 18;           // elements of an expert that L2 holds beside rows
inline constexpr std::int64_t kGatherRows = 18 * kTileRows;         // rows to share a read of weights that are larger
inline constexpr std::int64_t kMinBlockRows = 512;                  // 512 rows of 256 floats are 0.5 MiB of L2
inline constexpr std::int64_t kMaxBlockRows = 2048;
inline constexpr std::int64_t kMinRowsPerTask = 64;   // however many threads wait
inline constexpr std::int64_t kRowsPerExpert = 128;   // wished for in a block, so that tiles are mostly full
inline constexpr std::int64_t kMaxPacked = 16 << 20;  // elements of packed weights at a time; more go in passes
inline constexpr std::int64_t kFewRows = 8;           // up to here packing costs more than it saves

// Row of a slot: a table, or slot / divisor.
struct RowOf {
  const std::int64_t* table;
  std::int64_t divisor;
  std::int64_t operator()(std::int64_t slot) const {
    return table != nullptr ? table[slot] : divisor == 1 ? slot : slot / divisor;
  }
};

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
  T* out;                      // [out_rows, columns], or null
  const T* against;            // [out_rows, columns], or null
  const T* in_against;         // [num_experts, depth], or null
  Accumulator<T>* slot_value;  // [num_slots], zeroed by the caller; null if there is nothing to be dotted with

  std::int64_t num_slots() const { return offsets[num_experts]; }
  bool is_packed(std::int64_t e) const { return offsets[e + 1] - offsets[e] > kFewRows; }
  // Blocks of depth of about equal size, whole cache lines.
  std::int64_t depth_block() const {
    const std::int64_t blocks = std::max<std::int64_t>(1, (depth + kDepthBlock - 1) / kDepthBlock);
    return round_up((depth + blocks - 1) / blocks, 16);
  }
};

// ---- stage 1: one tile of rows against one panel

template <typename A>
struct TileTask {
  const A* rows;   // gathered input, kGatherStride apart
  const A* panel;  // [depth][kTileColumns]
  std::int64_t depth;
  const A* bias;               // kTileColumns values, or null
  std::int64_t column, width;  // of the output; width <= kTileColumns
  A* const* out;               // output row of each input row
  const A* const* base;        // what it is added to: the output row itself, or zeros
  const A* gate;
  const A* const* against;
  A* dot;  // [rows][kRegisterLanes]
};

template <int Rows, bool Sum, bool Dot, typename A>
void finish_narrow_tile(const TileTask<A>& t, const Register<A> (&c)[Rows][2]) {
  for (int m = 0; m < Rows; ++m) {
    A value[kTileColumns<A>];
    at(value) = c[m][0], at(value + kRegisterLanes<A>) = c[m][1];
    for (std::int64_t j = 0; j < t.width; ++j) {
      if constexpr (Dot) t.dot[m * kRegisterLanes<A>] += value[j] * t.against[m][t.column + j];
      if constexpr (Sum) {
        t.out[m][t.column + j] = t.base[m][t.column + j] + t.gate[m] * value[j];
      }
    }
  }
}

template <int Rows, bool Sum, bool Dot, typename A>
void run_tile(const TileTask<A>& t) {
  constexpr int kLanes = kRegisterLanes<A>;
  Register<A> c[Rows][2];
  Register<A> start[2] = {};
  if (t.bias != nullptr) start[0] = at(t.bias), start[1] = at(t.bias + kLanes);
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) c[m][0] = start[0], c[m][1] = start[1];
  for (int m = 0; Sum && m < Rows; ++m) {
    __builtin_prefetch(t.base[m] + t.column);
    __builtin_prefetch(t.base[m] + t.column + kLanes);
  }
  multiply_tile<Rows, kGatherStride<A>, 1, kTileColumns<A>>(t.rows, t.panel, t.depth, c);
  if (t.width < kTileColumns<A>) {
    finish_narrow_tile<Rows, Sum, Dot>(t, c);
    return;
  }
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) {
    if constexpr (Dot) {
      const A* against = t.against[m] + t.column;
      at(t.dot + m * kLanes) += c[m][0] * at(against) + c[m][1] * at(against + kLanes);
    }
    if constexpr (Sum) {
      A* out = t.out[m] + t.column;
      const A* base = t.base[m] + t.column;
      const Register<A> y0 = t.gate[m] * c[m][0] + at(base), y1 = t.gate[m] * c[m][1] + at(base + kLanes);
      at(out) = y0, at(out + kLanes) = y1;
    }
  }
}

template <bool Sum, bool Dot, typename A, int... Less>
void run_tile(int rows, const TileTask<A>& task, std::integer_sequence<int, Less...>) {
  using Function = void (*)(const TileTask<A>&);
  static constexpr Function kBySize[] = {run_tile<Less + 1, Sum, Dot, A>...};
  kBySize[rows - 1](task);
}

// ---- stage 2: the slots of one expert that fall into one block of output rows

template <typename A>
struct BlockBuffers {
  BlockBuffers(bool any_packed, std::int64_t rows, std::int64_t wide_size, std::int64_t depth, std::int64_t columns)
      : gathered(any_packed ? kGatherRows * kGatherStride<A> : 0),
        wide_out(wide_size),
        wide_against(wide_size),
        row(depth),
        value(columns),
        zeros(static_cast<std::size_t>(columns), A{0}),
        begun(static_cast<std::size_t>(rows), 0) {}
  Workspace<A> gathered;                // packed experts: input rows
  Workspace<A> wide_out, wide_against;  // the block's rows where T is narrower than A
  Workspace<A> row, value;              // unpacked experts: one input row, one z
  std::vector<A> zeros;                 // one output row
  std::vector<char> begun;              // per row of the block: whether it holds a sum
  A gate[kGatherRows];
  A* out[kGatherRows];
  const A* base[kGatherRows];
  const A* against[kGatherRows];
  alignas(64) A dot[kGatherRows * kRegisterLanes<A>];
};

// What a pass over a range of columns works with.
template <typename A>
struct Pass {
  std::int64_t first_column, last_column;
  const A* packed;  // per packed expert: its panels of the pass
  const A* bias;    // [num_experts][bias_stride], or null
  std::int64_t bias_stride;
  const std::int64_t* packed_at;  // [num_experts]
};

// The rows and columns of the output that one task owns.
struct Block {
  std::int64_t first_row, last_row, first_column, last_column;
};

// A row of the block as accumulators: the array itself, or the wide copy of the block. Indexed by the array's columns.
template <typename T, typename A>
A* wide_row(const RoutedProduct<T>& p, const Block& block, T* array, const Workspace<A>& wide, std::int64_t row) {
  if constexpr (std::is_same_v<T, A>) {
    return array == nullptr ? nullptr : array + row * p.columns;
  } else {
    return wide.data() + (row - block.first_row) * (block.last_column - block.first_column) - block.first_column;
  }
}
template <typename T, typename A>
A* out_row(const RoutedProduct<T>& p, const Block& block, const BlockBuffers<A>& buffers, std::int64_t row) {
  return wide_row(p, block, p.out, buffers.wide_out, row);
}
template <typename T, typename A>
const A* against_row(const RoutedProduct<T>& p, const Block& block, const BlockBuffers<A>& buffers, std::int64_t row) {
  return wide_row(p, block, const_cast<T*>(p.against), buffers.wide_against, row);
}

// What the next slot of `row` is added to. A row's first slot finds zeros, so no output is cleared beforehand.
template <typename A>
const A* base_row(const Block& block, BlockBuffers<A>& buffers, const A* out, std::int64_t row) {
  return std::exchange(buffers.begun[row - block.first_row], char{1}) ? out : buffers.zeros.data();
}

template <typename T, typename A>
void gather(const RoutedProduct<T>& p, const std::int64_t* slots, std::int64_t rows, std::int64_t depth_begin,
            A* gathered) {
  const std::int64_t depth = std::min(p.depth_block(), p.depth - depth_begin);
  for (std::int64_t m = 0; m < rows; ++m) {
    const T* from = p.in + p.in_row(slots[m]) * p.depth + depth_begin;
    widen_row(from, depth, gathered + m * kGatherStride<A>);
  }
}

// Input rows that are wanted soon, fetched little by little.
template <typename T>
class RowsAhead {
 public:
  RowsAhead(const RoutedProduct<T>& p, const std::int64_t* slots, std::int64_t n) : p_(p), slots_(slots), n_(n) {}
  // Fetches the part-th of `parts` shares, blocks of depth from `depth_begin` on.
  void fetch(std::int64_t part, std::int64_t parts, std::int64_t depth_begin) const {
    const std::int64_t depth = std::min(p_.depth_block(), p_.depth - depth_begin);
    for (std::int64_t m = part * n_ / parts; m < (part + 1) * n_ / parts; ++m) {
      prefetch_row(p_.in + p_.in_row(slots_[m]) * p_.depth + depth_begin, depth);
    }
  }

 private:
  const RoutedProduct<T>& p_;
  const std::int64_t* slots_;
  std::int64_t n_;
};

template <typename T, typename A>
void multiply_gathered(const RoutedProduct<T>& p, const Pass<A>& pass, const Block& block, std::int64_t expert,
                       std::int64_t rows, std::int64_t depth_begin, const RowsAhead<T>& ahead,
                       BlockBuffers<A>& buffers) {
  TileTask<A> task{};
  task.depth = std::min(p.depth_block(), p.depth - depth_begin);
  const std::int64_t panels = (block.last_column - block.first_column + kTileColumns<A> - 1) / kTileColumns<A>;
  for (std::int64_t column = block.first_column; column < block.last_column; column += kTileColumns<A>) {
    task.panel =
        pass.packed + pass.packed_at[expert] + (column - pass.first_column) * p.depth + depth_begin * kTileColumns<A>;
    task.bias = pass.bias != nullptr && depth_begin == 0 ? pass.bias + expert * pass.bias_stride + column : nullptr;
    ahead.fetch((column - block.first_column) / kTileColumns<A>, panels, depth_begin);
    task.column = column;
    task.width = std::min<std::int64_t>(kTileColumns<A>, block.last_column - column);
    for (std::int64_t m = 0; m < rows; m += kTileRows) {
      task.rows = buffers.gathered.data() + m * kGatherStride<A>;
      task.out = buffers.out + m;
      task.base = buffers.base + m;
      task.gate = buffers.gate + m;
      task.against = buffers.against + m;
      task.dot = buffers.dot + m * kRegisterLanes<A>;
      const int size = static_cast<int>(std::min<std::int64_t>(kTileRows, rows - m));
      constexpr auto sizes = std::make_integer_sequence<int, kTileRows>{};
      if (p.against == nullptr) {
        run_tile<true, false>(size, task, sizes);
      } else if (p.out == nullptr) {
        run_tile<false, true>(size, task, sizes);
      } else {
        run_tile<true, true>(size, task, sizes);
      }
    }
  }
}

template <typename T, typename A>
void multiply_packed(const RoutedProduct<T>& p, const Pass<A>& pass, const Block& block, std::int64_t expert,
                     const std::int64_t* slots, std::int64_t n, BlockBuffers<A>& buffers) {
  constexpr int kLanes = kRegisterLanes<A>;
  // Every chunk reads the packed weights again: cheap from L2, a tile at a time; else in few chunks of about equal
  // size.
  const std::int64_t most = p.depth * p.columns <= kResidentWeights ? kTileRows : kGatherRows;
  const std::int64_t chunks = (n + most - 1) / most;
  const std::int64_t chunk = round_up((n + chunks - 1) / chunks, kTileRows);
  for (std::int64_t begin = 0; begin < n; begin += chunk) {
    const std::int64_t rows = std::min(chunk, n - begin);
    for (std::int64_t m = 0; m < rows; ++m) {
      const std::int64_t slot = slots[begin + m], row = p.out_row(slot);
      buffers.out[m] = out_row(p, block, buffers, row);
      buffers.base[m] = base_row(block, buffers, buffers.out[m], row);
      buffers.against[m] = against_row(p, block, buffers, row);
      buffers.gate[m] = p.gate != nullptr ? A{widen(p.gate[slot])} : A{1};
    }
    if (p.against != nullptr) std::fill(buffers.dot, buffers.dot + rows * kLanes, A{0});
    const RowsAhead<T> ahead(p, slots + begin + rows, std::min<std::int64_t>(kTileRows, n - begin - rows));
    for (std::int64_t d = 0; d < p.depth || d == 0; d += std::max<std::int64_t>(1, p.depth_block())) {
      gather(p, slots + begin, rows, d, buffers.gathered.data());
      if (p.in_against != nullptr && block.first_column == 0) {
        const T* against = p.in_against + expert * p.depth + d;
        for (std::int64_t m = 0; m < rows; ++m) {
          p.slot_value[slots[begin + m]] +=
              dot_row(against, buffers.gathered.data() + m * kGatherStride<A>, std::min(p.depth_block(), p.depth - d));
        }
      }
      multiply_gathered(p, pass, block, expert, rows, d, ahead, buffers);
      std::copy(buffers.out, buffers.out + rows, buffers.base);
    }
    for (std::int64_t m = 0; p.against != nullptr && m < rows; ++m) {
      for (int lane = 0; lane < kLanes; ++lane) p.slot_value[slots[begin + m]] += buffers.dot[m * kLanes + lane];
    }
  }
}

template <typename T, typename A>
void multiply_unpacked(const RoutedProduct<T>& p, const Pass<A>& pass, const Block& block, std::int64_t expert,
                       const std::int64_t* slots, std::int64_t n, BlockBuffers<A>& buffers) {
  const std::int64_t width = block.last_column - block.first_column;
  const T* weight = p.weight + expert * p.columns * p.depth;
  const A* bias = pass.bias != nullptr ? pass.bias + expert * pass.bias_stride + block.first_column : nullptr;
  A* in = buffers.row.data();
  A* value = buffers.value.data();
  for (std::int64_t m = 0; m < n; ++m) {
    const std::int64_t slot = slots[m], row = p.out_row(slot);
    const T* from = p.in + p.in_row(slot) * p.depth;
    widen_row(from, p.depth, in);
    if (p.layout == WeightLayout::columns_by_depth) {
      dot_columns(weight + block.first_column * p.depth, in, p.depth, width, bias, value);
    } else {
      add_weight_rows(weight + block.first_column, p.columns, in, p.depth, width, bias, value);
    }
    if (p.against != nullptr) {
      const A* against = against_row(p, block, buffers, row) + block.first_column;
      p.slot_value[slot] += dot_row(against, value, width);
    }
    if (p.in_against != nullptr && block.first_column == 0) {
      p.slot_value[slot] += dot_row(p.in_against + expert * p.depth, in, p.depth);
    }
    if (p.out != nullptr) {
      A* out = out_row(p, block, buffers, row);
      const A* base = base_row(block, buffers, out, row) + block.first_column;
      const A gate = p.gate != nullptr ? A{widen(p.gate[slot])} : A{1};
      for (std::int64_t c = 0; c < width; ++c) out[block.first_column + c] = base[c] + gate * value[c];
    }
  }
}

// Forgets the last block's sums, and widens what will be read.
template <typename T, typename A>
void open_block(const RoutedProduct<T>& p, const Block& block, BlockBuffers<A>& buffers) {
  std::fill(buffers.begun.begin(), buffers.begun.end(), 0);
  if (p.against == nullptr || std::is_same_v<T, A>) return;
  for (std::int64_t i = block.first_row; i < block.last_row; ++i) {
    A* row = wide_row(p, block, const_cast<T*>(p.against), buffers.wide_against, i);
    for (std::int64_t c = block.first_column; c < block.last_column; ++c) row[c] = widen(p.against[i * p.columns + c]);
  }
}

// Writes what is still wide, and zeros where no slot came.
template <typename T, typename A>
void close_block(const RoutedProduct<T>& p, const Block& block, BlockBuffers<A>& buffers) {
  if (p.out == nullptr) return;
  for (std::int64_t i = block.first_row; i < block.last_row; ++i) {
    T* to = p.out + i * p.columns;
    if (!buffers.begun[i - block.first_row]) {
      std::fill(to + block.first_column, to + block.last_column, narrow<T>(A{0}));
    } else if constexpr (!std::is_same_v<T, A>) {
      const A* row = out_row(p, block, buffers, i);
      std::int64_t c = block.first_column;
      for (; c + kLanes<A> <= block.last_column; c += kLanes<A>) store(to + c, load(row + c));
      for (; c < block.last_column; ++c) to[c] = narrow<T>(row[c]);
    }
  }
}

template <typename T, typename A>
void run_block(const RoutedProduct<T>& p, const Pass<A>& pass, const Block& block, BlockBuffers<A>& buffers) {
  open_block(p, block, buffers);
  const auto before = [&](std::int64_t slot, std::int64_t row) { return p.out_row(slot) < row; };
  for (std::int64_t e = 0; e < p.num_experts; ++e) {
    const std::int64_t* end = p.order + p.offsets[e + 1];
    const std::int64_t* first = std::lower_bound(p.order + p.offsets[e], end, block.first_row, before);
    const std::int64_t* last = std::lower_bound(first, end, block.last_row, before);
    if (first == last) continue;
    const auto multiply = p.is_packed(e) ? multiply_packed<T, A> : multiply_unpacked<T, A>;
    multiply(p, pass, block, e, first, last - first, buffers);
  }
  close_block(p, block, buffers);
}

}  // namespace gmoe::core::GMOE_ISA
