// For the slots s of every expert e, with z_s = B_e in[in_row(s)] + bias_e,
//   out[out_row(s)] += gate[s] z_s                  the product behind expert_linear and its gradient for x (B = W^T),
//   slot_value[s]   += z_s . against[out_row(s)] + in[in_row(s)] . in_against_e    the gradient for the gate.
//
// Output rows are cut into blocks that stay in the second-level cache and have one owner, so there are no atomics. In a
// block the slots of an expert are a contiguous piece of the plan, which is sorted by output row. A tile's worth of
// rows is gathered into the first-level cache and multiplied with the expert's packed weights, which stream from the
// second level; gate, bias and sum are applied while a tile is in registers, and the next rows are fetched meanwhile.
// A row is summed over experts in ascending order and over depth in fixed blocks: the result depends neither on the
// number of threads nor on how rows fall into blocks. Experts with few rows skip the packing: one dot product per
// output. Floor: the same multiply-adds at the register tile's peak.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/cpu/gemm/tile.h"
#include "core/parallel.h"
#include "core/workspace.h"

namespace gmoe::core::GMOE_ISA {

inline constexpr std::int64_t kDepthBlock = 256;  // a panel of 256 x 32 floats is 32 KiB, first-level cache
template <typename A>
inline constexpr int kGatherStride = kDepthBlock + kCacheLine / sizeof(A);  // gathered rows start in different sets
inline constexpr std::int64_t kResidentWeights = 1 << 18;    // elements of an expert that L2 holds beside rows
inline constexpr std::int64_t kGatherRows = 18 * kTileRows;  // rows to share a read of weights that are larger
inline constexpr std::int64_t kMinBlockRows = 512;           // 512 rows of 256 floats are 0.5 MiB of L2
inline constexpr std::int64_t kMaxBlockRows = 2048;
inline constexpr std::int64_t kMinRowsPerTask = 64;  // for any number of threads
inline constexpr std::int64_t kRowsPerExpert = 128;  // wanted in a block, so that tiles are mostly full
inline constexpr std::int64_t kFewRows = 8;          // up to here packing costs more than it saves

// Row of a slot: a table, or slot / divisor.
struct RowOf {
  const std::int64_t* table;
  std::int64_t divisor;
  std::int64_t operator()(std::int64_t slot) const {
    return table != nullptr ? table[slot] : divisor == 1 ? slot : slot / divisor;
  }
};

// The rows and columns of the output that one task owns.
struct Block {
  std::int64_t first_row, last_row, first_column, last_column;
  std::int64_t width() const { return last_column - first_column; }
};

// Slots of one expert.
struct SlotRange {
  const std::int64_t* first;
  std::int64_t n;
};

template <typename T>
struct RoutedProduct {
  const T* in;  // [*, depth]
  RowOf in_row;
  RowOf out_row;
  WeightMatrices<T> weight;
  const T* bias = nullptr;      // [num_experts, columns] or null
  const T* gate;                // [num_slots] or null
  const std::int64_t* offsets;  // [num_experts + 1]
  const std::int64_t* order;    // slots by expert, ascending in out_row
  std::int64_t num_experts, out_rows;
  T* out;                                // [out_rows, columns], or null
  const T* against = nullptr;            // [out_rows, columns], or null
  const T* in_against = nullptr;         // [num_experts, depth], or null
  Accumulator<T>* slot_value = nullptr;  // [num_slots], zeroed by the caller; used with against or in_against

  std::int64_t depth() const { return weight.depth; }
  std::int64_t columns() const { return weight.columns; }
  std::int64_t num_slots() const { return offsets[num_experts]; }
  bool is_packed(std::int64_t e) const { return offsets[e + 1] - offsets[e] > kFewRows; }
  Accumulator<T> gate_of(std::int64_t slot) const { return gate != nullptr ? Accumulator<T>{widen(gate[slot])} : 1; }
  // Blocks of depth of about equal size, whole cache lines.
  std::int64_t depth_block() const {
    const std::int64_t blocks = std::max<std::int64_t>(1, divide_up(depth(), kDepthBlock));
    return round_up(divide_up(depth(), blocks), 16);
  }
  // The slots of expert e that fall into rows [first_row, last_row).
  SlotRange slots_in(std::int64_t e, std::int64_t first_row, std::int64_t last_row) const {
    const auto before = [this](std::int64_t slot, std::int64_t row) { return out_row(slot) < row; };
    const std::int64_t* end = order + offsets[e + 1];
    const std::int64_t* first = std::lower_bound(order + offsets[e], end, first_row, before);
    return {first, std::lower_bound(first, end, last_row, before) - first};
  }
};

// The weights of a pass over a range of columns.
template <typename A>
struct Pass {
  std::int64_t first_column, last_column;
  const A* packed;  // per packed expert: its panels of the pass
  const A* bias;    // [num_experts][bias_stride], or null
  std::int64_t bias_stride;
  const std::int64_t* packed_at;  // [num_experts]

