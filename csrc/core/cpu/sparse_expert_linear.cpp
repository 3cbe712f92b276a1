// Blocks of rows go expert by expert, so that of the weights that the inputs of a block read, only one expert's have to
// stay in the second-level cache. A slot's sum stays in registers, a tile of outputs at a time, while the weights of
// its inputs stream by; those a few entries ahead are prefetched, also across slots. The gradient of the weights goes
// input by input: the slots that have it are sorted by expert, and each expert's sum stays in registers likewise.
// Floor: a row of weights, or of grad_y, per entry and slot from the second-level cache.
#include "core/sparse_expert_linear.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/counting_sort.h"
#include "core/cpu/row_pieces.h"
#include "core/cpu/row_tile.h"

namespace gmoe::core::GMOE_ISA {
namespace {

constexpr std::int64_t kMostBlockRows = 16384, kLeastBlockRows = 64;

// The entries of a row, and their factors for one slot; the values of null are 1.
template <typename T, bool Scaled>
struct Entries {
  using A = Accumulator<T>;
  const std::int32_t* columns;
  const A* value;
  std::int64_t stride;  // of values
  const T* scale;       // of the inputs of the slot's expert

  A factor(std::int64_t j) const {
    const A own = value == nullptr ? A{1} : value[j * stride];
    return Scaled ? own * A{widen(scale[columns[j]])} : own;
  }
};

// out = the weights of the entries [begin, end), times their factors. The entries of [next, next_end) come afterwards.
template <typename Tile, typename T, bool Scaled>
void add_entries(const Tile& tile, const T* weight, std::int64_t width, const Entries<T, Scaled>& entries,
                 std::int64_t begin, std::int64_t end, std::int64_t next, std::int64_t next_end,
                 Vector<Accumulator<T>> (&out)[Tile::kVectors]) {
  Vector<Accumulator<T>> sum[Tile::kVectors] = {};  // its own, so that it stays in registers
  const std::int32_t* columns = entries.columns;
  const auto add = [&](std::int64_t j) {
    const T* from = weight + columns[j] * width;
    const Accumulator<T> factor = entries.factor(j);
#pragma GCC unroll 16
    for (int v = 0; v < Tile::kVectors; ++v) sum[v] += factor * tile.read(from, v);
  };
  std::int64_t j = begin;
  for (const std::int64_t last = end - kEdgesAhead; j < last; ++j) {
    tile.prefetch(weight + columns[j + kEdgesAhead] * width);
    add(j);
  }
  for (std::int64_t ahead = next + std::max(j + kEdgesAhead - end, std::int64_t{0}); j < end; ++j, ++ahead) {
    if (ahead < next_end) tile.prefetch(weight + columns[ahead] * width);
    add(j);
  }
#pragma GCC unroll 16
  for (int v = 0; v < Tile::kVectors; ++v) out[v] = sum[v];
}

// sum = W_e S_e x_i + b_e in a tile of outputs, for slot r of row i. A slot of the same expert in `next_row` comes
// afterwards.
template <typename Tile, typename T>
void sum_slot(const SparseExpertLinear<T>& a, const Tile& tile, std::int64_t expert, std::int64_t row, std::int64_t r,
              std::int64_t next_row, Vector<Accumulator<T>> (&sum)[Tile::kVectors]) {
  const SparseExperts<T>& x = a.experts;
  const T* weight = x.weight + expert * x.in_dim * x.out_dim;
  const auto* value = x.value != nullptr && x.value_per_slot ? x.value + r : x.value;
  const std::int64_t stride = x.value_per_slot ? x.k : 1, begin = a.offsets[row], end = a.offsets[row + 1];
  const std::int64_t next = a.offsets[next_row], next_end = a.offsets[next_row + 1];
  if (x.scale != nullptr) {
    const Entries<T, true> entries{a.columns, value, stride, x.scale + expert * x.in_dim};
    add_entries(tile, weight, x.out_dim, entries, begin, end, next, next_end, sum);
  } else {
    const Entries<T, false> entries{a.columns, value, stride, nullptr};
    add_entries(tile, weight, x.out_dim, entries, begin, end, next, next_end, sum);
  }
  if (x.bias == nullptr) return;
  const T* bias = x.bias + expert * x.out_dim;
#pragma GCC unroll 16
  for (int v = 0; v < Tile::kVectors; ++v) sum[v] += tile.read(bias, v);
}

// f(tile, slot, sum) for every tile of outputs of every slot of `count` rows from `first` on, expert by expert.
template <typename T, typename F>
void for_each_slot(const SparseExpertLinear<T>& a, std::int64_t first, const SlotOrder& slots, const F& f) {
  using A = Accumulator<T>;
  const std::int64_t k = a.experts.k;
  for_each_tile<A>(a.experts.out_dim, [&](const auto& tile) {
    for (std::int64_t e = 0; e < a.experts.num_experts; ++e) {
      for (std::int64_t i = slots.begin(e); i < slots.end(e); ++i) {
        const std::int64_t slot = first * k + slots.slot(i),
                           next = first * k + slots.slot(std::min(i + 1, slots.end(e) - 1));
        Vector<A> sum[std::decay_t<decltype(tile)>::kVectors];
        sum_slot(a, tile, e, slot / k, slot % k, next / k, sum);
        f(tile, slot, sum);
      }
    }
  });
}

// f(first, count, slots) on blocks of rows.
template <typename T, typename F>
void for_each_block(const SparseExperts<T>& x, const F& f) {
  const std::int64_t rows = std::clamp(divide_up(x.num_rows, 2 * num_threads()), kLeastBlockRows, kMostBlockRows);
  parallel_for(divide_up(x.num_rows, rows), 1, [&](std::int64_t begin, std::int64_t end) {
    SlotOrder slots(x.num_experts, rows * x.k);
    for (std::int64_t block = begin; block < end; ++block) {
      const std::int64_t first = block * rows, count = std::min(rows, x.num_rows - first);
      slots.sort(x.index + first * x.k, count * x.k);
      f(first, count, slots);
    }
  });
}

// What slots of one expert add to an input's gradient.
template <typename A>
struct Addend {
  std::int64_t row;  // of grad_y
  A factor;
};

// Of one input: for every expert the slots that have it, in the order of the rows.
template <typename T>
class InputSlots {
 public:
  using A = Accumulator<T>;
  explicit InputSlots(const SparseExpertLinearGrad<T>& a)
      : a_(a), count_(static_cast<std::size_t>(a.experts.num_experts)) {
    for (std::int64_t column = 0; column < a.num_columns; ++column) {
      capacity_ = std::max(capacity_, (a.offsets[column + 1] - a.offsets[column]) * a.experts.k);
    }
    // An expert may get all slots. What is not written costs nothing.
    addends_.reset(new Addend<A>[static_cast<std::size_t>(capacity_ * a.experts.num_experts)]);
  }

