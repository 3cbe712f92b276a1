// A few rows at a time: the levels of all their slots, a word for four of them, and one pass over the values. Floor:
// the time to read the rows and write the result, and some 20 instructions for each vector of words.
#include "core/dropout.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>
#include <vector>

#include "core/parallel.h"
#include "core/simd.h"
#include "core/splitmix64.h"

namespace gmoe::core::GMOE_ISA {
namespace {

constexpr std::int64_t kLevelsTogether = 2048;  // about; they stay in the L1

typedef std::uint64_t StateVector __attribute__((vector_size(GMOE_VECTOR_BYTES)));
constexpr std::int64_t kStates = GMOE_VECTOR_BYTES / 8;

// A level is as wide as a bfloat16, and is widened as one.
using Level = bfloat16;

// Levels of a range of elements.
class Levels {
 public:
  explicit Levels(std::int64_t seed) : key_(splitmix64(static_cast<std::uint64_t>(seed))) {}

  // Of elements [first, first + count); valid until the next call.
  const Level* draw(std::int64_t first, std::int64_t count) {
    const std::int64_t begin = first / 4, words = round_up(divide_up(first + count, 4) - begin, kStates);
    level_.resize(static_cast<std::size_t>(4 * words));
    StateVector state;
    for (std::int64_t lane = 0; lane < kStates; ++lane) {
      state[lane] = key_ + static_cast<std::uint64_t>(begin + lane) * kSplitmixIncrement;
    }
    for (std::int64_t w = 0; w < words; w += kStates, state += kStates * kSplitmixIncrement) {
      const StateVector word = splitmix64(state);
      std::memcpy(level_.data() + 4 * w, &word, sizeof word);  // little-endian, as the processors we compile for are
    }
    return level_.data() + (first - 4 * begin);
  }

 private:
  std::uint64_t key_;
  std::vector<Level> level_;
};

// Calls f(i, levels of the elements of item i) for items of so many elements, in parts that threads share.
template <typename F>
void for_each_item(std::int64_t items, std::int64_t size, std::int64_t seed, const F& f) {
  if (size == 0) return;
  const std::int64_t together = std::max<std::int64_t>(1, kLevelsTogether / size);
  parallel_for(divide_up(items, together), grain_rows(together * size), [&](std::int64_t begin, std::int64_t end) {
    Levels levels(seed);
    for (std::int64_t group = begin; group < end; ++group) {
      const std::int64_t first = group * together, last = std::min(first + together, items);
      const Level* level = levels.draw(first * size, (last - first) * size);
      for (std::int64_t i = first; i < last; ++i, level += size) f(i, level);
    }
  });
}

// What elements are multiplied by, one or a vector of them.
template <typename T>
class Factor {
 public:
  using A = Accumulator<T>;
  explicit Factor(const DropoutMask<T>& mask) : dropped_(mask.dropped), scale_(mask.scale) {}

  A of(Level level) const { return level.bits >= dropped_ ? scale_ : A{0}; }
  FloatVector of(FloatVector levels) const {
    const FloatVector scale = FloatVector{} + static_cast<float>(scale_);
    const WordVector widened = std::bit_cast<WordVector>(levels),
                     least = WordVector{} + (std::uint32_t{dropped_} << 16);
    return widened >= least ? scale : FloatVector{};
  }

 private:
  std::uint16_t dropped_;
  A scale_;
};

// y = x times the factors of the levels.
template <typename T>
void drop(const Factor<T>& factor, const T* x, const Level* level, std::int64_t width, T* y) {
  std::int64_t d = 0;
  if constexpr (!std::is_same_v<T, double>) {
    for (; d + kLanes<float> <= width; d += kLanes<float>) store(y + d, load(x + d) * factor.of(load(level + d)));
  }
  for (; d < width; ++d) y[d] = narrow<T>(widen(x[d]) * factor.of(level[d]));
}

// Of one slot, every element for itself, whatever rows they make.
template <typename T>
void drop_all(const DropoutMask<T>& mask, const T* x, T* y) {
  const Factor<T> factor(mask);
  const std::int64_t elements = mask.num_rows * mask.width;
  for_each_item(divide_up(elements, kLevelsTogether), kLevelsTogether, *mask.seed,
                [&](std::int64_t part, const Level* level) {
                  const std::int64_t first = part * kLevelsTogether;
                  drop(factor, x + first, level, std::min(kLevelsTogether, elements - first), y + first);
                });
}

// sum = the slots of a row of the gradient, times their factors, in a vector of columns or in one.
template <typename T, typename V>
V sum_slots(const DropoutMask<T>& mask, const Factor<T>& factor, const T* grad_y, const Level* level, V sum) {
  for (std::int64_t r = 0; r < mask.slots; ++r, grad_y += mask.width, level += mask.width) {
    if constexpr (std::is_same_v<V, FloatVector>) {
      sum += load(grad_y) * factor.of(load(level));
    } else {
      sum += widen(*grad_y) * factor.of(*level);
    }
  }
  return sum;
}

}  // namespace

template <typename T>
void dropout(const Dropout<T>& a) {
  const DropoutMask<T>& mask = a.mask;
  if (mask.slots == 1) return drop_all(mask, a.x, a.y);
  const Factor<T> factor(mask);
  for_each_item(mask.num_rows, mask.slots * mask.width, *mask.seed, [&](std::int64_t i, const Level* level) {
    T* y = a.y + i * mask.slots * mask.width;
    for (std::int64_t r = 0; r < mask.slots; ++r) {
      drop(factor, a.x + i * mask.width, level + r * mask.width, mask.width, y + r * mask.width);
    }
  });
}

template <typename T>
void dropout_grad_x(const DropoutGradX<T>& a) {
  using A = Accumulator<T>;
  const DropoutMask<T>& mask = a.mask;
  if (mask.slots == 1) return drop_all(mask, a.grad_y, a.grad_x);
  const Factor<T> factor(mask);
  for_each_item(mask.num_rows, mask.slots * mask.width, *mask.seed, [&](std::int64_t i, const Level* level) {
    const T* grad_y = a.grad_y + i * mask.slots * mask.width;
    T* grad_x = a.grad_x + i * mask.width;
    std::int64_t d = 0;
    if constexpr (!std::is_same_v<T, double>) {
      for (; d + kLanes<float> <= mask.width; d += kLanes<float>) {
        store(grad_x + d, sum_slots(mask, factor, grad_y + d, level + d, FloatVector{}));
      }
    }
    for (; d < mask.width; ++d) grad_x[d] = narrow<T>(sum_slots(mask, factor, grad_y + d, level + d, A{0}));
  });
}

template void dropout(const Dropout<float>&);
template void dropout(const Dropout<double>&);
template void dropout(const Dropout<bfloat16>&);
template void dropout_grad_x(const DropoutGradX<float>&);
template void dropout_grad_x(const DropoutGradX<double>&);
template void dropout_grad_x(const DropoutGradX<bfloat16>&);

}  // namespace gmoe::core::GMOE_ISA
