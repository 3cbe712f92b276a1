#include "runtime/packed_student.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <numeric>
#include <optional>
#include <system_error>
#include <thread>

#include "core/cpu/check_index.h"

namespace gmoe::runtime {
namespace {

constexpr std::int64_t kFewRows = 6;    // fewer rows are cheaper one by one than grouped by expert
constexpr std::int64_t kMostRows = 32;  // more rows are always grouped, and may be shared among threads
constexpr double kRowReading = 0.6;     // relative time per byte of weights: one row prefetches them, a block does not
constexpr double kHiddenDensity = 0.5;  // assumed share of a hidden row that its ReLU leaves
constexpr std::int64_t kFewestRowsOfThread = 32;  // to read the weights for
constexpr double kWorkPerThread = 1 << 23;        // multiply-adds that take much longer than starting a thread
constexpr std::int64_t kRowsAtOnce = 4096;        // whose probabilities top_classes keeps at a time

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

void check_columns(const StudentFile& file, const Rows& rows) {
  const Features& features = file.features;
  const std::int64_t in = file.layers.front().in;
  std::string got = "[";
  got += std::to_string(rows.count) + ", " + std::to_string(rows.columns);
  got += ']';
  if (rows.nodes != nullptr) {
    if (features.positions == nullptr) refuse("'nodes' given, but this student has no position table");
    if (rows.columns != features.columns) {
      refuse("expected 'x' of shape [N, " + std::to_string(features.columns) + "] beside 'nodes', got " + got);
    }
    return;
  }
  if (rows.columns == in) return;
  if (rows.columns == features.columns && features.position_columns > 0) {
    refuse("this student needs positions: pass 'nodes' (-1 for an unknown node), or 'x' with " + std::to_string(in) +
           " columns, positions last");
  }
  refuse("expected 'x' of shape [N, " + std::to_string(in) + "], got " + got);
}

void check_sparse(const Rows& rows) {
  if (core::find_bad_offset(rows.offsets, rows.count, rows.stored) >= 0) {
    refuse("x.indptr does not rise from 0 to the " + std::to_string(rows.stored) + " stored values");
  }
  if (core::find_bad_index(rows.column, rows.stored, rows.columns) >= 0) {
    refuse("x.indices leave [0, " + std::to_string(rows.columns) + ")");
  }
  for (std::int64_t i = 0; i < rows.count; ++i) {
    for (std::int64_t n = rows.offsets[i] + 1; n < rows.offsets[i + 1]; ++n) {
      if (rows.column[n] <= rows.column[n - 1]) {
        refuse("the columns of row " + std::to_string(i) + " of 'x' do not ascend; sort them and add up duplicates " +
               "(SciPy: x.sum_duplicates())");
      }
    }
  }
}

double work_of(const StudentFile& file) {
  std::int64_t work = 0;
  for (const core::RoutedLayer& layer : file.layers) {
    work += layer.in * layer.out * layer.k + layer.compared * layer.experts;
  }
  for (const core::RoutedLayer& projection : file.projections) work += projection.in * projection.out;
  return static_cast<double>(work);
}

std::int64_t weight_bytes(core::WeightType type) {
  return type == core::WeightType::float32 ? 4 : type == core::WeightType::bfloat16 ? 2 : 1;
}

void softmax_row(float* row, std::int64_t n) {
  const float top = *std::max_element(row, row + n);
  float sum = 0;
  for (std::int64_t c = 0; c < n; ++c) sum += row[c] = std::exp(row[c] - top);
  for (std::int64_t c = 0; c < n; ++c) row[c] /= sum;
}

Rows part(const Rows& rows, std::int64_t begin, std::int64_t count) {
  Rows some = rows;
  some.count = count;
  if (rows.dense != nullptr) some.dense += begin * rows.columns;
  if (rows.offsets != nullptr) some.offsets += begin;  // they may start anywhere: columns and values stay whole
  if (rows.nodes != nullptr) some.nodes += begin;
  return some;
}

}  // namespace

// ---- checks

NodeError::NodeError(std::int64_t at, std::int64_t got, std::int64_t end)
    : std::out_of_range("'nodes' at position " + std::to_string(at) + " is " + std::to_string(got) +
                        ", expected -1 <= node < " + std::to_string(end)),
      position(at),
      value(got),
      bound(end) {}

void check_rows(const StudentFile& file, const Rows& rows) {
  check_columns(file, rows);
  if (rows.dense == nullptr && rows.offsets != nullptr) check_sparse(rows);
  if (rows.nodes == nullptr) return;
  for (std::int64_t i = 0; i < rows.count; ++i) {
    if (rows.nodes[i] < -1 || rows.nodes[i] >= file.features.position_nodes) {
      throw NodeError(i, rows.nodes[i], file.features.position_nodes);
    }
  }
}

void check_layer(const StudentFile& file, std::int64_t layer) {
  const auto layers = static_cast<std::int64_t>(file.layers.size());
  if (layer < 0 || layer >= layers) {
    refuse("expected 'layer' in [0, " + std::to_string(layers) + "), got " + std::to_string(layer));
  }
}

void check_routed_layer(const StudentFile& file, std::int64_t layer) {
  check_layer(file, layer);
  if (file.layers[static_cast<std::size_t>(layer)].memory == nullptr) {
    refuse("layer " + std::to_string(layer) + " has one expert and no router");
  }
}

void check_threads(std::int64_t threads) {
  constexpr std::int64_t kMost = 1024;
  if (threads < 1 || threads > kMost) refuse("expected 1 to 1024, got " + std::to_string(threads));
}

void check_top(const StudentFile& file, std::int64_t k) {
  const std::int64_t outputs = file.layers.back().out;
  if (k < 1 || k > outputs) refuse("expected 'k' in [1, " + std::to_string(outputs) + "], got " + std::to_string(k));
}

// ---- buffers and threads

struct PackedStudent::Workspace {
  explicit Workspace(const StudentFile& file) : row(file) {}

