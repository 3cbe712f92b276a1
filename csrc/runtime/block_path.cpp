#include "runtime/block_path.h"

#include <algorithm>
#include <utility>

namespace gmoe::runtime {
namespace {

constexpr std::int64_t kBlockFloats = 1 << 16;  // a block's rows of the widest layer: 256 KiB
constexpr std::int64_t kMinBlockRows = 32, kMaxBlockRows = 256;
// Share of non-zeros from which on dense rows go through the panels; chosen between Cora (0.05) and Photo (0.4).
constexpr double kSparseBelow = 0.15;

}  // namespace

BlockBuffers::BlockBuffers(const RowBuffers& row, std::int64_t rows) {
  const std::size_t floats = static_cast<std::size_t>(rows) * row.x.size();
  const std::size_t chosen = static_cast<std::size_t>(rows) * row.gate.size();
  for (std::vector<float>* block : {&input, &projected, &x, &y, &scaled}) block->resize(floats);
  gate.resize(chosen);
  index.resize(chosen);
  slots.resize(chosen);
  offsets.resize(row.cosine.size() + 1);
}

BlockPath::BlockPath(const StudentFile& file, const RowPath& row_path)
    : file_(file),
      row_path_(row_path),
      rows_per_block_(std::clamp(kBlockFloats / file.widest(), kMinBlockRows, kMaxBlockRows)) {}

void BlockPath::pack() const {
  std::call_once(packed_once_, [this] {
    layers_ = file_.layers;
    projections_ = file_.projections;
    std::int64_t total = 0;
    const auto each = [this](const auto& f) {
      for (std::vector<core::RoutedLayer>* some : {&layers_, &projections_}) {
        for (core::RoutedLayer& layer : *some) {
          if (layer.out > 0) f(layer);
        }
      }
    };
    each([&](const core::RoutedLayer& layer) { total += core::panel_floats(layer); });
    panels_.resize(static_cast<std::size_t>(total));
    float* panels = panels_.data();
    each([&](core::RoutedLayer& layer) {
      core::pack_panels(layer, panels);
      layer.panels = panels;
      panels += core::panel_floats(layer);
    });
  });
}

// Dense rows as the first layer takes them.
const float* BlockPath::dense_input(const Rows& rows, std::int64_t begin, std::int64_t end,
                                    BlockBuffers& buffers) const {
  const std::int64_t in = file_.num_inputs();
  if (is_prepared(file_, rows)) return rows.dense + begin * in;
  float* x = buffers.input.data();
  for (std::int64_t i = begin; i < end; ++i) prepare_row(file_, rows, i, x + (i - begin) * in);
  return x;
}

// The experts of layer l for each row of a block: in buffers.gate and buffers.index.
void BlockPath::choose(std::size_t l, const float* x, std::int64_t stride, std::int64_t count, RowBuffers& row_buffers,
                       BlockBuffers& buffers) const {
  const core::RoutedLayer& layer = layers_[l];
  float* gate = buffers.gate.data();
  std::int64_t* index = buffers.index.data();
  if (file_.projection(l) != nullptr) {
    const core::RoutedLayer& projection = projections_[l];
    std::fill_n(gate, count, 1.0f);
    std::fill_n(index, count, std::int64_t{0});
    core::routed_block(projection, x, stride, count, gate, index, buffers.scratch(), buffers.projected.data());
    x = buffers.projected.data();
    stride = core::padded(projection.out);
  }
  for (std::int64_t i = 0; i < count; ++i) {
    core::route_row(layer, x + i * stride, row_buffers.cosine.data(), gate + i * layer.k, index + i * layer.k);
  }
}

// y[end - begin, padded(out)] after layer l, the first of a member, by the rows' non-zero features and their positions,
// which rarely have a zero.
void BlockPath::sparse_layer(const Rows& rows, std::int64_t begin, std::int64_t end, std::size_t l,
                             RowBuffers& row_buffers, BlockBuffers& buffers, float* y) const {
  const std::int64_t k = layers_[l].k, features = file_.features.columns, positions = file_.num_inputs() - features;
  buffers.value.clear();
  buffers.column.clear();
  buffers.row.assign(1, 0);
  buffers.tail.assign(static_cast<std::size_t>((end - begin) * positions), 0.0f);
  for (std::int64_t i = begin; i < end; ++i) {
    const core::SparseRow x = row_path_.start(rows, i, l, row_buffers);
    const std::int64_t split = std::lower_bound(x.column, x.column + x.count, features) - x.column;
    buffers.value.insert(buffers.value.end(), x.value, x.value + split);
    buffers.column.insert(buffers.column.end(), x.column, x.column + split);
    for (std::int64_t n = split; n < x.count; ++n) {
      buffers.tail[static_cast<std::size_t>((i - begin) * positions + x.column[n] - features)] = x.value[n];
    }
    buffers.row.push_back(static_cast<std::int64_t>(buffers.value.size()));
    std::copy_n(row_buffers.gate.data(), k, buffers.gate.data() + (i - begin) * k);
    std::copy_n(row_buffers.index.data(), k, buffers.index.data() + (i - begin) * k);
  }
  const core::SparseRows x{buffers.row.data(), buffers.value.data(), buffers.column.data(), buffers.tail.data(),
                           positions};
  core::routed_sparse_block(layers_[l], x, end - begin, buffers.gate.data(), buffers.index.data(), buffers.scratch(),
                            y);
}

// Logits of one member, [end - begin, padded(num_outputs)]; `input` is null for sparse rows.
const float* BlockPath::member(const Rows& rows, std::int64_t begin, std::int64_t end, const float* input,
                               std::size_t first, RowBuffers& row_buffers, BlockBuffers& buffers) const {
  float *from = buffers.x.data(), *to = buffers.y.data();
  const float* x = input;
  std::int64_t stride = file_.num_inputs();
  std::size_t l = first;
  if (input == nullptr) {
    sparse_layer(rows, begin, end, l, row_buffers, buffers, from);
    x = from;
    stride = core::padded(file_.layers[l].out);
    ++l;
  }
  for (; l < first + file_.depth(); ++l) {
    choose(l, x, stride, end - begin, row_buffers, buffers);
    core::routed_block(layers_[l], x, stride, end - begin, buffers.gate.data(), buffers.index.data(), buffers.scratch(),
                       to);
    x = to;
    stride = core::padded(layers_[l].out);
    std::swap(from, to);
  }
  return x;
}

void BlockPath::predict(const Rows& rows, std::int64_t begin, std::int64_t end, RowBuffers& row_buffers,
                        BlockBuffers& buffers, float* logits) const {
  const bool sparse = rows.dense == nullptr || dense_share(file_, rows, begin, end) < kSparseBelow;
  const float* input = sparse ? nullptr : dense_input(rows, begin, end, buffers);
  const std::int64_t count = end - begin, outputs = file_.layers.back().out;
  for (std::size_t first = 0; first < file_.layers.size(); first += file_.depth()) {
    const float* votes = member(rows, begin, end, input, first, row_buffers, buffers);
    for (std::int64_t i = 0; i < count; ++i) {
      const float* vote = votes + i * core::padded(outputs);
      if (file_.members == 1) std::copy_n(vote, outputs, logits + i * outputs);
      if (file_.members > 1) add_vote(vote, outputs, first == 0, logits + i * outputs);
    }
  }
  if (file_.members == 1) return;
  for (std::int64_t i = 0; i < count; ++i) end_votes(file_.members, outputs, logits + i * outputs);
}

}  // namespace gmoe::runtime
