// What callers ask for beside logits: probabilities and the most probable classes.
#pragma once

#include <cstdint>

#include "runtime/packed_student.h"

namespace gmoe::runtime {

// proba[count, num_outputs]: the softmax of the logits. A row of NaN stays one.
void predict_proba(const PackedStudent& student, const Rows& rows, float* proba);

// index[count, k] and proba[count, k] of the k most probable classes, descending, ties to the lower class; k must be in
// [1, num_outputs]. A row of NaN names the first k classes.
void top_classes(const PackedStudent& student, const Rows& rows, std::int64_t k, std::int64_t* index, float* proba);
// Throws std::invalid_argument if k is out of range.
void check_top(const PackedStudent& student, std::int64_t k);

}  // namespace gmoe::runtime