  // The expert's panels from `column` on.
  const A* panel(std::int64_t expert, std::int64_t column, std::int64_t depth) const {
    return packed + packed_at[expert] + (column - first_column) * depth;
  }
  const A* bias_from(std::int64_t expert, std::int64_t column, const A* otherwise) const {
    return bias != nullptr ? bias + expert * bias_stride + column : otherwise;
  }
};

// ---- the output rows of a block

// A row of a block as accumulators, indexed by the array's columns: the array itself, or a row of `wide`, which copies
// the block where T is narrower.
template <typename T, typename A>
A* wide_row(T* array, std::int64_t columns, const Block& block, A* wide, std::int64_t stride, std::int64_t row) {
  if constexpr (std::is_same_v<T, A>) {
    return array == nullptr ? nullptr : array + row * columns;
  } else {
    return wide + (row - block.first_row) * stride - block.first_column;
  }
}

template <typename T, typename A = Accumulator<T>>
class OutputRows {
 public:
  // Blocks of at most `rows` rows; wide ones have at most `width` columns.
  OutputRows(const RoutedProduct<T>& p, std::int64_t rows, std::int64_t width)
      : out_(p.out),
        columns_(p.columns()),
        wide_(std::is_same_v<T, A> ? 0 : rows * width),
        zeros_(static_cast<std::size_t>(round_up(columns_, kTileColumns<A>)), A{0}),
        begun_(static_cast<std::size_t>(rows)) {}

  void open(const Block& block, std::int64_t stride) {
    block_ = block;
    stride_ = stride;
    std::fill(begun_.begin(), begun_.end(), char{0});
  }
  A* row(std::int64_t row) const { return wide_row(out_, columns_, block_, wide_.data(), stride_, row); }
  // What the next slot of a row is added to. The first one finds zeros, so no output is cleared beforehand.
  const A* base(std::int64_t row, const A* out) {
    return std::exchange(begun_[row - block_.first_row], char{1}) ? out : zeros();
  }
  const A* zeros() const { return zeros_.data(); }
  // Writes the wide copy back, and zeros to rows without a slot.
  void close() const {
    for (std::int64_t i = block_.first_row; out_ != nullptr && i < block_.last_row; ++i) {
      T* to = out_ + i * columns_ + block_.first_column;
      if (!begun_[i - block_.first_row]) {
        std::fill(to, to + block_.width(), narrow<T>(A{0}));
      } else if constexpr (!std::is_same_v<T, A>) {
        narrow_row(row(i) + block_.first_column, block_.width(), to);
      }
    }
  }

 private:
  T* out_;
  std::int64_t columns_;
  Workspace<A> wide_;
  std::vector<A> zeros_;
  std::vector<char> begun_;  // per row of the block: whether it holds a sum
  Block block_{};
  std::int64_t stride_ = 0;
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
  A* dot;  // [rows][kLanes]
};

template <int Rows, bool Sum, bool Dot, typename A>
void finish_narrow_tile(const TileTask<A>& t, const Vector<A> (&c)[Rows][2]) {
  for (int m = 0; m < Rows; ++m) {
    A value[kTileColumns<A>];
    store(value, c[m][0]), store(value + kLanes<A>, c[m][1]);
    for (std::int64_t j = 0; j < t.width; ++j) {
      if constexpr (Dot) t.dot[m * kLanes<A>] += value[j] * t.against[m][t.column + j];
      if constexpr (Sum) t.out[m][t.column + j] = t.base[m][t.column + j] + t.gate[m] * value[j];
    }
  }
}

template <int Rows, bool Sum, bool Dot, typename A>
void run_tile(const TileTask<A>& t) {
  Vector<A> c[Rows][2];
  Vector<A> start[2] = {};
  if (t.bias != nullptr) start[0] = load(t.bias), start[1] = load(t.bias + kLanes<A>);
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) c[m][0] = start[0], c[m][1] = start[1];
  for (int m = 0; Sum && m < Rows; ++m) {
    __builtin_prefetch(t.base[m] + t.column);
    __builtin_prefetch(t.base[m] + t.column + kLanes<A>);
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
      A* sum = t.dot + m * kLanes<A>;
      store(sum, load(sum) + (c[m][0] * load(against) + c[m][1] * load(against + kLanes<A>)));
    }
    if constexpr (Sum) {
      A* out = t.out[m] + t.column;
      const A* base = t.base[m] + t.column;
      const Vector<A> y0 = t.gate[m] * c[m][0] + load(base), y1 = t.gate[m] * c[m][1] + load(base + kLanes<A>);
      store(out, y0), store(out + kLanes<A>, y1);
    }
  }
}

