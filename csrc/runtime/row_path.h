// Rows as callers pass them, and the path of a single row through a student.
#pragma once

#include <cstdint>
#include <vector>

#include "core/cpu/routed_layer.h"
#include "runtime/student_file.h"

namespace gmoe::runtime {

// Rows of features, dense and row-major, or in compressed sparse rows.
struct Rows {
  std::int64_t count = 0;
  const float* dense = nullptr;           // [count, columns]
  std::int64_t columns = 0;               // features, or features and positions together
  const std::int64_t* offsets = nullptr;  // [count + 1]
  const std::int32_t* column = nullptr;   // ascending within a row
  const float* value = nullptr;
  std::int64_t stored = 0;              // number of columns and values
  const std::int64_t* nodes = nullptr;  // [count] rows of the position table, -1 for a node it does not hold
};

// Whether dense rows are already what the first layer takes.
bool is_prepared(const StudentFile& file, const Rows& rows);
// The share of dense rows [begin, end) that is not zero; positions from the table count as dense.
double dense_share(const StudentFile& file, const Rows& rows, std::int64_t begin, std::int64_t end);
// Dense row i as the first layer takes it: features normalised, its position behind them, zeros for a node without one.
void prepare_row(const StudentFile& file, const Rows& rows, std::int64_t i, float* out);

// Soft voting: the logarithm of the mean of the members' probabilities, without underflow. add_vote makes sum[c] the
// logarithm of the sum so far of the members' probabilities of class c, given a member's logits. A NaN stays one.
void add_vote(const float* logits, std::int64_t classes, bool first, float* sum);
void end_votes(std::int64_t members, std::int64_t classes, float* sum);

// Buffers of one thread.
struct RowBuffers {
  explicit RowBuffers(const StudentFile& file);

  std::vector<float> x, y, projected, logits, input_value, value, cosine, gate;
  std::vector<std::int32_t> input_column, column;
  std::vector<std::int64_t> index;
};

class RowPath {
 public:
  explicit RowPath(const StudentFile& file) : file_(file) {}

  // logits[num_outputs] of row i.
  void predict(const Rows& rows, std::int64_t i, RowBuffers& buffers, float* logits) const;
  // gate[k] and index[k] of row i in one layer.
  void route(const Rows& rows, std::int64_t i, std::size_t layer, RowBuffers& buffers, float* gate,
             std::int64_t* index) const;
  // The non-zeros of row i, in the buffers, which also hold its gates and experts in layer l, the first of a member.
  core::SparseRow start(const Rows& rows, std::int64_t i, std::size_t l, RowBuffers& buffers) const;

 private:
  // A row that a layer takes: its non-zeros, and all its values if available.
  struct Input {
    core::SparseRow sparse;
    const float* dense;
  };

  Input take(const Rows& rows, std::int64_t i, RowBuffers& buffers) const;
  void choose(std::size_t l, const Input& x, RowBuffers& buffers) const;
  void apply(std::size_t l, const Input& x, RowBuffers& buffers, float* y) const;
  Input hidden(std::size_t l, const Input& x, RowBuffers& buffers) const;
  void member(Input x, std::size_t first, RowBuffers& buffers, float* logits) const;

  const StudentFile& file_;
};

}  // namespace gmoe::runtime