  void sort(std::int64_t column) {
    const SparseExperts<T>& x = a_.experts;
    std::fill(count_.begin(), count_.end(), std::int64_t{0});
    for (std::int64_t p = a_.offsets[column]; p < a_.offsets[column + 1]; ++p) {
      const std::int64_t row = a_.rows[p], entry = a_.order != nullptr ? a_.order[p] : p;
      for (std::int64_t r = 0; r < x.k; ++r) {
        const std::int64_t slot = row * x.k + r, e = x.index[slot];
        const A gate = x.gate != nullptr ? A{widen(x.gate[slot])} : A{1};
        addends_[e * capacity_ + count_[e]++] = {x.gate != nullptr ? row : slot, gate * x.value_of(entry, r)};
      }
    }
  }
  const Addend<A>* begin(std::int64_t expert) const { return addends_.get() + expert * capacity_; }
  const Addend<A>* end(std::int64_t expert) const { return begin(expert) + count_[expert]; }

 private:
  const SparseExpertLinearGrad<T>& a_;
  std::int64_t capacity_ = 0;  // of an expert
  std::vector<std::int64_t> count_;
  std::unique_ptr<Addend<A>[]> addends_;
};

// The gradients of an input of an expert, of which `slots` add up.
template <typename T>
void finish_input(const SparseExpertLinearGrad<T>& a, std::int64_t expert, std::int64_t column,
                  const Addend<Accumulator<T>>* begin, const Addend<Accumulator<T>>* end) {
  using A = Accumulator<T>;
  const SparseExperts<T>& x = a.experts;
  const std::int64_t input = expert * x.in_dim + column;
  const A scale = x.scale != nullptr ? A{widen(x.scale[input])} : A{1};
  A dot = 0;
  for_each_tile<A>(x.out_dim, [&](const auto& tile) {
    constexpr int kVectors = std::decay_t<decltype(tile)>::kVectors;
    Vector<A> sum[kVectors] = {}, product = {};
    for (const Addend<A>* s = begin; s < end; ++s) {
      tile.prefetch(a.grad_y + (s + kEdgesAhead < end ? s + kEdgesAhead : s)->row * x.out_dim);
      const T* grad = a.grad_y + s->row * x.out_dim;
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) sum[v] += s->factor * tile.read(grad, v);
    }
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      if (a.grad_scale != nullptr) product += sum[v] * tile.read(x.weight + input * x.out_dim, v);
      tile.write(a.grad_weight + input * x.out_dim, v, scale * sum[v]);
    }
    if (a.grad_scale != nullptr) dot += horizontal_sum<A>(product);
  });
  if (a.grad_scale != nullptr) a.grad_scale[input] = narrow<T>(dot);
}

}  // namespace

