#include "runtime/packed_student.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <system_error>
#include <thread>

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
  for (const core::RoutedLayer& layer : file.layers) columns = std::max({columns, layer.in, layer.out});
  return columns;
}

std::int64_t work_of(const StudentFile& file) {
  std::int64_t work = 0;
  for (const core::RoutedLayer& layer : file.layers) work += layer.in * (layer.out * layer.k + layer.experts);
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
    x.resize(columns);
    y.resize(columns);
    value.resize(columns);
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
    block_scaled.resize(floats);
    block_y.resize(floats);
    block_x.resize(floats);
  }

  std::vector<float> x, y, value, cosine, gate;
  std::vector<std::int32_t> column;
  std::vector<std::int64_t> index;
  std::vector<float> block_x, block_y, block_scaled, block_gate;
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
  double alone = 0, together = 0;
  for (std::size_t l = 0; l < file_.layers.size(); ++l) {
    const core::RoutedLayer& layer = file_.layers[l];
    const auto values = static_cast<double>(layer.in * layer.out);
    if (l == 0 && rows.dense == nullptr) continue;  // either way row by row
    const double density = l == 0 ? dense_share(rows, layer.in) : kHiddenDensity;
    alone += values * density * static_cast<double>(rows.count * layer.k * weight_bytes(layer.type));
    together += values * sizeof(float) * static_cast<double>(std::min(layer.experts, rows.count * layer.k));
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
  packed_layers();  // made before the threads ask for them
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

// The non-zeros of row i; its routing is in work.gate and work.index afterwards.
void PackedStudent::take_row(const Rows& rows, std::int64_t i, Workspace& work, core::SparseRow* x) const {
  const core::RoutedLayer& layer = file_.layers.front();
  const Features& features = file_.features;
  float* value = work.value.data();
  std::int32_t* column = work.column.data();
  if (rows.dense != nullptr) {
    const bool as_is = features.normalize == Normalize::none && rows.columns == layer.in;
    if (!as_is) prepare(rows, i, work.x.data());
    const float* dense = as_is ? rows.dense + i * layer.in : work.x.data();
    core::route_row(layer, dense, work.cosine.data(), work.gate.data(), work.index.data());
    *x = {value, column, core::compress(dense, layer.in, value, column)};
    return;
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
  *x = {value, column, count};
  core::route_sparse_row(layer, *x, work.cosine.data(), work.gate.data(), work.index.data());
}

void PackedStudent::row(const Rows& rows, std::int64_t i, Workspace& work, const Target& target) const {
  core::SparseRow x{};
  take_row(rows, i, work, &x);
  for (std::size_t l = 0;; ++l) {
    const core::RoutedLayer& layer = file_.layers[l];
    if (l == target.stop) {
      std::copy_n(work.gate.data(), layer.k, target.gate);
      std::copy_n(work.index.data(), layer.k, target.index);
      return;
    }
    const bool last = l + 1 == file_.layers.size();
    float* y = last ? target.logits : work.y.data();
    core::routed_row(layer, x, work.gate.data(), work.index.data(), y);
    if (last) return;
    const core::RoutedLayer& next = file_.layers[l + 1];
    core::route_row(next, y, work.cosine.data(), work.gate.data(), work.index.data());
    x.count = core::compress(y, next.in, work.value.data(), work.column.data());
  }
}

// Sparse rows meet the first layer one by one: grouping them would mean reading the weights of features they lack.
void PackedStudent::first_layer_sparse(const Rows& rows, std::int64_t begin, std::int64_t end, Workspace& work,
                                       float* y) const {
  const core::RoutedLayer& layer = file_.layers.front();
  core::SparseRow x{};
  for (std::int64_t i = begin; i < end; ++i, y += core::padded(layer.out)) {
    take_row(rows, i, work, &x);
    core::routed_row(layer, x, work.gate.data(), work.index.data(), y);
  }
}

void PackedStudent::block(const Rows& rows, std::int64_t begin, std::int64_t end, Workspace& work,
                          float* logits) const {
  const std::vector<core::RoutedLayer>& layers = packed_layers();
  const std::int64_t count = end - begin;
  work.prepare_blocks(block_rows_);
  float *from = work.block_x.data(), *to = work.block_y.data();
  const float* x = from;
  std::int64_t stride = layers.front().in;
  std::size_t first = 0;
  if (rows.dense == nullptr) {
    first_layer_sparse(rows, begin, end, work, from);
    stride = core::padded(layers.front().out);
    first = 1;
  } else if (file_.features.normalize == Normalize::none && rows.columns == stride) {
    x = rows.dense + begin * stride;
  } else {
    for (std::int64_t i = begin; i < end; ++i) prepare(rows, i, from + (i - begin) * stride);
  }
  for (std::size_t l = first; l < layers.size(); ++l) {
    const core::RoutedLayer& layer = layers[l];
    for (std::int64_t i = 0; i < count; ++i) {
      core::route_row(layer, x + i * stride, work.cosine.data(), work.block_gate.data() + i * layer.k,
                      work.block_index.data() + i * layer.k);
    }
    core::routed_block(layer, x, stride, count, work.block_gate.data(), work.block_index.data(),
                       {work.block_scaled.data(), work.block_offsets.data(), work.block_slots.data()}, to);
    x = to;
    stride = core::padded(layer.out);
    std::swap(from, to);
  }
  for (std::int64_t i = 0; i < count; ++i) {
    std::copy_n(x + i * stride, num_outputs(), logits + (begin + i) * num_outputs());
  }
}

const std::vector<core::RoutedLayer>& PackedStudent::packed_layers() const {
  std::call_once(packed_once_, [this] {
    std::int64_t total = 0;
    for (const core::RoutedLayer& layer : file_.layers) total += core::panel_floats(layer);
    panels_.resize(static_cast<std::size_t>(total));
    packed_layers_ = file_.layers;
    float* panels = panels_.data();
    for (core::RoutedLayer& layer : packed_layers_) {
      core::pack_panels(layer, panels);
      layer.panels = panels;
      panels += core::panel_floats(layer);
    }
  });
  return packed_layers_;
}

}  // namespace gmoe::runtime
