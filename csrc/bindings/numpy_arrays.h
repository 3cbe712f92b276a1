// NumPy arrays as the kernels want them: dense, aligned, of one type; in place where they are so already.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace py = pybind11;

namespace gmoe::runtime {

using FloatArray = py::array_t<float, py::array::c_style>;
using IndexArray = py::array_t<std::int64_t, py::array::c_style>;
using ColumnArray = py::array_t<std::int32_t, py::array::c_style>;

inline std::string shape_text(const py::array& a) {
  std::string text = "[";
  for (py::ssize_t d = 0; d < a.ndim(); ++d) {
    if (d > 0) text += ", ";
    text += std::to_string(a.shape(d));
  }
  text += ']';
  return text;
}

// Dense, aligned and of element type T: the array itself where it is so already, else a copy.
template <typename T>
py::array_t<T, py::array::c_style> take(const py::handle& value, const char* call, const char* name, const char* kinds,
                                        const char* expected) {
  constexpr int kAligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  using Dense = py::array_t<T, py::array::c_style>;
  if (Dense::check_(value)) {  // most often: the general way would take longer than a small student's answer
    const auto as_is = py::reinterpret_borrow<Dense>(value);
    if ((as_is.flags() & kAligned) != 0) return as_is;
  }
  const py::array a = py::array::ensure(value);
  if (!a) {
    PyErr_Clear();
    throw py::type_error(std::string(call) + ": expected '" + name + "' as a NumPy array of " + expected + ", got " +
                         Py_TYPE(value.ptr())->tp_name);
  }
  if (std::string_view(kinds).find(a.dtype().kind()) == std::string_view::npos) {
    throw py::type_error(std::string(call) + ": expected '" + name + "' of " + expected + ", got dtype " +
                         py::str(a.dtype()).cast<std::string>());
  }
  if ((a.flags() & kAligned) == 0) {
    return py::array_t<T, py::array::c_style | py::array::forcecast>::ensure(a.attr("copy")());
  }
  auto dense = py::array_t<T, py::array::c_style | py::array::forcecast>::ensure(a);
  if (!dense) throw py::error_already_set();
  return dense;
}

inline FloatArray take_floats(const py::handle& value, const char* call, const char* name) {
  return take<float>(value, call, name, "fiub", "real numbers");
}

template <typename T>
py::array_t<T, py::array::c_style> take_integers(const py::handle& value, const char* call, const char* name) {
  return take<T>(value, call, name, "iu", "integers");
}

}  // namespace gmoe::runtime
