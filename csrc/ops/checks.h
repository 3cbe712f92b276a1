// Checks and dispatch that several operators share; those of one operator stand in its own file. They look at shapes
// and dtypes. What an index tensor holds is for Call::follow (call.h).
#pragma once

#include "core/expert_plan.h"
#include "ops/compat.h"

namespace gmoe::ops {

// The type that sums over rows of `dtype` are kept in, and the only one their weights may have.
inline ScalarType accumulator_dtype(ScalarType dtype) {
  return dtype == ScalarType::BFloat16 ? ScalarType::Float : dtype;
}

// ---- matrices

// t is [rows, columns] like `other`, by the names that the message uses.
inline void check_shape_like(const char* op, const char* name, const Tensor& t, const Tensor& other,
                             const char* other_name) {
  check_dim(op, name, t, 2);
  check_size(op, name, t, 0, other.size(0), other_name);
  check_size(op, name, t, 1, other.size(1), other_name);
}
inline void check_rate(const char* op, double rate) {
  check(rate >= 0 && rate <= 1, op, ": expected 'rate' in [0, 1], got ", rate);
}
inline void check_k(const char* op, std::int64_t k, std::int64_t num_experts) {
  check(k >= 1 && k <= num_experts, op, ": expected 1 <= k <= ", num_experts, " experts, got ", k);
}
// Of cosine routing: x [N, D] and memory [E, D].
inline void check_cosines(const char* op, const Tensor& x, const Tensor& memory, std::int64_t k) {
  check_dim(op, "x", x, 2);
  check_dim(op, "memory", memory, 2);
  check_floating(op, "x", x);
  check_same_dtype(op, "memory", memory, "x", x);
  check_size(op, "memory", memory, 1, x.size(1), "'x'");
  check_k(op, k, memory.size(0));
}

// ---- plans

inline void check_plan(const char* op, const Tensor& offsets, const Tensor& order, std::int64_t k) {
  check_dim(op, "offsets", offsets, 1);
  check_int64(op, "offsets", offsets);
  check(offsets.size(0) >= 2, op, ": expected 'offsets' of shape [E + 1] with E >= 1, got ", shape(offsets));
  check_dim(op, "order", order, 1);
  check_int64(op, "order", order);
  check(k >= 1 && order.size(0) % k == 0, op, ": expected 'order' of shape [N * k] with k = ", k, ", got ",
        shape(order));
}

// ---- compressed rows

inline void check_edges(const char* op, const char* name, const Tensor& t, const Tensor& columns) {
  check_dim(op, name, t, 1);
  check_size(op, name, t, 0, columns.size(0), "'columns'");
}
inline void check_rows(const char* op, const Tensor& offsets, const Tensor& columns) {
  check_dim(op, "offsets", offsets, 1);
  check_int64(op, "offsets", offsets);
  check(offsets.size(0) >= 1, op, ": expected 'offsets' of shape [rows + 1], got [0]");
  check_dim(op, "columns", columns, 1);
  check_index_dtype(op, "columns", columns);
}
inline void check_edge_type(const char* op, const Tensor& edge_type, const Tensor& columns) {
  check_edges(op, "edge_type", edge_type, columns);
  check_same_dtype(op, "edge_type", edge_type, "columns", columns);
}
inline void check_weight(const char* op, const OptionalTensor& weight, const Tensor& x, const Tensor& columns) {
  if (!weight.has_value()) return;
  check_edges(op, "weight", *weight, columns);
  check(weight->scalar_type() == accumulator_dtype(x.scalar_type()), op,
        ": expected 'weight' of dtype float32, or float64 for float64 rows");
}

// f(Type<T>{}, Type<Index>{}) for the dtype of the rows and the width of the columns.
template <typename F>
void dispatch_rows(const char* op, const Tensor& x, const Tensor& columns, const F& f) {
  dispatch_floating(op, x.scalar_type(), [&](auto type) {
    dispatch_index(op, columns.scalar_type(), [&](auto index_type) { f(type, index_type); });
  });
}

}  // namespace gmoe::ops
