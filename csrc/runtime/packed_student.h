// A packed student that answers: torch-free, thread-safe, one row without allocation, many rows in parallel blocks.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/rows.h"
#include "runtime/student_file.h"

namespace gmoe::runtime {

class PackedStudent {
 public:
  explicit PackedStudent(const std::string& path);
  ~PackedStudent();

  const StudentFile& file() const { return file_; }
  std::int64_t num_outputs() const { return file_.layers.back().out; }
  int num_threads() const { return num_threads_; }
  void set_num_threads(int n) { num_threads_ = n; }

  // logits[count, num_outputs] of rows that check_rows let pass. Safe to call from many threads at once.
  void predict(const Rows& rows, float* logits) const;
  // gate[count, k] descending and index[count, k] of one layer, which must have a router.
  void route(const Rows& rows, std::size_t layer, float* gate, std::int64_t* index) const;

 private:
  struct Workspace;
  class Lease;

  // A row that a layer takes: its non-zeros, and where it is at hand the whole of it.
  struct Input {
    core::SparseRow sparse;
    const float* dense;
  };
  // What row i leaves behind: logits, or the routing of layer `stop`.
  struct Target {
    float* logits;
    float* gate;
    std::int64_t* index;
    std::size_t stop;
  };
  // Layers with panels, which blocks of rows go through.
  struct Packed {
    std::vector<core::RoutedLayer> layers, projections;
    std::vector<float> panels;
  };

  bool one_by_one(const Rows& rows) const;
  template <typename F>
  void in_parallel(std::int64_t count, std::int64_t rows_per_item, const F& item) const;
  void row(const Rows& rows, std::int64_t i, Workspace& work, const Target& target) const;
  Input take_row(const Rows& rows, std::int64_t i, Workspace& work) const;
  void member_row(Input x, std::size_t first, Workspace& work, const Target& target) const;
  void choose(std::size_t l, const Input& x, Workspace& work) const;
  void block(const Rows& rows, std::int64_t begin, std::int64_t end, Workspace& work, float* logits) const;
  const float* dense_block(const Rows& rows, std::int64_t begin, std::int64_t end, Workspace& work) const;
  const float* member_block(const Rows& rows, std::int64_t begin, std::int64_t end, const float* input,
                            std::size_t first, Workspace& work) const;
  void choose_block(std::size_t l, const float* x, std::int64_t stride, std::int64_t count, Workspace& work) const;
  void first_layer_sparse(const Rows& rows, std::int64_t begin, std::int64_t end, std::size_t first, Workspace& work,
                          float* y) const;
  void prepare(const Rows& rows, std::int64_t i, float* out) const;
  const float* position(const Rows& rows, std::int64_t i) const;
  const Packed& packed() const;

  StudentFile file_;
  std::int64_t block_rows_, work_per_row_;
  std::atomic<int> num_threads_;
  mutable std::mutex mutex_;                              // guards idle_
  mutable std::vector<std::unique_ptr<Workspace>> idle_;  // as many as were ever in use at once
  mutable std::once_flag packed_once_;
  mutable Packed packed_;  // made at the first batch
};

}  // namespace gmoe::runtime
