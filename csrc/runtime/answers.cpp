#include "runtime/answers.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

namespace gmoe::runtime {
namespace {

constexpr std::int64_t kRowsAtOnce = 4096;  // of which top_classes keeps all classes at a time

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

void predict_proba(const PackedStudent& student, const Rows& rows, float* proba) {
  const std::int64_t outputs = student.num_outputs();
  student.predict(rows, proba);
  for (std::int64_t i = 0; i < rows.count; ++i) softmax_row(proba + i * outputs, outputs);
}

void check_top(const PackedStudent& student, std::int64_t k) {
  if (k < 1 || k > student.num_outputs()) {
    throw std::invalid_argument("expected 'k' in [1, " + std::to_string(student.num_outputs()) + "], got " +
                                std::to_string(k));
  }
}

void top_classes(const PackedStudent& student, const Rows& rows, std::int64_t k, std::int64_t* index, float* proba) {
  const std::int64_t outputs = student.num_outputs();
  std::vector<float> all(static_cast<std::size_t>(std::min(rows.count, kRowsAtOnce) * outputs));
  std::vector<std::int64_t> order(static_cast<std::size_t>(outputs));
  for (std::int64_t begin = 0; begin < rows.count; begin += kRowsAtOnce) {
    const std::int64_t count = std::min(kRowsAtOnce, rows.count - begin);
    predict_proba(student, part(rows, begin, count), all.data());
    for (std::int64_t i = 0; i < count; ++i, index += k, proba += k) {
      const float* row = all.data() + i * outputs;
      std::iota(order.begin(), order.end(), std::int64_t{0});
      // The softmax leaves a row of numbers or a row of NaN, whose classes keep their order.
      std::partial_sort(order.begin(), order.begin() + k, order.end(), [row](std::int64_t a, std::int64_t b) {
        return row[a] > row[b] || (!(row[b] > row[a]) && a < b);
      });
      std::copy_n(order.begin(), k, index);
      for (std::int64_t r = 0; r < k; ++r) proba[r] = row[order[static_cast<std::size_t>(r)]];
    }
  }
}

}  // namespace gmoe::runtime
