#include "runtime/packed_student.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <system_error>
#include <thread>

#include "runtime/votes.h"

namespace gmoe::runtime {
namespace {

constexpr std::int64_t kFewRows = 6;    // below, rows are cheaper one by one than grouped by expert
constexpr std::int64_t kMostRows = 32;  // above, rows are grouped in any case: they may be shared among threads
constexpr double kRowReading = 0.6;     // time per byte of weights: one row fetches them ahead, a block does not
constexpr double kHiddenDensity = 0.5;  // guess of how much of a hidden row its ReLU leaves
constexpr std::int64_t kBlockFloats = 1 << 16;  // a block's rows of the widest layer: 256 KiB
constexpr std::int64_t kMinBlockRows = 32, kMaxBlockRows = 256;
constexpr std::int64_t kWorkPerThread = 1 << 23;  // multiply-adds that take several times as long as starting a thread
constexpr float kEps = 1e-12f;

std::int64_t widest(const StudentFile& file) {
  std::int64_t columns = 0;
  for (const core::RoutedLayer& layer : file.layers) {
    columns = std::max({columns, layer.in, layer.out, layer.compared});
  }
  return columns;
}

std::int64_t work_of(const StudentFile& file) {
  std::int64_t work = 0;
  for (const core::RoutedLayer& layer : file.layers) {
    work += layer.in * layer.out * layer.k + layer.compared * layer.experts;
  }
  for (const core::RoutedLayer& projection : file.projections) work += projection.in * projection.out;
  return work;
}

std::int64_t weight_bytes(core::WeightType type) {
  return type == core::WeightType::float32 ? 4 : type == core::WeightType::bfloat16 ? 2 : 1;
}

// How much of dense rows is not zero, with the positions that come from the table, which are taken for dense.
double dense_share(const Rows& rows, std::int64_t inputs) {
  const std::int64_t size = rows.count * rows.columns;
  std::int64_t values = rows.count * (inputs - rows.columns);
  for (std::int64_t i = 0; i < size; ++i) values += rows.dense[i] != 0.0f ? 1 : 0;
  return static_cast<double>(values) / static_cast<double>(rows.count * inputs);
}

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

}  // namespace

// Buffers of one thread. The block's are made at the first batch.
struct PackedStudent::Workspace {
  explicit Workspace(const StudentFile& file) {
    std::int64_t experts = 1, k = 1;
    for (const core::RoutedLayer& layer : file.layers) {
      experts = std::max(experts, layer.experts);
      k = std::max(k, layer.k);
    }
    const auto columns = static_cast<std::size_t>(core::padded(widest(file)));
    for (std::vector<float>* row : {&x, &y, &projected, &logits, &input_value, &value}) row->resize(columns);
    input_column.resize(columns);
    column.resize(columns);
    cosine.resize(static_cast<std::size_t>(experts));
    gate.resize(static_cast<std::size_t>(k));
    index.resize(static_cast<std::size_t>(k));
  }

  void prepare_blocks(std::int64_t rows) {
    if (!block_x.empty()) return;
    const std::size_t floats = static_cast<std::size_t>(rows) * x.size();
    const std::size_t slots = static_cast<std::size_t>(rows) * gate.size();
    block_gate.resize(slots);
    block_index.resize(slots);
    block_slots.resize(slots);
    block_offsets.resize(cosine.size() + 1);
    for (std::vector<float>* block : {&block_input, &block_projected, &block_scaled, &block_y, &block_x}) {
      block->resize(floats);
    }
  }

  core::BlockScratch scratch() { return {block_scaled.data(), block_offsets.data(), block_slots.data()}; }

