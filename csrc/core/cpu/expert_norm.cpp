// Three passes over the slots forward (sums, squares about the mean, result) and two backward (sums, gradient). For
// sums the slots of a chunk of rows are sorted by expert, and an expert's sums stay in registers over them. With gates
// a row's slots are summed in registers, so that nothing of size [num_rows, k, dim] is written forward. Floor: the time
// to read y once per pass.
#include "core/expert_norm.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "core/counting_sort.h"
#include "core/cpu/row_tile.h"
#include "core/parallel.h"

namespace gmoe::core::GMOE_ISA {
namespace {

constexpr std::int64_t kRowsPerChunk = 256;
constexpr std::int64_t kBlockRows = 32;   // rows whose slots stay in the second-level cache from tile to tile
constexpr std::int64_t kFewColumns = 64;  // columns of few slots at a time: their sums stay in the first-level cache

template <typename Tile>
constexpr int kVectorsOf = std::remove_cvref_t<Tile>::kVectors;

// The sums over the slots of each expert, [num_experts, width]. add(tile, expert, first, order, sums) adds columns of
// the expert's slots first + order.slot(..) to its sums.
template <typename T, typename Add>
std::vector<Accumulator<T>> sums_by_expert(const ExpertSlots<T>& a, std::int64_t width, const Add& add) {
  using A = Accumulator<T>;
  const std::int64_t size = a.num_experts * width;
  const RowChunks chunks(a.num_rows, kRowsPerChunk, size);
  std::vector<A> sums(static_cast<std::size_t>(chunks.count() * size), A{0});
  parallel_for(chunks.count(), grain_rows(kRowsPerChunk * a.k * a.dim), [&](std::int64_t c, std::int64_t last) {
    SlotOrder order(a.num_experts, std::min(a.num_rows, chunks.end(0)) * a.k);
    for (; c < last; ++c) {
      const std::int64_t first = chunks.begin(c) * a.k;
      order.sort(a.index + first, chunks.end(c) * a.k - first);
      for (std::int64_t e = 0; e < a.num_experts; ++e) {
        if (order.begin(e) == order.end(e)) continue;
        for_each_tile<A>(a.dim, [&](const auto& tile) { add(tile, e, first, order, &sums[c * size + e * width]); });
      }
    }
  });
  parallel_for(size, grain_rows(chunks.count()), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = 1; c < chunks.count(); ++c) {
      for (std::int64_t j = begin; j < end; ++j) sums[j] += sums[c * size + j];
    }
  });
  return sums;
}

// f(tile, begin, end) on blocks of rows: every tile of columns of a block before the next block.
template <typename T, typename F>
void for_each_block(const ExpertSlots<T>& a, const F& f) {
  using A = Accumulator<T>;
  parallel_for(a.num_rows, grain_rows(a.k * a.dim), [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; i += kBlockRows) {
      for_each_tile<A>(a.dim, [&](const auto& tile) { f(tile, i, std::min(last, i + kBlockRows)); });
    }
  });
}

template <typename T>
std::vector<std::int64_t> slots_of(const ExpertSlots<T>& a) {
  std::vector<std::int64_t> count(static_cast<std::size_t>(a.num_experts), 0);
  for (std::int64_t s = 0; s < a.num_rows * a.k; ++s) ++count[a.index[s]];
  return count;
}

// sums / count, or `otherwise` for an expert with fewer than two slots, which have no variance.
template <typename T, typename A = Accumulator<T>>
void mean_or(const std::vector<A>& sums, const std::int64_t* count, std::int64_t num_experts, std::int64_t dim,
             const T* otherwise, A* mean) {
  for (std::int64_t e = 0; e < num_experts; ++e) {
    for (std::int64_t j = e * dim; j < (e + 1) * dim; ++j) {
      mean[j] = count[e] > 1 ? sums[j] / static_cast<A>(count[e]) : A{widen(otherwise[j])};
    }
  }
}

