// gmoe_ext._runtime: the packed student on NumPy arrays. Importing it imports no torch.
#include <pthread.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

#include "core/cpu/check_index.h"
#include "runtime/packed_student.h"

namespace py = pybind11;

namespace gmoe::runtime {
namespace {

// ---- the interpreter's lock

// Threads that are inside the library without the lock, and whether the interpreter is about to exit; read and written
// with the lock held.
std::int64_t unlocked_calls = 0;
bool exiting = false;

// Releases the interpreter's lock for its lifetime. A thread that asks for the lock of an exiting interpreter is ended
// inside that request, which unwinds through C++ and aborts the process. So the exit waits for the calls that run
// (`finish_calls`), and later ones keep the lock.
class Unlocked {
 public:
  Unlocked() {
    if (exiting) return;
    ++unlocked_calls;
    state_ = PyEval_SaveThread();
  }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
  ~Unlocked() {
    if (state_ == nullptr) return;
    PyEval_RestoreThread(state_);
    --unlocked_calls;
  }

 private:
  PyThreadState* state_ = nullptr;
};

void finish_calls() {
  exiting = true;
  while (unlocked_calls > 0) {
    const py::gil_scoped_release others;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// ---- arrays

using FloatArray = py::array_t<float, py::array::c_style>;
using IndexArray = py::array_t<std::int64_t, py::array::c_style>;
using ColumnArray = py::array_t<std::int32_t, py::array::c_style>;

std::string shape_text(const py::array& a) {
  std::string text = "[";
  for (py::ssize_t d = 0; d < a.ndim(); ++d) {
    if (d > 0) text += ", ";
    text += std::to_string(a.shape(d));
  }
  text += ']';
  return text;
}

// NumPy arrays as the student wants them, dense, aligned and of element type T: the array itself where it is so
// already, else a copy.
template <typename T>
py::array_t<T, py::array::c_style> take(const py::handle& value, const char* call, const char* name, const char* kinds,
                                        const char* expected) {
  constexpr int kAligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  using Dense = py::array_t<T, py::array::c_style>;
  if (Dense::check_(value)) {  // the common case: the general path would take longer than a small student's prediction
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

FloatArray take_floats(const py::handle& value, const char* call, const char* name) {
  return take<float>(value, call, name, "fiub", "real numbers");
}

template <typename T = std::int64_t>
py::array_t<T, py::array::c_style> take_integers(const py::handle& value, const char* call, const char* name) {
  return take<T>(value, call, name, "iu", "integers");
}

// Integers that address memory are checked and then read while other threads run, who may write to the caller's array:
// the library's own copy is what both see.
std::vector<std::int64_t> copied(const IndexArray& values) {
  std::vector<std::int64_t> copy;
  copy.reserve(static_cast<std::size_t>(values.size()) + 1);  // no integers are not no array: data() is not null
  copy.assign(values.data(), values.data() + values.size());
  return copy;
}

// ---- errors

[[noreturn]] void raise(const char* error_name, const std::string& message) {
  const py::object error = py::module_::import("gmoe_ext.errors").attr(error_name);
  // A path need not be UTF-8, and a name quoted from a file may be cut inside a character.
  const auto text = py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(message.data(), static_cast<py::ssize_t>(message.size()), "backslashreplace"));
  PyErr_SetObject(error.ptr(), text.ptr());
  throw py::error_already_set();
}

std::unique_ptr<PackedStudent> load(const std::string& path) {
  try {
    const Unlocked unlocked;
    return std::make_unique<PackedStudent>(path);
  } catch (const FormatError& error) {
    raise("DataError", path + ": " + error.what());
  } catch (const std::system_error& error) {
    errno = error.code().value();
    PyErr_SetFromErrnoWithFilename(PyExc_OSError, path.c_str());
    throw py::error_already_set();
  }
}

// ---- rows

// What Rows points into: the caller's values or a copy of them, and copies of the integers.
struct HeldRows {
  Rows rows;
  FloatArray values;
  std::vector<std::int64_t> offsets, nodes;
  ColumnArray columns;
};

[[noreturn]] void raise_node(const char* call, std::int64_t position, const py::int_& value, std::int64_t bound) {
  const py::object error = py::module_::import("gmoe_ext.errors").attr("GraphIndexError");
  const py::object raised = error.attr("of")(call, "nodes", position, value, bound);
  PyErr_SetObject(error.ptr(), raised.ptr());
  throw py::error_already_set();
}

void hold_nodes(const PackedStudent& student, const py::object& nodes, const char* call, HeldRows& held) {
  if (nodes.is_none()) return;
  const IndexArray given = take_integers(nodes, call, "nodes");
  if (given.ndim() != 1 || given.shape(0) != held.rows.count) {
    throw py::value_error(std::string(call) + ": expected 'nodes' of shape [" + std::to_string(held.rows.count) +
                          "], got " + shape_text(given));
  }
  held.nodes = copied(given);
  held.rows.nodes = held.nodes.data();
  if (given.ptr() == nodes.ptr()) return;
  if (const py::dtype kind = py::array::ensure(nodes).dtype(); kind.kind() != 'u' || kind.itemsize() != 8) return;
  const auto wrapped = std::find_if(held.nodes.begin(), held.nodes.end(), [](std::int64_t node) { return node < 0; });
  if (wrapped == held.nodes.end()) return;  // else 2^64 - 1 would be taken for the unknown node, -1
  raise_node(call, wrapped - held.nodes.begin(), py::int_(static_cast<std::uint64_t>(*wrapped)),
             student.file().features.position_nodes);
}

// A table whose columns have names (a data frame) must name the student's features in their order, if it knows them.
void check_names(const StudentFile& file, const py::object& x, const char* call) {
  const StringList& names = file.features.names;
  if (names.size() == 0 || !py::hasattr(x, "columns")) return;
  const py::list columns(x.attr("columns"));
  const bool named =
      std::any_of(columns.begin(), columns.end(), [](auto name) { return py::isinstance<py::str>(name); });
  for (std::size_t i = 0; named && i < std::min(columns.size(), names.size()); ++i) {
    const std::string got = py::str(columns[i]).cast<std::string>();
    if (got == names[i]) continue;
    throw py::value_error(std::string(call) + ": column " + std::to_string(i) + " of 'x' is '" + got +
                          "', this student's is '" + std::string(names[i]) + "'; pass x[student.feature_names]");
  }
}

HeldRows hold_dense(const PackedStudent& student, const py::object& x, const py::object& nodes, const char* call) {
  HeldRows held;
  if (!py::isinstance<py::array>(x)) check_names(student.file(), x, call);
  held.values = take_floats(x, call, "x");
  if (held.values.ndim() != 2) {
    throw py::value_error(std::string(call) + ": expected 'x' of shape [N, " +
                          std::to_string(student.file().num_inputs()) + "], got " + shape_text(held.values) +
                          (held.values.ndim() == 1 ? "; pass x[None] for one row" : ""));
  }
  held.rows.count = held.values.shape(0);
  held.rows.columns = held.values.shape(1);
  held.rows.dense = held.values.data();
  hold_nodes(student, nodes, call, held);
  return held;
}

// x is a SciPy CSR matrix or array, or anything with its attributes.
HeldRows hold_sparse(const PackedStudent& student, const py::object& x, const py::object& nodes, const char* call) {
  const auto refuse = [&](const std::string& what) { throw py::value_error(std::string(call) + ": " + what); };
  const auto shape = x.attr("shape").cast<py::tuple>();
  if (shape.size() != 2) refuse("expected a sparse 'x' with two dimensions");
  HeldRows held;
  held.rows.count = shape[0].cast<std::int64_t>();
  held.rows.columns = shape[1].cast<std::int64_t>();
  held.values = take_floats(x.attr("data"), call, "x.data");
  const IndexArray indices = take_integers(x.attr("indices"), call, "x.indices");
  if (core::find_bad_index(indices.data(), indices.size(), held.rows.columns) >= 0) {  // before they are narrowed
    refuse("x.indices leave [0, " + std::to_string(held.rows.columns) + ")");
  }
  held.columns = take_integers<std::int32_t>(indices, call, "x.indices");
  const IndexArray offsets = take_integers(x.attr("indptr"), call, "x.indptr");
  const std::int64_t stored = held.values.size();
  if (held.values.ndim() != 1 || held.columns.ndim() != 1 || held.columns.size() != stored || offsets.ndim() != 1 ||
      offsets.size() != held.rows.count + 1) {
    refuse("expected x.indptr of shape [" + std::to_string(held.rows.count + 1) + "] and x.indices as long as x.data");
  }
  held.offsets = copied(offsets);
  held.rows.offsets = held.offsets.data();
  held.rows.column = held.columns.data();
  held.rows.value = held.values.data();
  held.rows.stored = stored;
  hold_nodes(student, nodes, call, held);
  return held;
}

// Prefixes the error texts of check(...) with the name of the call.
template <typename F>
void check(const char* call, const F& checks) {
  try {
    checks();
  } catch (const NodeError& bad) {
    raise_node(call, bad.position, py::int_(bad.value), bad.bound);
  } catch (const std::invalid_argument& bad) {
    throw py::value_error(std::string(call) + ": " + bad.what());
  }
}

HeldRows hold(const PackedStudent& student, const py::object& x, const py::object& nodes, const char* call) {
  const bool sparse = !py::isinstance<py::array>(x) && py::hasattr(x, "indptr");
  if (sparse && py::str(py::getattr(x, "format", py::str(""))).cast<std::string>() != "csr") {
    throw py::type_error(std::string(call) + ": expected a sparse 'x' in CSR form; call x.tocsr()");
  }
  HeldRows held = sparse ? hold_sparse(student, x, nodes, call) : hold_dense(student, x, nodes, call);
  check(call, [&] { check_rows(student.file(), held.rows); });
  return held;
}

// ---- the student

FloatArray predict(const PackedStudent& student, const py::object& x, const py::object& nodes) {
  const HeldRows held = hold(student, x, nodes, "PackedStudent.predict");
  FloatArray logits({held.rows.count, student.num_outputs()});
  float* out = logits.mutable_data();
  const Unlocked unlocked;
  student.predict(held.rows, out);
  return logits;
}

FloatArray proba(const PackedStudent& student, const py::object& x, const py::object& nodes) {
  const HeldRows held = hold(student, x, nodes, "PackedStudent.predict_proba");
  FloatArray result({held.rows.count, student.num_outputs()});
  float* out = result.mutable_data();
  const Unlocked unlocked;
  student.predict_proba(held.rows, out);
  return result;
}

py::tuple top(const PackedStudent& student, const py::object& x, std::int64_t k, const py::object& nodes) {
  const char* call = "PackedStudent.top_classes";
  check(call, [&] { check_top(student.file(), k); });
  const HeldRows held = hold(student, x, nodes, call);
  FloatArray probability({held.rows.count, k});
  IndexArray index({held.rows.count, k});
  float* values = probability.mutable_data();
  std::int64_t* indices = index.mutable_data();
  {
    const Unlocked unlocked;
    student.top_classes(held.rows, k, indices, values);
  }
  return py::make_tuple(probability, index);
}

py::tuple route(const PackedStudent& student, const py::object& x, std::int64_t layer, const py::object& nodes) {
  const char* call = "PackedStudent.route";
  check(call, [&] { check_routed_layer(student.file(), layer); });
  const std::int64_t k = student.file().layers[static_cast<std::size_t>(layer)].k;
  const HeldRows held = hold(student, x, nodes, call);
  FloatArray gate({held.rows.count, k});
  IndexArray index({held.rows.count, k});
  float* gates = gate.mutable_data();
  std::int64_t* indices = index.mutable_data();
  {
    const Unlocked unlocked;
    student.route(held.rows, static_cast<std::size_t>(layer), gates, indices);
  }
  return py::make_tuple(gate, index);
}

py::object name_list(const StringList& names) {
  if (names.size() == 0) return py::none();
  py::list list;
  for (std::size_t i = 0; i < names.size(); ++i) list.append(py::str(names[i].data(), names[i].size()));
  return list;
}

py::dict info(const PackedStudent& student) {
  const StudentFile& file = student.file();
  py::list layers;
  for (std::size_t l = 0; l < file.layers.size(); ++l) {
    const core::RoutedLayer& layer = file.layers[l];
    const bool projected = file.projection(l) != nullptr;
    py::dict entry;
    entry["router"] = layer.memory == nullptr ? "none" : projected ? "projected" : "cosine";
    if (projected) {
      entry["router_dim"] = layer.compared;
      entry["gates"] = layer.over_all ? "all" : "chosen";
    }
    entry["in"] = layer.in;
    entry["out"] = layer.out;
    entry["experts"] = layer.experts;
    entry["k"] = layer.k;
    entry["activation"] = layer.relu ? "relu" : "none";
    entry["weights"] = weight_type_name(layer.type);
    layers.append(entry);
  }
  py::dict features;
  features["columns"] = file.features.columns;
  features["names"] = name_list(file.features.names);
  features["normalize"] = normalize_name(file.features.normalize);
  features["position_columns"] = file.features.position_columns;
  features["position_nodes"] = file.features.position_nodes;
  py::dict result;
  result["format_version"] = kFormatVersion;
  result["producer"] = file.producer;
  result["model"] = file.model;
  result["classes"] = name_list(file.classes);
  result["features"] = features;
  result["members"] = file.members;
  result["layers"] = layers;
  result["num_bytes"] = file.num_bytes();
  result["num_threads"] = student.num_threads();
  result["cpu"] = core::isa_name(core::active_isa());
  return result;
}

py::memoryview content(const PackedStudent& student) {
  const std::string_view bytes = student.file().bytes();
  return py::memoryview::from_memory(bytes.data(), static_cast<py::ssize_t>(bytes.size()));
}

void set_num_threads(PackedStudent& student, std::int64_t n) {
  check("PackedStudent.num_threads", [&] { check_threads(n); });
  student.set_num_threads(static_cast<int>(n));
}

}  // namespace
}  // namespace gmoe::runtime

PYBIND11_MODULE(_runtime, m) {
  namespace rt = gmoe::runtime;
  m.doc() = "Packed students on NumPy arrays, without torch; see gmoe_ext.runtime.";
  m.attr("__version__") = GMOE_VERSION;
  gmoe::core::active_isa();  // a wrong GMOE_EXT_CPU is reported at import, not at the first prediction
  pthread_atfork(nullptr, nullptr, [] { rt::unlocked_calls = 0; });  // the calls of the parent's other threads
  py::module_::import("atexit").attr("register")(py::cpp_function(&rt::finish_calls));
  m.def("cpu_capability", [] { return gmoe::core::isa_name(gmoe::core::active_isa()); });
  py::class_<rt::PackedStudent>(m, "PackedStudent")
      .def(py::init(&rt::load), py::arg("path"))
      .def("predict", &rt::predict, py::arg("x"), py::arg("nodes") = py::none())
      .def("predict_proba", &rt::proba, py::arg("x"), py::arg("nodes") = py::none())
      .def("top_classes", &rt::top, py::arg("x"), py::arg("k"), py::arg("nodes") = py::none())
      .def("route", &rt::route, py::arg("x"), py::arg("layer") = 0, py::arg("nodes") = py::none())
      .def("info", &rt::info)
      .def_property_readonly("classes", [](const rt::PackedStudent& s) { return rt::name_list(s.file().classes); })
      .def_property_readonly("feature_names",
                             [](const rt::PackedStudent& s) { return rt::name_list(s.file().features.names); })
      .def("content", &rt::content, py::keep_alive<0, 1>())
      .def_property_readonly("num_outputs", &rt::PackedStudent::num_outputs)
      .def_property_readonly("num_bytes", [](const rt::PackedStudent& s) { return s.file().num_bytes(); })
      .def_property("num_threads", &rt::PackedStudent::num_threads, &rt::set_num_threads);
}