template <bool Sum, bool Dot, typename A, int... Less>
void run_tile(std::int64_t rows, const TileTask<A>& task, std::integer_sequence<int, Less...>) {
  using Function = void (*)(const TileTask<A>&);
  static constexpr Function kBySize[] = {run_tile<Less + 1, Sum, Dot, A>...};
  kBySize[rows - 1](task);
}

// ---- stage 2: the slots of one expert that fall into one block of output rows

template <typename T, typename A = Accumulator<T>>
struct BlockBuffers {
  BlockBuffers(const RoutedProduct<T>& p, bool any_packed, std::int64_t rows, std::int64_t width)
      : out_rows(p, rows, width),
        wide_against(std::is_same_v<T, A> ? 0 : rows * width),
        gathered(any_packed ? kGatherRows * kGatherStride<A> : 0),
        row(p.depth()),
        value(p.columns()) {}
  OutputRows<T> out_rows;
  Workspace<A> wide_against;  // the block's rows where T is narrower than A
  Workspace<A> gathered;      // packed experts: input rows
  Workspace<A> row, value;    // unpacked experts: one input row, one z
  A gate[kGatherRows];
  A* out[kGatherRows];
  const A* base[kGatherRows];
  const A* against[kGatherRows];
  alignas(64) A dot[kGatherRows * kLanes<A>];

  A* against_row(const RoutedProduct<T>& p, const Block& block, std::int64_t row) const {
    return wide_row(const_cast<T*>(p.against), p.columns(), block, wide_against.data(), block.width(), row);
  }
};

template <typename T, typename A>
void gather(const RoutedProduct<T>& p, const SlotRange& slots, std::int64_t depth_begin, A* gathered) {
  const std::int64_t depth = std::min(p.depth_block(), p.depth() - depth_begin);
  for (std::int64_t m = 0; m < slots.n; ++m) {
    const T* from = p.in + p.in_row(slots.first[m]) * p.depth() + depth_begin;
    widen_row(from, depth, gathered + m * kGatherStride<A>);
  }
}

// Prefetches the part-th of `parts` shares of the next input rows, in the block of depth from `depth_begin` on.
template <typename T>
void fetch_ahead(const RoutedProduct<T>& p, const SlotRange& slots, std::int64_t part, std::int64_t parts,
                 std::int64_t depth_begin) {
  const std::int64_t depth = std::min(p.depth_block(), p.depth() - depth_begin);
  for (std::int64_t m = part * slots.n / parts; m < (part + 1) * slots.n / parts; ++m) {
    prefetch_row(p.in + p.in_row(slots.first[m]) * p.depth() + depth_begin, depth);
  }
}

