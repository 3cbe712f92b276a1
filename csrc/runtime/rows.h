// Rows that a caller hands in, and the checks they pass before a kernel reads them.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace gmoe::runtime {

class StudentFile;

// Rows of features, dense and row-major, or in compressed sparse rows.
struct Rows {
  std::int64_t count = 0;
  const float* dense = nullptr;           // [count, columns]
  std::int64_t columns = 0;               // features, or features and positions together
  const std::int64_t* offsets = nullptr;  // [count + 1]
  const std::int32_t* column = nullptr;   // ascending within a row
  const float* value = nullptr;
  std::int64_t stored = 0;              // how many columns and values there are
  const std::int64_t* nodes = nullptr;  // [count] rows of the position table, -1 for a node it does not hold
};

// nodes[position] is outside [-1, bound).
struct NodeError : std::out_of_range {
  NodeError(std::int64_t position, std::int64_t value, std::int64_t bound);
  std::int64_t position, value, bound;
};

// Throws std::invalid_argument or NodeError, whose texts name what was expected and what came. Columns of sparse rows
// and nodes are read, features are not.
void check_rows(const StudentFile& file, const Rows& rows);
// Throw std::invalid_argument unless the layer exists; has a router; the number is one of threads.
void check_layer(const StudentFile& file, std::int64_t layer);
void check_routed_layer(const StudentFile& file, std::int64_t layer);
void check_threads(std::int64_t threads);

}  // namespace gmoe::runtime
