// A student layer for serving. One row: the products of its non-zero features with the chosen experts' rows, all
// outputs in registers, so that every weight is read once and a ReLU's zeros cost nothing; the floor is the time to
// stream k experts' used rows. Many rows: grouped by expert inside a block that stays in the second-level cache, then a
// register tile over panels of the weights, or of rows that are mostly zeros the products of a single row, one expert
// after another. All add in one order (experts ascending, bias first, features ascending, the gate and then an int8
// row's scale multiplied into the feature), so a row's result does not depend on its batch.
// Narrow weights are widened in registers; bfloat16 dot products would round differently, and run at half the rate of
// float32 on Zen 4.
#include "core/cpu/routed_layer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <type_traits>
#include <utility>

#include "core/counting_sort.h"
#include "core/cpu/top_k.h"
#include "core/simd.h"

namespace gmoe::core::GMOE_ISA {
namespace {

using V = FloatVector;
constexpr int kLane = kLanes<float>;
constexpr float kEps = 1e-12f;  // smallest norm, as in ops.cosine_topk

// Output vectors kept in registers: all but those for the operands, of 32 with AVX-512, else of 16.
#if defined(__AVX512F__)
constexpr int kRowVectors = 16, kTileRows = 6, kTileVectors = 4;
#else
constexpr int kRowVectors = 12, kTileRows = 4, kTileVectors = 3;
#endif

constexpr std::int64_t kFeaturesAhead = 8;  // rows of weights prefetched: zero features leave gaps that the
constexpr int kLineBytes = 64;              // hardware prefetcher does not follow

// The compiler fuses vector multiplications and additions where the processor can; scalars must round the same way.
inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// A row and those of its choices that are added now.
struct Row {
  const RoutedLayer& layer;
  const SparseRow& x;
  const float* gate;          // [k]
  const std::int64_t* index;  // [k]
  std::int64_t k;
  bool onto;  // what y holds, which is not the last of it
};

// The factor of feature n's weights for choice r.
template <typename W>
inline float feature(const Row& row, std::int64_t r, std::int64_t n) {
  const float value = row.gate[r] * row.x.value[n];
  if constexpr (!std::is_same_v<W, std::int8_t>) return value;
  return value * row.layer.weight_scale[row.index[r] * row.layer.in + row.x.column[n]];
}

// N vectors of outputs from `column` on; the last ends at column + width and may overlap the one before it.
template <typename W, int N>
void wide_columns(const Row& row, std::int64_t column, std::int64_t width, float* y) {
  const RoutedLayer& a = row.layer;
  const std::int64_t last = width - kLane;
  const auto offset = [last](int v) { return v == N - 1 ? last : std::int64_t{v} * kLane; };
  V sum[N] = {};
  if (row.onto) {
    for (int v = 0; v < N; ++v) sum[v] = load(y + column + offset(v));
  }
  for (std::int64_t r = 0; r < row.k; ++r) {
    const float gate = row.gate[r];
    const W* weight = static_cast<const W*>(a.weight) + row.index[r] * a.in * a.out + column;
    const float* bias = a.bias + row.index[r] * a.out + column;
    for (int v = 0; v < N; ++v) sum[v] += gate * load(bias + offset(v));
    for (std::int64_t n = 0; n < row.x.count; ++n) {
      const float value = feature<W>(row, r, n);
      const W* from = weight + row.x.column[n] * a.out;
      const W* ahead = weight + row.x.column[std::min(n + kFeaturesAhead, row.x.count - 1)] * a.out;
      for (int v = 0; v < N; v += kLineBytes / (kLane * sizeof(W))) __builtin_prefetch(ahead + v * kLane);
      for (int v = 0; v < N; ++v) sum[v] += value * load(from + offset(v));
    }
  }
  const bool rectify = a.relu && !row.onto;
  for (int v = 0; v < N; ++v) store(y + column + offset(v), rectify ? relu(sum[v]) : sum[v]);
}

// All N outputs of a layer narrower than one vector.
template <typename W, int N>
void narrow_columns(const Row& row, std::int64_t, std::int64_t, float* y) {
  const RoutedLayer& a = row.layer;
  float sum[N] = {};
  if (row.onto) std::copy_n(y, N, sum);
  for (std::int64_t r = 0; r < row.k; ++r) {
    const float gate = row.gate[r];
    const W* weight = static_cast<const W*>(a.weight) + row.index[r] * a.in * N;
    const float* bias = a.bias + row.index[r] * N;
    for (int c = 0; c < N; ++c) sum[c] = multiply_add(gate, bias[c], sum[c]);
    for (std::int64_t n = 0; n < row.x.count; ++n) {
      const float value = feature<W>(row, r, n);
      const W* from = weight + row.x.column[n] * N;
      for (int c = 0; c < N; ++c) sum[c] = multiply_add(value, widen(from[c]), sum[c]);
    }
  }
  for (int c = 0; c < N; ++c) y[c] = a.relu && !row.onto ? relu(sum[c]) : sum[c];
}

using Columns = void (*)(const Row&, std::int64_t, std::int64_t, float*);

template <typename W, int... I>
constexpr std::array<Columns, sizeof...(I)> wide_table(std::integer_sequence<int, I...>) {
  return {wide_columns<W, I + 1>...};
}
template <typename W, int... I>
constexpr std::array<Columns, sizeof...(I)> narrow_table(std::integer_sequence<int, I...>) {
  return {narrow_columns<W, I + 1>...};
}
template <typename W>
constexpr auto kWide = wide_table<W>(std::make_integer_sequence<int, kRowVectors>{});
template <typename W>
constexpr auto kNarrow = narrow_table<W>(std::make_integer_sequence<int, kLane - 1>{});

// Calls f with a null pointer to the layer's type of weights.
template <typename F>
void with_weight_type(WeightType type, const F& f) {
  switch (type) {
    case WeightType::float32: return f(static_cast<const float*>(nullptr));
    case WeightType::bfloat16: return f(static_cast<const bfloat16*>(nullptr));
    case WeightType::int8: return f(static_cast<const std::int8_t*>(nullptr));
  }
}

template <typename W>
void all_columns(const Row& row, float* y) {
  const std::int64_t out = row.layer.out;
  if (out < kLane) {
    kNarrow<W>[static_cast<std::size_t>(out - 1)](row, 0, out, y);
    return;
  }
  for (std::int64_t column = 0; column < out;) {
    // A remainder narrower than a vector joins the pass before it.
    const std::int64_t width = std::min<std::int64_t>(out - column, kRowVectors * kLane);
    const bool short_rest = out - column - width > 0 && out - column - width < kLane;
    const std::int64_t taken = short_rest ? width - kLane : width;
    kWide<W>[static_cast<std::size_t>(divide_up(taken, kLane) - 1)](row, column, taken, y);
    column += taken;
  }
}

void sort_by_expert(std::int64_t k, float* gate, std::int64_t* index) {
  for (std::int64_t r = 1; r < k; ++r) {
    for (std::int64_t s = r; s > 0 && index[s] < index[s - 1]; --s) {
      std::swap(index[s], index[s - 1]);
      std::swap(gate[s], gate[s - 1]);
    }
  }
}

constexpr std::int64_t kExpertsPerPass = 4;

void dot_products(const float* x, const float* memory, std::int64_t experts, std::int64_t dim, float* out) {
  std::int64_t e = 0;
  for (; e + kExpertsPerPass <= experts; e += kExpertsPerPass) {
    const float* rows[kExpertsPerPass];
    for (std::int64_t b = 0; b < kExpertsPerPass; ++b) rows[b] = memory + (e + b) * dim;
    dot<kExpertsPerPass>(x, rows, dim, out + e);
  }
  for (; e < experts; ++e) {
    const float* row = memory + e * dim;
    dot<1>(x, &row, dim, out + e);
  }
}

// The scores are cosines times the memories' norms, so they are not bounded by 1.
void gates_of(const RoutedLayer& a, float norm, float* cosine, float* gate, std::int64_t* index) {
  // Written so that a NaN norm stays NaN: fmax would drop it.
  const float scale = 1.0f / (norm < kEps ? kEps : norm);
  for (std::int64_t e = 0; e < a.experts; ++e) cosine[e] *= scale;
  select_top(cosine, a.experts, a.k, gate, index);
  const float top = gate[0];
  float sum = 0;
  for (std::int64_t r = 0; r < a.k; ++r) sum += gate[r] = std::exp(gate[r] - top);
  if (a.over_all) {
    sum = 0;
    for (std::int64_t e = 0; e < a.experts; ++e) sum += std::exp(cosine[e] - top);
  }
  for (std::int64_t r = 0; r < a.k; ++r) gate[r] /= sum;
}

// R rows times one panel of N vectors: y[rows[i]] += gate[i] * bias + scaled[i] W. Null is no bias.
template <int R, int N>
void tile(const float* scaled, std::int64_t in, const float* bias, const float* weight, const float* gate,
          float* const* y) {
  V sum[R][N];
  for (int i = 0; i < R; ++i) {
    for (int v = 0; v < N; ++v) sum[i][v] = load(y[i] + v * kLane);
    if (bias == nullptr) continue;
    for (int v = 0; v < N; ++v) sum[i][v] += gate[i] * load(bias + v * kLane);
  }
  for (std::int64_t j = 0; j < in; ++j, weight += N * kLane) {
    V column[N];
    for (int v = 0; v < N; ++v) column[v] = load(weight + v * kLane);
    for (int i = 0; i < R; ++i) {
      const float value = scaled[i * in + j];
      for (int v = 0; v < N; ++v) sum[i][v] += value * column[v];
    }
  }
  for (int i = 0; i < R; ++i) {
    for (int v = 0; v < N; ++v) store(y[i] + v * kLane, sum[i][v]);
  }
}

using Tile = void (*)(const float*, std::int64_t, const float*, const float*, const float*, float* const*);

template <int... I>
constexpr std::array<Tile, sizeof...(I)> tile_table(std::integer_sequence<int, I...>) {
  return {tile<I / kTileVectors + 1, I % kTileVectors + 1>...};
}
constexpr auto kTile = tile_table(std::make_integer_sequence<int, kTileRows * kTileVectors>{});

// Columns [first, in) of x in the rows of one expert, times their gates.
void scale_rows(const RoutedLayer& a, std::int64_t expert, const std::int64_t* slots, std::int64_t count,
                const float* gate, const float* x, std::int64_t stride, std::int64_t first, float* scaled) {
  const std::int64_t width = a.in - first;
  for (std::int64_t i = 0; i < count; ++i) {
    const float* from = x + slots[i] / a.k * stride;
    const float row_gate = gate[slots[i]];
    float* to = scaled + i * width;
    for (std::int64_t j = 0; j < width; ++j) to[j] = row_gate * from[j];
    if (a.weight_scale == nullptr) continue;
    const float* scale = a.weight_scale + expert * a.in + first;
    for (std::int64_t j = 0; j < width; ++j) to[j] *= scale[j];
  }
}

// Those columns, and maybe the bias before them, through all panels of the expert's weights.
void expert_rows(const RoutedLayer& a, std::int64_t expert, const std::int64_t* slots, std::int64_t count,
                 const float* gate, const float* scaled, std::int64_t first, bool with_bias, float* y) {
  const std::int64_t width = padded(a.out);
  const float* panels = a.panels + expert * (a.in + 1) * width;
  for (std::int64_t column = 0; column < width; column += kTileVectors * kLane) {
    const std::int64_t vectors = std::min<std::int64_t>(kTileVectors, (width - column) / kLane);
    const float* bias = panels + (a.in + 1) * column;
    for (std::int64_t i = 0; i < count; i += kTileRows) {
      const std::int64_t rows = std::min<std::int64_t>(kTileRows, count - i);
      float* to[kTileRows];
      float row_gate[kTileRows];
      for (std::int64_t t = 0; t < rows; ++t) {
        to[t] = y + slots[i + t] / a.k * width + column;
        row_gate[t] = gate[slots[i + t]];
      }
      kTile[static_cast<std::size_t>((rows - 1) * kTileVectors + vectors - 1)](
          scaled + i * (a.in - first), a.in - first, with_bias ? bias : nullptr, bias + (1 + first) * vectors * kLane,
          row_gate, to);
    }
  }
}

// Widened, but int8 without its scale, which goes into the features.
template <typename W>
void pack_panels_of(const RoutedLayer& a, const W* weight, float* panels) {
  const std::int64_t width = padded(a.out);
  for (std::int64_t e = 0; e < a.experts; ++e) {
    for (std::int64_t column = 0; column < width; column += kTileVectors * kLane) {
      const std::int64_t panel_width = std::min<std::int64_t>(kTileVectors * kLane, width - column);
      const std::int64_t used = std::clamp<std::int64_t>(a.out - column, 0, panel_width);
      std::copy_n(a.bias + e * a.out + column, used, panels);
      std::fill(panels + used, panels + panel_width, 0.0f);
      panels += panel_width;
      for (std::int64_t j = 0; j < a.in; ++j, panels += panel_width) {
        const W* from = weight + (e * a.in + j) * a.out + column;
        for (std::int64_t c = 0; c < used; ++c) panels[c] = widen(from[c]);
        std::fill(panels + used, panels + panel_width, 0.0f);
      }
    }
  }
}

// f(expert, slots, count) for every expert, after y was set to zero; then the layer's ReLU.
template <typename F>
void by_expert(const RoutedLayer& a, std::int64_t rows, const std::int64_t* index, const BlockScratch& scratch,
               float* y, const F& f) {
  const std::int64_t size = rows * padded(a.out);
  std::fill(y, y + size, 0.0f);
  counting_sort(index, rows * a.k, a.experts, scratch.offsets, scratch.slots);  // slots: row * k + choice
  for (std::int64_t e = 0; e < a.experts; ++e) {
    f(e, scratch.slots + scratch.offsets[e], scratch.offsets[e + 1] - scratch.offsets[e]);
  }
  if (a.relu) {
    for (std::int64_t i = 0; i < size; i += kLane) store(y + i, relu(load(y + i)));
  }
}

}  // namespace

std::int64_t compress(const float* x, std::int64_t n, float* value, std::int32_t* column) {
  return compress(x, n, nullptr, value, column);
}

void route_row(const RoutedLayer& a, const float* x, float* cosine, float* gate, std::int64_t* index) {
  if (a.memory == nullptr) {
    gate[0] = 1.0f;
    index[0] = 0;
    return;
  }
  dot_products(x, a.memory, a.experts, a.compared, cosine);
  gates_of(a, std::sqrt(squared_norm(x, a.compared)), cosine, gate, index);
}

void route_sparse_row(const RoutedLayer& a, const SparseRow& x, float* cosine, float* gate, std::int64_t* index) {
  if (a.memory == nullptr) {
    gate[0] = 1.0f;
    index[0] = 0;
    return;
  }
  float squares = 0;
  for (std::int64_t n = 0; n < x.count; ++n) squares += x.value[n] * x.value[n];
  for (std::int64_t e = 0; e < a.experts; ++e) {
    const float* row = a.memory + e * a.in;
    float sum = 0;
    for (std::int64_t n = 0; n < x.count; ++n) sum += x.value[n] * row[x.column[n]];
    cosine[e] = sum;
  }
  gates_of(a, std::sqrt(squares), cosine, gate, index);
}

void routed_row(const RoutedLayer& a, const SparseRow& x, float* gate, std::int64_t* index, float* y) {
  sort_by_expert(a.k, gate, index);
  const Row row{a, x, gate, index, a.k, false};
  with_weight_type(a.type, [&](auto* kind) { all_columns<std::remove_cvref_t<decltype(*kind)>>(row, y); });
}

void pack_panels(const RoutedLayer& a, float* panels) {
  with_weight_type(a.type, [&](auto* kind) { pack_panels_of(a, static_cast<decltype(kind)>(a.weight), panels); });
}

void routed_block(const RoutedLayer& a, const float* x, std::int64_t x_stride, std::int64_t rows, const float* gate,
                  const std::int64_t* index, const BlockScratch& scratch, float* y) {
  by_expert(a, rows, index, scratch, y, [&](std::int64_t e, const std::int64_t* slots, std::int64_t count) {
    scale_rows(a, e, slots, count, gate, x, x_stride, 0, scratch.scaled);
    expert_rows(a, e, slots, count, gate, scratch.scaled, 0, true, y);
  });
}

void routed_sparse_block(const RoutedLayer& a, const SparseRows& x, std::int64_t rows, const float* gate,
                         const std::int64_t* index, const BlockScratch& scratch, float* y) {
  const std::int64_t first = a.in - x.tail_columns;
  by_expert(a, rows, index, scratch, y, [&](std::int64_t e, const std::int64_t* slots, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t slot = slots[i], row = slot / a.k, begin = x.offsets[row];
      const SparseRow values{x.value + begin, x.column + begin, x.offsets[row + 1] - begin};
      const Row one{a, values, gate + slot, index + slot, 1, true};
      with_weight_type(
          a.type, [&](auto* kind) { all_columns<std::remove_cvref_t<decltype(*kind)>>(one, y + row * padded(a.out)); });
    }
    if (x.tail_columns == 0) return;
    scale_rows(a, e, slots, count, gate, x.tail, x.tail_columns, first, scratch.scaled);
    expert_rows(a, e, slots, count, gate, scratch.scaled, first, false, y);
  });
}

}  // namespace gmoe::core::GMOE_ISA