template <typename T, typename A>
void multiply_gathered(const RoutedProduct<T>& p, const Pass<A>& pass, const Block& block, std::int64_t expert,
                       std::int64_t rows, std::int64_t depth_begin, const SlotRange& ahead, BlockBuffers<T>& buffers) {
  TileTask<A> task{};
  task.depth = std::min(p.depth_block(), p.depth() - depth_begin);
  const std::int64_t panels = divide_up(block.width(), kTileColumns<A>);
  for (std::int64_t column = block.first_column; column < block.last_column; column += kTileColumns<A>) {
    task.panel = pass.panel(expert, column, p.depth()) + depth_begin * kTileColumns<A>;
    task.bias = depth_begin == 0 ? pass.bias_from(expert, column, nullptr) : nullptr;
    fetch_ahead(p, ahead, (column - block.first_column) / kTileColumns<A>, panels, depth_begin);
    task.column = column;
    task.width = std::min(kTileColumns<A>, block.last_column - column);
    for (std::int64_t m = 0; m < rows; m += kTileRows) {
      task.rows = buffers.gathered.data() + m * kGatherStride<A>;
      task.out = buffers.out + m;
      task.base = buffers.base + m;
      task.gate = buffers.gate + m;
      task.against = buffers.against + m;
      task.dot = buffers.dot + m * kLanes<A>;
      const std::int64_t size = std::min(kTileRows, rows - m);
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
                     const SlotRange& slots, BlockBuffers<T>& buffers) {
  // Every chunk reads the packed weights again: cheap from L2, a tile at a time; otherwise use few chunks of equal
  // size.
  const std::int64_t most = p.depth() * p.columns() <= kResidentWeights ? kTileRows : kGatherRows;
  const std::int64_t chunk = round_up(divide_up(slots.n, divide_up(slots.n, most)), kTileRows);
  for (std::int64_t begin = 0; begin < slots.n; begin += chunk) {
    const SlotRange some{slots.first + begin, std::min(chunk, slots.n - begin)};
    for (std::int64_t m = 0; m < some.n; ++m) {
      const std::int64_t slot = some.first[m], row = p.out_row(slot);
      buffers.out[m] = buffers.out_rows.row(row);
      buffers.base[m] = buffers.out_rows.base(row, buffers.out[m]);
      buffers.against[m] = buffers.against_row(p, block, row);
      buffers.gate[m] = p.gate_of(slot);
    }
    if (p.against != nullptr) std::fill(buffers.dot, buffers.dot + some.n * kLanes<A>, A{0});
    const SlotRange ahead{some.first + some.n, std::min(kTileRows, slots.n - begin - some.n)};
    for (std::int64_t d = 0; d < p.depth() || d == 0; d += std::max<std::int64_t>(1, p.depth_block())) {
      gather(p, some, d, buffers.gathered.data());
      if (p.in_against != nullptr && block.first_column == 0) {
        const T* against = p.in_against + expert * p.depth() + d;
        const std::int64_t depth = std::min(p.depth_block(), p.depth() - d);
        for (std::int64_t m = 0; m < some.n; ++m) {
          p.slot_value[some.first[m]] += dot_row(against, buffers.gathered.data() + m * kGatherStride<A>, depth);
        }
      }
      multiply_gathered(p, pass, block, expert, some.n, d, ahead, buffers);
      std::copy(buffers.out, buffers.out + some.n, buffers.base);
    }
    for (std::int64_t m = 0; p.against != nullptr && m < some.n; ++m) {
      for (int lane = 0; lane < kLanes<A>; ++lane) p.slot_value[some.first[m]] += buffers.dot[m * kLanes<A> + lane];
    }
  }
}

template <typename T, typename A>
void multiply_unpacked(const RoutedProduct<T>& p, const Pass<A>& pass, const Block& block, std::int64_t expert,
                       const SlotRange& slots, BlockBuffers<T>& buffers) {
  const T* weight = p.weight.data + expert * p.columns() * p.depth();
  const A* bias = pass.bias_from(expert, block.first_column, nullptr);
  A* in = buffers.row.data();
  A* value = buffers.value.data();
  for (std::int64_t m = 0; m < slots.n; ++m) {
    const std::int64_t slot = slots.first[m], row = p.out_row(slot);
    widen_row(p.in + p.in_row(slot) * p.depth(), p.depth(), in);
    if (p.weight.layout == WeightLayout::columns_by_depth) {
      dot_columns(weight + block.first_column * p.depth(), in, p.depth(), block.width(), bias, value);
    } else {
      add_weight_rows(weight + block.first_column, p.columns(), in, p.depth(), block.width(), bias, value);
    }
    if (p.against != nullptr) {
      const A* against = buffers.against_row(p, block, row) + block.first_column;
      p.slot_value[slot] += dot_row(against, value, block.width());
    }
    if (p.in_against != nullptr && block.first_column == 0) {
      p.slot_value[slot] += dot_row(p.in_against + expert * p.depth(), in, p.depth());
    }
    if (p.out != nullptr) {
      A* out = buffers.out_rows.row(row);
      const A* base = buffers.out_rows.base(row, out) + block.first_column;
      const A gate = p.gate_of(slot);
      for (std::int64_t c = 0; c < block.width(); ++c) out[block.first_column + c] = base[c] + gate * value[c];
    }
  }
}

template <typename T, typename A>
void run_block(const RoutedProduct<T>& p, const Pass<A>& pass, const Block& block, BlockBuffers<T>& buffers) {
  buffers.out_rows.open(block, block.width());
  if (p.against != nullptr && !std::is_same_v<T, A>) {
    for (std::int64_t i = block.first_row; i < block.last_row; ++i) {
      A* row = buffers.against_row(p, block, i) + block.first_column;
      widen_row(p.against + i * p.columns() + block.first_column, block.width(), row);
    }
  }
  for (std::int64_t e = 0; e < p.num_experts; ++e) {
    const SlotRange slots = p.slots_in(e, block.first_row, block.last_row);
    if (slots.n == 0) continue;
    const auto multiply = p.is_packed(e) ? multiply_packed<T, A> : multiply_unpacked<T, A>;
    multiply(p, pass, block, e, slots, buffers);
  }
  buffers.out_rows.close();
}

}  // namespace gmoe::core::GMOE_ISA
