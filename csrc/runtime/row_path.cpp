#include "runtime/row_path.h"

#include <algorithm>
#include <cmath>

namespace gmoe::runtime {
namespace {

constexpr float kEps = 1e-12f;

// What a row's features are multiplied by.
float feature_scale(Normalize normalize, const float* value, std::int64_t n) {
  if (normalize == Normalize::none) return 1.0f;
  float size = 0;
  if (normalize == Normalize::row_l1) {
    for (std::int64_t j = 0; j < n; ++j) size += std::fabs(value[j]);
  } else {
    for (std::int64_t j = 0; j < n; ++j) size += value[j] * value[j];
    size = std::sqrt(size);
  }
  return 1.0f / (size < kEps ? kEps : size);  // a NaN stays a NaN
}

const float* position(const Features& features, const Rows& rows, std::int64_t i) {
  if (rows.nodes == nullptr || rows.nodes[i] < 0) return nullptr;
  return features.positions + rows.nodes[i] * features.position_columns;
}

}  // namespace

bool is_prepared(const StudentFile& file, const Rows& rows) {
  return file.features.normalize == Normalize::none && rows.columns == file.num_inputs();
}

double dense_share(const StudentFile& file, const Rows& rows, std::int64_t begin, std::int64_t end) {
  std::int64_t values = (end - begin) * (file.num_inputs() - rows.columns);
  for (std::int64_t j = begin * rows.columns; j < end * rows.columns; ++j) values += rows.dense[j] != 0.0f ? 1 : 0;
  return static_cast<double>(values) / static_cast<double>((end - begin) * file.num_inputs());
}

void prepare_row(const StudentFile& file, const Rows& rows, std::int64_t i, float* out) {
  const Features& features = file.features;
  const float* from = rows.dense + i * rows.columns;
  const float scale = feature_scale(features.normalize, from, features.columns);
  for (std::int64_t j = 0; j < features.columns; ++j) out[j] = from[j] * scale;
  std::copy(from + features.columns, from + rows.columns, out + features.columns);
  if (rows.columns == file.num_inputs()) return;
  const float* place = position(features, rows, i);
  for (std::int64_t j = 0; j < features.position_columns; ++j) {
    out[features.columns + j] = place == nullptr ? 0.0f : place[j];
  }
}

void add_vote(const float* logits, std::int64_t classes, bool first, float* sum) {
  const float top = *std::max_element(logits, logits + classes);
  float total = 0;
  for (std::int64_t c = 0; c < classes; ++c) total += std::exp(logits[c] - top);
  const float size = top + std::log(total);
  for (std::int64_t c = 0; c < classes; ++c) {
    const float vote = logits[c] - size;
    if (first) {
      sum[c] = vote;
      continue;
    }
    const float more = vote > sum[c] ? vote : sum[c], less = vote > sum[c] ? sum[c] : vote;
    sum[c] = more + std::log1p(std::exp(less - more));
  }
}

void end_votes(std::int64_t members, std::int64_t classes, float* sum) {
  const float all = std::log(static_cast<float>(members));
  for (std::int64_t c = 0; c < classes; ++c) sum[c] -= all;
}

RowBuffers::RowBuffers(const StudentFile& file) {
  std::int64_t experts = 1, k = 1;
  for (const core::RoutedLayer& layer : file.layers) {
    experts = std::max(experts, layer.experts);
    k = std::max(k, layer.k);
  }
  const auto columns = static_cast<std::size_t>(core::padded(file.widest()));
  for (std::vector<float>* row : {&x, &y, &projected, &logits, &input_value, &value}) row->resize(columns);
  input_column.resize(columns);
  column.resize(columns);
  cosine.resize(static_cast<std::size_t>(experts));
  gate.resize(static_cast<std::size_t>(k));
  index.resize(static_cast<std::size_t>(k));
}

// Row i with its non-zeros, which stay in the buffers: every member takes them.
RowPath::Input RowPath::take(const Rows& rows, std::int64_t i, RowBuffers& buffers) const {
  const Features& features = file_.features;
  float* value = buffers.input_value.data();
  std::int32_t* column = buffers.input_column.data();
  if (rows.dense != nullptr) {
    const bool as_is = is_prepared(file_, rows);
    if (!as_is) prepare_row(file_, rows, i, buffers.x.data());
    const float* dense = as_is ? rows.dense + i * rows.columns : buffers.x.data();
    return {{value, column, core::compress(dense, file_.num_inputs(), value, column)}, dense};
  }
  const std::int64_t begin = rows.offsets[i];
  std::int64_t count = rows.offsets[i + 1] - begin;
  const auto features_end = std::lower_bound(rows.column + begin, rows.column + begin + count, features.columns);
  const float scale = feature_scale(features.normalize, rows.value + begin, features_end - (rows.column + begin));
  for (std::int64_t n = 0; n < count; ++n) {
    column[n] = rows.column[begin + n];
    value[n] = rows.value[begin + n] * (column[n] < features.columns ? scale : 1.0f);
  }
  if (const float* place = position(features, rows, i); place != nullptr) {
    for (std::int64_t j = 0; j < features.position_columns; ++j, ++count) {
      column[count] = static_cast<std::int32_t>(features.columns + j);
      value[count] = place[j];
    }
  }
  return {{value, column, count}, nullptr};
}

// The experts of layer l for one row: in buffers.gate and buffers.index.
void RowPath::choose(std::size_t l, const Input& x, RowBuffers& buffers) const {
  const core::RoutedLayer& layer = file_.layers[l];
  float *cosine = buffers.cosine.data(), *gate = buffers.gate.data();
  std::int64_t* index = buffers.index.data();
  if (const core::RoutedLayer* projection = file_.projection(l); projection != nullptr) {
    float one = 1;
    std::int64_t only = 0;
    core::routed_row(*projection, x.sparse, &one, &only, buffers.projected.data());
    core::route_row(layer, buffers.projected.data(), cosine, gate, index);
  } else if (x.dense != nullptr) {
    core::route_row(layer, x.dense, cosine, gate, index);
  } else {
    core::route_sparse_row(layer, x.sparse, cosine, gate, index);
  }
}

void RowPath::apply(std::size_t l, const Input& x, RowBuffers& buffers, float* y) const {
  choose(l, x, buffers);
  core::routed_row(file_.layers[l], x.sparse, buffers.gate.data(), buffers.index.data(), y);
}

// What layer l hands to the next one.
RowPath::Input RowPath::hidden(std::size_t l, const Input& x, RowBuffers& buffers) const {
  float *y = buffers.y.data(), *value = buffers.value.data();
  std::int32_t* column = buffers.column.data();
  apply(l, x, buffers, y);
  return {{value, column, core::compress(y, file_.layers[l].out, value, column)}, y};
}

void RowPath::member(Input x, std::size_t first, RowBuffers& buffers, float* logits) const {
  const std::size_t last = first + file_.depth() - 1;
  for (std::size_t l = first; l < last; ++l) x = hidden(l, x, buffers);
  apply(last, x, buffers, logits);
}

void RowPath::predict(const Rows& rows, std::int64_t i, RowBuffers& buffers, float* logits) const {
  const Input x = take(rows, i, buffers);
  if (file_.members == 1) return member(x, 0, buffers, logits);
  const std::int64_t outputs = file_.layers.back().out;
  for (std::size_t first = 0; first < file_.layers.size(); first += file_.depth()) {
    member(x, first, buffers, buffers.logits.data());
    add_vote(buffers.logits.data(), outputs, first == 0, logits);
  }
  end_votes(file_.members, outputs, logits);
}

void RowPath::route(const Rows& rows, std::int64_t i, std::size_t layer, RowBuffers& buffers, float* gate,
                    std::int64_t* index) const {
  Input x = take(rows, i, buffers);
  for (std::size_t l = layer / file_.depth() * file_.depth(); l < layer; ++l) x = hidden(l, x, buffers);
  choose(layer, x, buffers);
  std::copy_n(buffers.gate.data(), file_.layers[layer].k, gate);
  std::copy_n(buffers.index.data(), file_.layers[layer].k, index);
}

core::SparseRow RowPath::start(const Rows& rows, std::int64_t i, std::size_t l, RowBuffers& buffers) const {
  const Input x = take(rows, i, buffers);
  choose(l, x, buffers);
  return x.sparse;
}

}  // namespace gmoe::runtime