template <typename T, typename A = Accumulator<T>>
void statistics(const ExpertNorm<T>& n) {
  const ExpertSlots<T>& a = n.slots;
  const std::vector<std::int64_t> count = slots_of(a);
  std::copy(count.begin(), count.end(), n.count);
  const auto sum = sums_by_expert(
      a, a.dim, [&](const auto& tile, std::int64_t e, std::int64_t first, const SlotOrder& order, A* sums) {
        constexpr int kVectors = kVectorsOf<decltype(tile)>;
        Vector<A> part[kVectors] = {};
        for (std::int64_t at = order.begin(e); at < order.end(e); ++at) {
          const T* y = a.y + (first + order.slot(at)) * a.dim;
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) part[v] += tile.read(y, v);
        }
        tile.write_all(sums, part);
      });
  mean_or(sum, n.count, a.num_experts, a.dim, n.running_mean, n.mean);
  // Squares of centered values, so that nothing cancels.
  const auto square = sums_by_expert(
      a, a.dim, [&](const auto& tile, std::int64_t e, std::int64_t first, const SlotOrder& order, A* sums) {
        constexpr int kVectors = kVectorsOf<decltype(tile)>;
        Vector<A> part[kVectors] = {}, mean[kVectors];
        tile.read_all(n.mean + e * a.dim, mean);
        for (std::int64_t at = order.begin(e); at < order.end(e); ++at) {
          const T* y = a.y + (first + order.slot(at)) * a.dim;
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) {
            const Vector<A> centered = tile.read(y, v) - mean[v];
            part[v] += centered * centered;
          }
        }
        tile.write_all(sums, part);
      });
  mean_or(square, n.count, a.num_experts, a.dim, n.running_var, n.var);
}

// Factor and addend of a slot after its mean is subtracted; [num_experts, dim] each.
template <typename T, typename A = Accumulator<T>>
struct Affine {
  std::vector<A> inverse, scale, bias;

  Affine(const T* weight, const T* bias_in, const A* var, double eps, std::int64_t size)
      : inverse(static_cast<std::size_t>(size)), scale(inverse.size()), bias(inverse.size()) {
    for (std::int64_t j = 0; j < size; ++j) {
      inverse[j] = A{1} / std::sqrt(var[j] + static_cast<A>(eps));
      scale[j] = widen(weight[j]) * inverse[j];
      bias[j] = widen(bias_in[j]);
    }
  }
};

// The experts with 2 to kFewSlots slots, and these. What is left of their gradient is small against what cancels, so it
// is computed in double.
template <typename T>
class FewSlots {
 public:
  explicit FewSlots(const ExpertNormGrad<T>& n) : n_(n), expert_(static_cast<std::size_t>(n.slots.num_experts), -1) {
    if constexpr (std::is_same_v<T, double>) return;  // there is nothing wider
    const ExpertSlots<T>& a = n.slots;
    for (std::int64_t e = 0; e < a.num_experts; ++e) {
      if (n.count[e] > 1 && n.count[e] <= kFewSlots) expert_[e] = num_experts_++;
    }
    slots_.resize(static_cast<std::size_t>(num_experts_));
    for (std::int64_t s = 0; num_experts_ > 0 && s < a.num_rows * a.k; ++s) {
      if (holds(a.index[s])) slots_[expert_[a.index[s]]].push_back(s);
    }
  }

  bool holds(std::int64_t expert) const { return expert_[expert] >= 0; }

  void write_gradients() const {
    const std::int64_t dim = n_.slots.dim;
    parallel_for(num_experts_, grain_rows(4 * kFewSlots * dim), [&](std::int64_t f, std::int64_t last) {
      for (; f < last; ++f) {
        for (std::int64_t begin = 0; begin < dim; begin += kFewColumns) {
          write_columns(slots_[f], begin, std::min(dim, begin + kFewColumns));
        }
      }
    });
  }

