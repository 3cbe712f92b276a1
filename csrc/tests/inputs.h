// Random arguments for the kernels. A generator with a fixed seed stands at the top of every test, so a case is the
// same on every run, machine, instruction set and number of threads.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "core/types.h"

namespace gmoe::test {

template <typename T>
struct Type {
  using type = T;
};
template <typename F>
void for_each_floating(const F& f) {
  f(Type<float>{});
  f(Type<double>{});
  f(Type<core::bfloat16>{});
}
template <typename F>
void for_each_index(const F& f) {
  f(Type<std::int32_t>{});
  f(Type<std::int64_t>{});
}
// Every floating type and every index type, not every pair.
template <typename F>
void for_each_row_type(const F& f) {
  f(Type<float>{}, Type<std::int32_t>{});
  f(Type<float>{}, Type<std::int64_t>{});
  f(Type<double>{}, Type<std::int64_t>{});
  f(Type<core::bfloat16>{}, Type<std::int32_t>{});
}

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}

  std::int64_t below(std::int64_t bound) {
    return static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(bound));
  }
  double real() { return static_cast<double>(engine_() >> 11) * 0x1p-52 - 1; }  // in [-1, 1)

  template <typename T>
  std::vector<T> values(std::int64_t n) {
    std::vector<T> out(static_cast<std::size_t>(n));
    for (T& value : out) value = core::narrow<T>(static_cast<core::Accumulator<T>>(real()));
    return out;
  }
  template <typename Index>
  std::vector<Index> indices(std::int64_t n, std::int64_t bound) {
    std::vector<Index> out(static_cast<std::size_t>(n));
    for (Index& value : out) value = static_cast<Index>(below(bound));
    return out;
  }

 private:
  std::mt19937_64 engine_;
};

// What a result holds before it is written: a value that is left there shows.
template <typename T>
std::vector<T> unwritten(std::int64_t n) {
  constexpr auto nan = std::numeric_limits<core::Accumulator<T>>::quiet_NaN();
  return std::vector<T>(static_cast<std::size_t>(n), core::narrow<T>(nan));
}
inline std::vector<std::int64_t> unwritten_index(std::int64_t n) {
  return std::vector<std::int64_t>(static_cast<std::size_t>(n), std::int64_t{-1});
}

template <typename T>
double wide(T value) {
  return static_cast<double>(core::widen(value));
}
template <typename T>
std::vector<double> wide(const std::vector<T>& values) {
  std::vector<double> out;
  for (const T value : values) out.push_back(wide(value));
  return out;
}
inline std::vector<double> zeros(std::int64_t n) { return std::vector<double>(static_cast<std::size_t>(n), 0.0); }

// Compressed rows with repeated edges, empty rows (every third) and, if asked for, one long row.
template <typename Index>
struct CompressedRows {
  std::vector<std::int64_t> offsets;
  std::vector<Index> columns;

  std::int64_t num_rows() const { return static_cast<std::int64_t>(offsets.size()) - 1; }
  std::int64_t num_edges() const { return static_cast<std::int64_t>(columns.size()); }
};

template <typename Index>
CompressedRows<Index> random_rows(Random& random, std::int64_t num_rows, std::int64_t num_columns,
                                  std::int64_t num_edges, std::int64_t hub_edges = 0) {
  std::vector<std::int64_t> degree(static_cast<std::size_t>(num_rows + 1), 0);
  for (std::int64_t e = 0; e < num_edges; ++e) {
    const std::int64_t row = random.below(num_rows);
    ++degree[static_cast<std::size_t>(row % 3 == 1 ? row - 1 : row)];
  }
  if (hub_edges > 0) degree[static_cast<std::size_t>(num_rows / 2)] += hub_edges;
  CompressedRows<Index> rows{{0}, random.indices<Index>(num_edges + hub_edges, num_columns)};
  for (std::int64_t i = 0; i < num_rows; ++i) rows.offsets.push_back(rows.offsets.back() + degree[i]);
  return rows;
}

// Sizes of an operator over compressed rows.
struct RowSizes {
  std::int64_t rows, columns, edges, hub_edges, dim;
  bool large = false;
};
// A row of more than 8192 edges is split. Wide rows share their edges, 2048 at a time, among threads; the gradient of a
// table does so 8192 at a time.
inline constexpr RowSizes kRowSizes[] = {{0, 0, 0, 0, 5},
                                         {3, 0, 0, 0, 4},
                                         {1, 1, 1, 0, 1},
                                         {5, 7, 23, 0, 0},
                                         {101, 83, 700, 0, 33},
                                         {61, 9, 300, 0, 523},
                                         {60, 50, 1000, 9001, 17, true},
                                         {3, 31, 40, 16411, 5, true},
                                         {13, 9, 8501, 0, 517, true}};

}  // namespace gmoe::test