  RowBuffers row;
  std::optional<BlockBuffers> block;  // made at the first batch
};

// A workspace for the duration of a call: an idle one, or a new one if more calls run at once than ever before.
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
      work_.reset();  // no memory to keep it: the next call makes a new one
    }
  }
  Workspace& operator*() const { return *work_; }

 private:
  const PackedStudent& student_;
  std::unique_ptr<Workspace> work_;
};

PackedStudent::PackedStudent(const std::string& path)
    : file_(path),
      row_path_(file_),
      block_path_(file_, row_path_),
      work_per_row_(work_of(file_)),
      num_threads_(std::max(1, static_cast<int>(std::thread::hardware_concurrency()))) {}

PackedStudent::~PackedStudent() = default;

// block(begin, end, workspace) for blocks of `count` rows, handed out one by one to threads that live for this call: a
// pool would not survive a fork, and starting a thread takes a small part of the time that its work takes.
template <typename F>
void PackedStudent::for_each_block(std::int64_t count, const F& block) const {
  // Smaller blocks than fit the cache, if that gives every thread one.
  const std::int64_t threads_granted = num_threads_.load();
  const std::int64_t each = core::divide_up(count, threads_granted);
  const std::int64_t rows = std::min(block_path_.rows_per_block(), std::max(each, kFewestRowsOfThread));
  const std::int64_t blocks = core::divide_up(count, rows);
  const double worth = static_cast<double>(count) * work_per_row_ / kWorkPerThread;
  const auto wanted =
      static_cast<std::int64_t>(std::min({static_cast<double>(threads_granted), static_cast<double>(blocks), worth}));
  const auto run_block = [&](std::int64_t b, Workspace& work) {
    block(b * rows, std::min(count, (b + 1) * rows), work);
  };
  if (wanted <= 1) {
    const Lease lease(*this);
    for (std::int64_t b = 0; b < blocks; ++b) run_block(b, *lease);
    return;
  }
  std::atomic<std::int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  const auto run = [&] {
    try {
      const Lease lease(*this);
      for (std::int64_t b = next++; b < blocks; b = next++) run_block(b, *lease);
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
    // The system grants no more threads: those already started share the work.
  }
  run();
  for (std::thread& thread : threads) thread.join();
  if (error != nullptr) std::rethrow_exception(error);
}

// ---- answers

// A few rows cost what they read of the weights. One by one, each reads its k experts, but only the weights of its
// non-zero features and in their stored type; together, they read every expert they need once, all of it and as
// float32.
bool PackedStudent::one_by_one(const Rows& rows) const {
  if (rows.count < kFewRows) return true;
  if (rows.count > kMostRows) return false;
  const double features = rows.dense == nullptr ? 0 : dense_share(file_, rows, 0, rows.count);
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
  const std::int64_t outputs = num_outputs();
  if (one_by_one(rows)) {
    const Lease lease(*this);
    for (std::int64_t i = 0; i < rows.count; ++i) row_path_.predict(rows, i, (*lease).row, logits + i * outputs);
    return;
  }
  block_path_.pack();
  for_each_block(rows.count, [&](std::int64_t begin, std::int64_t end, Workspace& work) {
    if (!work.block) work.block.emplace(work.row, block_path_.rows_per_block());
    block_path_.predict(rows, begin, end, work.row, *work.block, logits + begin * outputs);
  });
}

void PackedStudent::route(const Rows& rows, std::size_t layer, float* gate, std::int64_t* index) const {
  const std::int64_t k = file_.layers[layer].k;
  for_each_block(rows.count, [&](std::int64_t begin, std::int64_t end, Workspace& work) {
    for (std::int64_t i = begin; i < end; ++i) {
      row_path_.route(rows, i, layer, work.row, gate + i * k, index + i * k);
    }
  });
}

void PackedStudent::predict_proba(const Rows& rows, float* proba) const {
  const std::int64_t outputs = num_outputs();
  predict(rows, proba);
  for (std::int64_t i = 0; i < rows.count; ++i) softmax_row(proba + i * outputs, outputs);
}

void PackedStudent::top_classes(const Rows& rows, std::int64_t k, std::int64_t* index, float* proba) const {
  const std::int64_t outputs = num_outputs();
  std::vector<float> all(static_cast<std::size_t>(std::min(rows.count, kRowsAtOnce) * outputs));
  std::vector<std::int64_t> order(static_cast<std::size_t>(outputs));
  for (std::int64_t begin = 0; begin < rows.count; begin += kRowsAtOnce) {
    const std::int64_t count = std::min(kRowsAtOnce, rows.count - begin);
    predict_proba(part(rows, begin, count), all.data());
    for (std::int64_t i = 0; i < count; ++i, index += k, proba += k) {
      const float* row = all.data() + i * outputs;
      std::iota(order.begin(), order.end(), std::int64_t{0});
      // After the softmax a row is all numbers or all NaN; the classes of the latter keep their order.
      std::partial_sort(order.begin(), order.begin() + k, order.end(), [row](std::int64_t a, std::int64_t b) {
        return row[a] > row[b] || (!(row[b] > row[a]) && a < b);
      });
      std::copy_n(order.begin(), k, index);
      for (std::int64_t r = 0; r < k; ++r) proba[r] = row[order[static_cast<std::size_t>(r)]];
    }
  }
}

}  // namespace gmoe::runtime