 private:
  void write_columns(const std::vector<std::int64_t>& slots, std::int64_t begin, std::int64_t end) const {
    if (slots.empty()) return;  // a count that is not the index's
    const ExpertSlots<T>& a = n_.slots;
    const auto count = static_cast<double>(slots.size());
    const auto row_of = [&](std::int64_t s) { return (a.gate != nullptr ? s / a.k : s) * a.dim; };
    const auto gate_of = [&](std::int64_t s) { return a.gate != nullptr ? double{widen(a.gate[s])} : 1.0; };
    double mean[kFewColumns] = {}, level[kFewColumns] = {}, square[kFewColumns] = {}, moment[kFewColumns] = {};
    for (const std::int64_t s : slots) {
      for (std::int64_t d = begin; d < end; ++d) {
        mean[d - begin] += widen(a.y[s * a.dim + d]) / count;
        level[d - begin] += gate_of(s) * widen(n_.grad_out[row_of(s) + d]) / count;
      }
    }
    for (const std::int64_t s : slots) {
      for (std::int64_t d = begin; d < end; ++d) {
        const double centered = widen(a.y[s * a.dim + d]) - mean[d - begin];
        square[d - begin] += centered * centered / count;
        moment[d - begin] += gate_of(s) * widen(n_.grad_out[row_of(s) + d]) * centered / count;
      }
    }
    const std::int64_t expert = a.index[slots[0]] * a.dim;
    for (std::int64_t d = begin; d < end; ++d) {
      const double inverse = 1.0 / std::sqrt(square[d - begin] + n_.eps),
                   scale = widen(n_.weight[expert + d]) * inverse;
      const double slope = inverse * inverse * moment[d - begin];
      n_.grad_bias[expert + d] = rounded(count * level[d - begin]);
      n_.grad_weight[expert + d] = rounded(count * moment[d - begin] * inverse);
      for (const std::int64_t s : slots) {
        const double centered = widen(a.y[s * a.dim + d]) - mean[d - begin];
        const double own = gate_of(s) * widen(n_.grad_out[row_of(s) + d]) - level[d - begin];
        n_.grad_y[s * a.dim + d] = rounded(scale * (own - centered * slope));
      }
    }
  }
  static T rounded(double value) { return narrow<T>(static_cast<Accumulator<T>>(value)); }

  const ExpertNormGrad<T>& n_;
  std::vector<std::int64_t> expert_;              // among those with few slots, or -1
  std::vector<std::vector<std::int64_t>> slots_;  // ascending
  std::int64_t num_experts_ = 0;
};

}  // namespace

template <typename T>
void expert_norm(const ExpertNorm<T>& n) {
  using A = Accumulator<T>;
  const ExpertSlots<T>& a = n.slots;
  statistics(n);
  const Affine<T> affine(n.weight, n.bias, n.var, n.eps, a.num_experts * a.dim);
  const auto normalised = [&](const auto& tile, std::int64_t slot, int v) -> Vector<A> {
    const std::int64_t at = a.index[slot] * a.dim;
    const Vector<A> centered = tile.read(a.y + slot * a.dim, v) - tile.read(n.mean + at, v);
    return centered * tile.read(affine.scale.data() + at, v) + tile.read(affine.bias.data() + at, v);
  };
  for_each_block(a, [&](const auto& tile, std::int64_t begin, std::int64_t end) {
    constexpr int kVectors = kVectorsOf<decltype(tile)>;
    if (a.gate == nullptr) {
      for (std::int64_t s = begin * a.k; s < end * a.k; ++s) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) tile.write(n.out + s * a.dim, v, normalised(tile, s, v));
      }
      return;
    }
    for (std::int64_t i = begin; i < end; ++i) {
      Vector<A> sum[kVectors] = {};
      for (std::int64_t s = i * a.k; s < (i + 1) * a.k; ++s) {
        const A gate = widen(a.gate[s]);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sum[v] += gate * normalised(tile, s, v);
      }
      tile.write_all(n.out + i * a.dim, sum);
    }
  });
}