  std::vector<float> x, y, projected, logits, input_value, value, cosine, gate;
  std::vector<std::int32_t> input_column, column;
  std::vector<std::int64_t> index;
  std::vector<float> block_input, block_projected, block_x, block_y, block_scaled, block_gate;
  std::vector<std::int64_t> block_index, block_slots, block_offsets;
};

// A workspace for the time of a call: an idle one, or a new one where more calls run at once than ever before.
class PackedStudent::Lease {
 public:
  explicit Lease(const PackedStudent& student) : student_(student) {
    {
      const std::lock_guard lock(student_.mutex_);
      if (!student_.idle_.empty()) {
        work_ = std::move(student_.idle_.back());
        student_.idle_.pop_back();
      }
    }
    if (work_ == nullptr) work_ = std::make_unique<Workspace>(student_.file_);
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  ~Lease() {
    if (work_ == nullptr) return;
    try {
      const std::lock_guard lock(student_.mutex_);
      student_.idle_.push_back(std::move(work_));
    } catch (const std::bad_alloc&) {
      work_.reset();  // no room to keep it: the next call makes another
    }
  }
  Workspace& operator*() const { return *work_; }

 private:
  const PackedStudent& student_;
  std::unique_ptr<Workspace> work_;
};

PackedStudent::PackedStudent(const std::string& path)
    : file_(path),
      block_rows_(std::clamp(kBlockFloats / widest(file_), kMinBlockRows, kMaxBlockRows)),
      work_per_row_(work_of(file_)),
      num_threads_(std::max(1, static_cast<int>(std::thread::hardware_concurrency()))) {}

PackedStudent::~PackedStudent() = default;

// item(i, workspace) for i in [0, count), handed out one by one to threads that live for this call: a pool would not
// survive a fork, and a thread starts in a small part of the time it is worth starting for.
template <typename F>
void PackedStudent::in_parallel(std::int64_t count, std::int64_t rows_per_item, const F& item) const {
  const double worth = static_cast<double>(count * rows_per_item) * static_cast<double>(work_per_row_) / kWorkPerThread;
  const auto wanted = static_cast<std::int64_t>(
      std::min({static_cast<double>(num_threads_.load()), static_cast<double>(count), worth}));
  if (wanted <= 1) {
    const Lease lease(*this);
    for (std::int64_t i = 0; i < count; ++i) item(i, *lease);
    return;
  }
  std::atomic<std::int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  const auto run = [&] {
    try {
      const Lease lease(*this);
      for (std::int64_t i = next++; i < count; i = next++) item(i, *lease);
    } catch (...) {
      const std::lock_guard lock(error_mutex);
      if (error == nullptr) error = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(wanted - 1));
  try {
    while (static_cast<std::int64_t>(threads.size()) + 1 < wanted) threads.emplace_back(run);
  } catch (const std::system_error&) {
    // The system grants no more threads: those at hand share the work.
  }
  run();
  for (std::thread& thread : threads) thread.join();
  if (error != nullptr) std::rethrow_exception(error);
}

// Few rows cost what they read of the weights. One by one each reads its k experts, but only the weights of features it
// has and as narrow as they are stored; together they read every expert they need once, whole and as float32.
bool PackedStudent::one_by_one(const Rows& rows) const {
  if (rows.count < kFewRows) return true;
  if (rows.count > kMostRows) return false;
  const double features = rows.dense == nullptr ? 0 : dense_share(rows, file_.layers.front().in);
  double alone = 0, together = 0;
  for (std::size_t l = 0; l < file_.layers.size(); ++l) {
    const bool first = l % file_.depth() == 0;
    if (first && rows.dense == nullptr) continue;  // either way row by row
    for (const core::RoutedLayer* some : {&file_.layers[l], &file_.projections[l]}) {
      const auto values = static_cast<double>(some->in * some->out);
      const double density = first ? features : kHiddenDensity;
      alone += values * density * static_cast<double>(rows.count * some->k * weight_bytes(some->type));
      together += values * sizeof(float) * static_cast<double>(std::min(some->experts, rows.count * some->k));
    }
  }
  return kRowReading * alone < together;
}

void PackedStudent::predict(const Rows& rows, float* logits) const {
  if (one_by_one(rows)) {
    const Lease lease(*this);
    for (std::int64_t i = 0; i < rows.count; ++i) {
      row(rows, i, *lease, {logits + i * num_outputs(), nullptr, nullptr, file_.layers.size()});
    }
    return;
  }
  packed();  // made before the threads ask for it
  const std::int64_t blocks = (rows.count + block_rows_ - 1) / block_rows_;
  in_parallel(blocks, std::min(rows.count, block_rows_), [&](std::int64_t b, Workspace& work) {
    block(rows, b * block_rows_, std::min(rows.count, (b + 1) * block_rows_), work, logits);
  });
}

void PackedStudent::route(const Rows& rows, std::size_t layer, float* gate, std::int64_t* index) const {
  const std::int64_t k = file_.layers[layer].k;
  const std::int64_t blocks = (rows.count + block_rows_ - 1) / block_rows_;
  in_parallel(blocks, std::min(rows.count, block_rows_), [&](std::int64_t b, Workspace& work) {
    for (std::int64_t i = b * block_rows_; i < std::min(rows.count, (b + 1) * block_rows_); ++i) {
      row(rows, i, work, {nullptr, gate + i * k, index + i * k, layer});
    }
  });
}

const float* PackedStudent::position(const Rows& rows, std::int64_t i) const {
  if (rows.nodes == nullptr || rows.nodes[i] < 0) return nullptr;
  return file_.features.positions + rows.nodes[i] * file_.features.position_columns;
}

// Row i as the first layer takes it: features normalised, its position behind them, zeros for a node without one.
void PackedStudent::prepare(const Rows& rows, std::int64_t i, float* out) const {
  const Features& features = file_.features;
  const float* from = rows.dense + i * rows.columns;
  const float scale = feature_scale(features.normalize, from, features.columns);
  for (std::int64_t j = 0; j < features.columns; ++j) out[j] = from[j] * scale;
  std::copy(from + features.columns, from + rows.columns, out + features.columns);
  if (rows.columns == file_.layers.front().in) return;
  const float* place = position(rows, i);
  for (std::int64_t j = 0; j < features.position_columns; ++j) {
    out[features.columns + j] = place == nullptr ? 0.0f : place[j];
  }
}

// Row i with its non-zeros, which stay in the workspace: every member takes them.
PackedStudent::Input PackedStudent::take_row(const Rows& rows, std::int64_t i, Workspace& work) const {
  const std::int64_t in = file_.layers.front().in;
  const Features& features = file_.features;
  float* value = work.input_value.data();
  std::int32_t* column = work.input_column.data();
  if (rows.dense != nullptr) {
    const bool as_is = features.normalize == Normalize::none && rows.columns == in;
    if (!as_is) prepare(rows, i, work.x.data());
    const float* dense = as_is ? rows.dense + i * in : work.x.data();
    return {{value, column, core::compress(dense, in, value, column)}, dense};
  }
  const std::int64_t begin = rows.offsets[i];
  std::int64_t count = rows.offsets[i + 1] - begin;
  const auto features_end = std::lower_bound(rows.column + begin, rows.column + begin + count, features.columns);
  const float scale = feature_scale(features.normalize, rows.value + begin, features_end - (rows.column + begin));
  for (std::int64_t n = 0; n < count; ++n) {
    column[n] = rows.column[begin + n];
    value[n] = rows.value[begin + n] * (column[n] < features.columns ? scale : 1.0f);
  }
  if (const float* place = position(rows, i); place != nullptr) {
    for (std::int64_t j = 0; j < features.position_columns; ++j, ++count) {
      column[count] = static_cast<std::int32_t>(features.columns + j);
      value[count] = place[j];
    }
  }
  return {{value, column, count}, nullptr};
}

// The experts of layer l for one row: in work.gate and work.index.
void PackedStudent::choose(std::size_t l, const Input& x, Workspace& work) const {
  const core::RoutedLayer& layer = file_.layers[l];
  float *cosine = work.cosine.data(), *gate = work.gate.data();
  std::int64_t* index = work.index.data();
  if (const core::RoutedLayer* projection = file_.projection(l); projection != nullptr) {
    float one = 1;
    std::int64_t only = 0;
    core::routed_row(*projection, x.sparse, &one, &only, work.projected.data());
    core::route_row(layer, work.projected.data(), cosine, gate, index);
  } else if (x.dense != nullptr) {
    core::route_row(layer, x.dense, cosine, gate, index);
  } else {
    core::route_sparse_row(layer, x.sparse, cosine, gate, index);
  }
}

void PackedStudent::member_row(Input x, std::size_t first, Workspace& work, const Target& target) const {
  for (std::size_t l = first;; ++l) {
    const core::RoutedLayer& layer = file_.layers[l];
    choose(l, x, work);
    if (l == target.stop) {
      std::copy_n(work.gate.data(), layer.k, target.gate);
      std::copy_n(work.index.data(), layer.k, target.index);
      return;
    }
    const bool last = l + 1 == first + file_.depth();
    float* y = last ? target.logits : work.y.data();
    core::routed_row(layer, x.sparse, work.gate.data(), work.index.data(), y);
    if (last) return;
    float* value = work.value.data();
    std::int32_t* column = work.column.data();
    x = {{value, column, core::compress(y, layer.out, value, column)}, y};
  }
}

void PackedStudent::row(const Rows& rows, std::int64_t i, Workspace& work, const Target& target) const {
  const Input x = take_row(rows, i, work);
  if (target.logits == nullptr) return member_row(x, target.stop / file_.depth() * file_.depth(), work, target);
  if (file_.members == 1) return member_row(x, 0, work, target);
  for (std::size_t first = 0; first < file_.layers.size(); first += file_.depth()) {
    member_row(x, first, work, {work.logits.data(), nullptr, nullptr, target.stop});
    add_vote(work.logits.data(), num_outputs(), first == 0, target.logits);
  }
  end_votes(file_.members, num_outputs(), target.logits);
}

// Sparse rows meet the first layer one by one: grouping them would mean reading the weights of features they lack.
void PackedStudent::first_layer_sparse(const Rows& rows, std::int64_t begin, std::int64_t end, std::size_t first,
                                       Workspace& work, float* y) const {
  const core::RoutedLayer& layer = file_.layers[first];
  for (std::int64_t i = begin; i < end; ++i, y += core::padded(layer.out)) {
    const Input x = take_row(rows, i, work);
    choose(first, x, work);
    core::routed_row(layer, x.sparse, work.gate.data(), work.index.data(), y);
  }
}

// Dense rows as the first layer takes them.
const float* PackedStudent::dense_block(const Rows& rows, std::int64_t begin, std::int64_t end, Workspace& work) const {
  const std::int64_t in = file_.layers.front().in;
  if (file_.features.normalize == Normalize::none && rows.columns == in) return rows.dense + begin * in;
  float* x = work.block_input.data();
  for (std::int64_t i = begin; i < end; ++i) prepare(rows, i, x + (i - begin) * in);
  return x;
}

// The experts of layer l for each row of a block: in work.block_gate and work.block_index.
void PackedStudent::choose_block(std::size_t l, const float* x, std::int64_t stride, std::int64_t count,
                                 Workspace& work) const {
  const core::RoutedLayer& layer = packed().layers[l];
  float* gate = work.block_gate.data();
  std::int64_t* index = work.block_index.data();
  if (file_.projection(l) != nullptr) {
    const core::RoutedLayer& projection = packed().projections[l];
    std::fill_n(gate, count, 1.0f);
    std::fill_n(index, count, std::int64_t{0});
    core::routed_block(projection, x, stride, count, gate, index, work.scratch(), work.block_projected.data());
    x = work.block_projected.data();
    stride = core::padded(projection.out);
  }
  for (std::int64_t i = 0; i < count; ++i) {
    core::route_row(layer, x + i * stride, work.cosine.data(), gate + i * layer.k, index + i * layer.k);
  }
}

// Logits of one member, [end - begin, padded(num_outputs())]; `input` null: rows are sparse.
const float* PackedStudent::member_block(const Rows& rows, std::int64_t begin, std::int64_t end, const float* input,
                                         std::size_t first, Workspace& work) const {
  float *from = work.block_x.data(), *to = work.block_y.data();
  const float* x = input;
  std::int64_t stride = file_.layers[first].in;
  std::size_t l = first;
  if (input == nullptr) {
    first_layer_sparse(rows, begin, end, first, work, from);
    x = from;
    stride = core::padded(file_.layers[l++].out);
  }
  for (; l < first + file_.depth(); ++l) {
    const core::RoutedLayer& layer = packed().layers[l];
    choose_block(l, x, stride, end - begin, work);
    core::routed_block(layer, x, stride, end - begin, work.block_gate.data(), work.block_index.data(), work.scratch(),
                       to);
    x = to;
    stride = core::padded(layer.out);
    std::swap(from, to);
  }
  return x;
}

void PackedStudent::block(const Rows& rows, std::int64_t begin, std::int64_t end, Workspace& work,
                          float* logits) const {
  work.prepare_blocks(block_rows_);
  const float* input = rows.dense == nullptr ? nullptr : dense_block(rows, begin, end, work);
  const std::int64_t outputs = num_outputs();
  float* to = logits + begin * outputs;
  for (std::size_t first = 0; first < file_.layers.size(); first += file_.depth()) {
    const float* votes = member_block(rows, begin, end, input, first, work);
    for (std::int64_t i = 0; i < end - begin; ++i) {
      const float* vote = votes + i * core::padded(outputs);
      if (file_.members == 1) std::copy_n(vote, outputs, to + i * outputs);
      if (file_.members > 1) add_vote(vote, outputs, first == 0, to + i * outputs);
    }
  }
  if (file_.members == 1) return;
  for (std::int64_t i = 0; i < end - begin; ++i) end_votes(file_.members, outputs, to + i * outputs);
}

const PackedStudent::Packed& PackedStudent::packed() const {
  std::call_once(packed_once_, [this] {
    packed_.layers = file_.layers;
    packed_.projections = file_.projections;
    std::int64_t total = 0;
    const auto each = [this](const auto& f) {
      for (std::vector<core::RoutedLayer>* some : {&packed_.layers, &packed_.projections}) {
        for (core::RoutedLayer& layer : *some) {
          if (layer.out > 0) f(layer);
        }
      }
    };
    each([&](const core::RoutedLayer& layer) { total += core::panel_floats(layer); });
    packed_.panels.resize(static_cast<std::size_t>(total));
    float* panels = packed_.panels.data();
    each([&](core::RoutedLayer& layer) {
      core::pack_panels(layer, panels);
      layer.panels = panels;
      panels += core::panel_floats(layer);
    });
  });
  return packed_;
}

}  // namespace gmoe::runtime