template <typename T>
void sparse_expert_linear(const SparseExpertLinear<T>& a) {
  using A = Accumulator<T>;
  const SparseExperts<T>& x = a.experts;
  for_each_block(x, [&](std::int64_t first, std::int64_t count, const SlotOrder& slots) {
    std::vector<A> total(static_cast<std::size_t>(x.gate != nullptr ? count * x.out_dim : 0), A{0});
    for_each_slot(a, first, slots, [&](const auto& tile, std::int64_t slot, const auto& sum) {
      if (x.gate == nullptr) return tile.write_all(a.out + slot * x.out_dim, sum);
      const A gate = widen(x.gate[slot]);
      A* y = total.data() + (slot / x.k - first) * x.out_dim;
#pragma GCC unroll 16
      for (int v = 0; v < std::decay_t<decltype(tile)>::kVectors; ++v) {
        tile.write(y, v, tile.read(y, v) + gate * sum[v]);
      }
    });
    narrow_row<T>(total.data(), static_cast<std::int64_t>(total.size()), a.out + first * x.out_dim);
  });
}

template <typename T>
void sparse_expert_linear_grad_gate(const SparseExpertLinear<T>& a) {
  using A = Accumulator<T>;
  const SparseExperts<T>& x = a.experts;
  for_each_block(x, [&](std::int64_t first, std::int64_t count, const SlotOrder& slots) {
    std::vector<A> dot(static_cast<std::size_t>(count * x.k), A{0});
    for_each_slot(a, first, slots, [&](const auto& tile, std::int64_t slot, const auto& sum) {
      const T* grad = a.grad_y + slot / x.k * x.out_dim;
      Vector<A> product = {};
#pragma GCC unroll 16
      for (int v = 0; v < std::decay_t<decltype(tile)>::kVectors; ++v) product += sum[v] * tile.read(grad, v);
      dot[slot - first * x.k] += horizontal_sum<A>(product);
    });
    narrow_row<T>(dot.data(), count * x.k, a.out + first * x.k);
  });
}

template <typename T>
void sparse_expert_linear_grad_weight(const SparseExpertLinearGrad<T>& a) {
  const SparseExperts<T>& x = a.experts;
  const RowLine line(a.offsets, a.num_columns);
  parallel_for(pieces_of(line), grain_pieces(x.k * x.out_dim), [&](std::int64_t first, std::int64_t last) {
    InputSlots<T> slots(a);
    const std::int64_t end = line.first_row(last * kPieceCost);
    for (std::int64_t column = line.first_row(first * kPieceCost); column < end; ++column) {
      slots.sort(column);
      for (std::int64_t e = 0; e < x.num_experts; ++e) finish_input(a, e, column, slots.begin(e), slots.end(e));
    }
  });
  for (std::int64_t column = a.num_columns; column < x.in_dim; ++column) {
    for (std::int64_t e = 0; e < x.num_experts; ++e) finish_input<T>(a, e, column, nullptr, nullptr);
  }
}

#define GMOE_INSTANTIATE(T)                                                   \
  template void sparse_expert_linear(const SparseExpertLinear<T>&);           \
  template void sparse_expert_linear_grad_gate(const SparseExpertLinear<T>&); \
  template void sparse_expert_linear_grad_weight(const SparseExpertLinearGrad<T>&);
GMOE_INSTANTIATE(float)
GMOE_INSTANTIATE(double)
GMOE_INSTANTIATE(bfloat16)
#undef GMOE_INSTANTIATE

}  // namespace gmoe::core::GMOE_ISA