// With g the gradient of a slot's normalised row, c = y - mean and n the number of the expert's slots,
// dy = scale (g - sum g / n - c / (var + eps) sum(g c) / n); running statistics are constants: no sums then.
template <typename T>
void expert_norm_grad(const ExpertNormGrad<T>& n) {
  using A = Accumulator<T>;
  const ExpertSlots<T>& a = n.slots;
  const std::int64_t dim = a.dim, size = a.num_experts * dim;
  const bool combined = a.gate != nullptr;
  const Affine<T> affine(n.weight, n.bias, n.var, n.eps, size);
  const auto grad_of = [&](std::int64_t slot) { return n.grad_out + (combined ? slot / a.k : slot) * dim; };
  std::vector<A> along_grad(static_cast<std::size_t>(combined ? a.num_rows * a.k : 0), A{0});

  const auto sums = sums_by_expert(
      a, 2 * dim, [&](const auto& tile, std::int64_t e, std::int64_t first, const SlotOrder& order, A* sum) {
        constexpr int kVectors = kVectorsOf<decltype(tile)>;
        Vector<A> plain[kVectors] = {}, moment[kVectors] = {};
        for (std::int64_t at = order.begin(e); at < order.end(e); ++at) {
          const std::int64_t s = first + order.slot(at);
          const A gate = combined ? A{widen(a.gate[s])} : A{1};
          const T *grad = grad_of(s), *y = a.y + s * dim;
          Vector<A> dot = {};
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) {
            const Vector<A> raw = tile.read(grad, v), centered = tile.read(y, v) - tile.read(n.mean + e * dim, v);
            const Vector<A> unit = centered * tile.read(affine.scale.data() + e * dim, v);
            dot += raw * (unit + tile.read(affine.bias.data() + e * dim, v));
            plain[v] += gate * raw;
            moment[v] += gate * raw * centered;
          }
          if (combined) along_grad[s] += horizontal_sum<A>(dot);
        }
        tile.write_all(sum, plain);
        tile.write_all(sum + dim, moment);
      });
  for (std::size_t s = 0; s < along_grad.size(); ++s) n.grad_gate[s] = narrow<T>(along_grad[s]);

  std::vector<A> level(static_cast<std::size_t>(size)), slope(level.size());
  for (std::int64_t j = 0; j < size; ++j) {
    const std::int64_t e = j / dim;
    const A plain = sums[e * dim + j], moment = sums[(e + 1) * dim + j];
    n.grad_bias[j] = narrow<T>(plain);
    n.grad_weight[j] = narrow<T>(moment * affine.inverse[j]);
    const A share = n.count[e] > 1 ? -affine.scale[j] / static_cast<A>(n.count[e]) : A{0};
    level[j] = share * plain;
    slope[j] = share * affine.inverse[j] * affine.inverse[j] * moment;
  }
  const FewSlots<T> few(n);
  few.write_gradients();
  for_each_block(a, [&](const auto& tile, std::int64_t begin, std::int64_t end) {
    for (std::int64_t s = begin * a.k; s < end * a.k; ++s) {
      if (few.holds(a.index[s])) continue;
      const std::int64_t at = a.index[s] * dim;
      const A gate = combined ? A{widen(a.gate[s])} : A{1};
      const T* grad = grad_of(s);
#pragma GCC unroll 8
      for (int v = 0; v < kVectorsOf<decltype(tile)>; ++v) {
        const Vector<A> centered = tile.read(a.y + s * dim, v) - tile.read(n.mean + at, v);
        const Vector<A> own = gate * tile.read(grad, v) * tile.read(affine.scale.data() + at, v);
        const Vector<A> shared = tile.read(level.data() + at, v) + centered * tile.read(slope.data() + at, v);
        tile.write(n.grad_y + s * dim, v, own + shared);
      }
    }
  });
}

template void expert_norm(const ExpertNorm<float>&);
template void expert_norm(const ExpertNorm<double>&);
template void expert_norm(const ExpertNorm<bfloat16>&);
template void expert_norm_grad(const ExpertNormGrad<float>&);
template void expert_norm_grad(const ExpertNormGrad<double>&);
template void expert_norm_grad(const ExpertNormGrad<bfloat16>&);

}  // namespace gmoe::core::GMOE_ISA
