// The only place that knows torch's stable C++ interface: names, checks with the project's wording, dtype dispatch.
// Everything here works from torch 2.11 on, whatever torch the package was built against.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <iomanip>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/types.h"
#include "core/workspace.h"

// Its name in the headers of torch 2.11.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

// Schemas are registered once, by _C; the library of another device, which compiles the same checks, leaves them out.
#ifdef GMOE_WITHOUT_SCHEMAS
#define GMOE_SCHEMAS(m) [[maybe_unused]] static void gmoe_schemas(torch::stable::detail::StableLibrary& m)
#else
#define GMOE_SCHEMAS(m) STABLE_TORCH_LIBRARY_FRAGMENT(gmoe, m)
#endif

namespace gmoe::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <typename... Parts>
std::string join(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

template <typename... Parts>
void check(bool ok, const Parts&... message) {
  if (!ok) throw std::runtime_error(join(message...));
}

// A tensor's shape in a message: made into text only where a check has failed.
struct Shape {
  const Tensor& tensor;
};
inline Shape shape(const Tensor& t) { return {t}; }
inline std::ostream& operator<<(std::ostream& out, const Shape& s) {
  out << '[';
  for (std::int64_t d = 0; d < s.tensor.dim(); ++d) out << (d ? ", " : "") << s.tensor.size(d);
  return out << ']';
}

inline bool is_floating(ScalarType t) {
  return t == ScalarType::Float || t == ScalarType::Double || t == ScalarType::BFloat16;
}
inline bool is_index(ScalarType t) { return t == ScalarType::Int || t == ScalarType::Long; }

// ---- checks shared by the operators; every message names the operator, the argument, what was expected and what came

inline void check_dim(const char* op, const char* name, const Tensor& t, std::int64_t dim) {
  check(t.dim() == dim, op, ": expected '", name, "' to have ", dim, " dimension(s), got shape ", shape(t));
}
inline void check_floating(const char* op, const char* name, const Tensor& t) {
  check(is_floating(t.scalar_type()), op, ": expected '", name, "' of dtype float32, bfloat16 or float64");
}
inline void check_index_dtype(const char* op, const char* name, const Tensor& t) {
  check(is_index(t.scalar_type()), op, ": expected '", name, "' of dtype int32 or int64");
}
inline void check_int64(const char* op, const char* name, const Tensor& t) {
  check(t.scalar_type() == ScalarType::Long, op, ": expected '", name, "' of dtype int64");
}
inline void check_same_dtype(const char* op, const char* name, const Tensor& t, const char* other_name,
                             const Tensor& other) {
  check(t.scalar_type() == other.scalar_type(), op, ": expected '", name, "' to have the dtype of '", other_name, "'");
}
inline void check_size(const char* op, const char* name, const Tensor& t, std::int64_t dim, std::int64_t size,
                       const char* because) {
  check(t.size(dim) == size, op, ": expected '", name, "' of size ", size, " in dimension ", dim, " to match ", because,
        ", got ", shape(t));
}

// ---- tensors as dense pointers

// FSDP and others free the memory of a tensor and leave its shape.
inline void check_memory(const char* op, const char* name, const Tensor& t) {
  std::int64_t needed = t.numel(), bytes = 0;
  if (needed == 0) return;
  if (!t.is_contiguous()) {
    needed = 1;
    for (std::int64_t d = 0; d < t.dim(); ++d) needed += (t.size(d) - 1) * t.stride(d);
  }
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
  check((t.storage_offset() + needed) * static_cast<std::int64_t>(t.element_size()) <= bytes, op, ": expected '", name,
        "' of shape ", shape(t), " with its memory, got a storage of ", bytes, " bytes; it was freed or resized");
}

inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

inline Tensor dense_int64(const Tensor& index) {
  return dense(index.scalar_type() == ScalarType::Long ? index : torch::stable::to(index, ScalarType::Long));
}

inline std::int64_t dtype_size(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte: return 1;
    case ScalarType::BFloat16: return 2;
    case ScalarType::Float:
    case ScalarType::Int: return 4;
    default: return 8;
  }
}

// By the function that empty tensors come from in the end: torch::stable::new_empty looks its operator up by name,
// which takes longer than a small product.
inline Tensor new_like(const Tensor& like, std::initializer_list<std::int64_t> sizes, ScalarType dtype) {
  std::vector<std::int64_t> strides(sizes.size());
  std::int64_t stride = 1;
  for (std::size_t d = sizes.size(); d-- > 0; stride *= std::max<std::int64_t>(1, sizes.begin()[d]))
    strides[d] = stride;
  std::int32_t device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  const AOTITorchError failed =
      aoti_torch_empty_strided(static_cast<std::int64_t>(sizes.size()), sizes.begin(), strides.data(),
                               torch::stable::detail::to<std::int32_t>(torch::stable::detail::from(dtype)), device_type,
                               like.get_device(), &handle);
  if (failed != 0) {
    double values = 1;  // the product may be too large for an integer
    std::ostringstream text;
    for (const std::int64_t size : sizes)
      values *= static_cast<double>(size), text << (text.tellp() > 0 ? ", " : "") << size;
    const double bytes = values * static_cast<double>(dtype_size(dtype));
    check(false, "gmoe: out of memory: tried to allocate ", std::fixed, std::setprecision(0), bytes, " bytes (",
          std::setprecision(2), bytes / (1 << 30), " GiB) for a tensor of shape [", text.str(), "]");
  }
  Tensor t(handle);
  if (device_type == aoti_torch_device_type_cpu()) {
    core::ask_for_huge_pages(t.mutable_data_ptr(), static_cast<std::size_t>(t.numel()) * t.element_size());
  }
  return t;
}
inline Tensor new_like(const Tensor& like, std::initializer_list<std::int64_t> sizes) {
  return new_like(like, sizes, like.scalar_type());
}

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <typename T>
const T* data(const OptionalTensor& t) {
  return t ? data<T>(*t) : nullptr;
}
template <typename T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

template <typename T>
struct Type {
  using type = T;
};

// f(Type<T>{}) with the C++ type of a floating dtype.
template <typename F>
auto dispatch_floating(const char* op, ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Float: return f(Type<float>{});
    case ScalarType::Double: return f(Type<double>{});
    case ScalarType::BFloat16: return f(Type<core::bfloat16>{});
    default: break;
  }
  throw std::runtime_error(join(op, ": expected dtype float32, bfloat16 or float64"));
}

// f(Type<T>{}) with int32_t or int64_t.
template <typename F>
auto dispatch_index(const char* op, ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Int: return f(Type<std::int32_t>{});
    case ScalarType::Long: return f(Type<std::int64_t>{});
    default: break;
  }
  throw std::runtime_error(join(op, ": expected dtype int32 or int64"));
}

}  // namespace gmoe::ops
