// A packed student ready to predict: torch-free, thread-safe, one row without allocation, many rows in parallel blocks.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/block_path.h"
#include "runtime/row_path.h"
#include "runtime/student_file.h"

namespace gmoe::runtime {

// nodes[position] is outside [-1, bound).
struct NodeError : std::out_of_range {
  NodeError(std::int64_t position, std::int64_t value, std::int64_t bound);
  std::int64_t position, value, bound;
};

// Checks of what callers pass; they throw std::invalid_argument or NodeError, whose texts name what was expected and
// what was passed. Columns of sparse rows and nodes are read, features are not.
void check_rows(const StudentFile& file, const Rows& rows);
void check_layer(const StudentFile& file, std::int64_t layer);         // the layer exists
void check_routed_layer(const StudentFile& file, std::int64_t layer);  // and has a router
void check_threads(std::int64_t threads);
void check_top(const StudentFile& file, std::int64_t k);  // k is in [1, number of outputs]

// Arguments must have passed the checks. Many threads may call it at once.
class PackedStudent {
 public:
  explicit PackedStudent(const std::string& path);
  ~PackedStudent();

  const StudentFile& file() const { return file_; }
  std::int64_t num_outputs() const { return file_.layers.back().out; }
  int num_threads() const { return num_threads_; }
  void set_num_threads(int n) { num_threads_ = n; }

  // logits[count, num_outputs].
  void predict(const Rows& rows, float* logits) const;
  // proba[count, num_outputs]: the softmax of the logits. A row of NaN stays one.
  void predict_proba(const Rows& rows, float* proba) const;
  // index[count, k] and proba[count, k] of the k most probable classes, descending, ties to the lower class. A row of
  // NaN names the first k classes.
  void top_classes(const Rows& rows, std::int64_t k, std::int64_t* index, float* proba) const;
  // gate[count, k] descending and index[count, k] of one layer, which must have a router.
  void route(const Rows& rows, std::size_t layer, float* gate, std::int64_t* index) const;

 private:
  struct Workspace;
  class Lease;

  bool one_by_one(const Rows& rows) const;
  template <typename F>
  void for_each_block(std::int64_t count, const F& block) const;

  StudentFile file_;
  RowPath row_path_;
  BlockPath block_path_;
  double work_per_row_;  // multiply-adds
  std::atomic<int> num_threads_;
  mutable std::mutex mutex_;                              // guards idle_
  mutable std::vector<std::unique_ptr<Workspace>> idle_;  // as many as were ever in use at once
};

}  // namespace gmoe::runtime
