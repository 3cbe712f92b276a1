// The kernels on NumPy arrays: in float64 where x (and the parameters beside it) are, else in float32; one thread.
#include <string>
#include <vector>

#include "bindings/numpy_arrays.h"
#include "core/cpu/aggregate.h"
#include "core/cpu/check_index.h"
#include "core/cpu/cosine_topk.h"
#include "core/cpu/expert_linear.h"
#include "core/cpu/expert_plan.h"
#include "core/cpu/topk_softmax.h"

namespace gmoe::runtime {
namespace {

template <typename T>
using Dense = py::array_t<T, py::array::c_style>;

template <typename T>
Dense<T> take_numbers(const py::handle& value, const char* call, const char* name, py::ssize_t dimensions) {
  auto array = take<T>(value, call, name, "f", "floating-point numbers");
  if (array.ndim() != dimensions) {
    throw py::value_error(std::string(call) + ": expected '" + name + "' with " + std::to_string(dimensions) +
                          " dimensions, got " + shape_text(array));
  }
  return array;
}

void check(bool right, const char* call, const std::string& expected, const py::array& got) {
  if (!right) throw py::value_error(std::string(call) + ": expected " + expected + ", got " + shape_text(got));
}

void check_k(std::int64_t k, std::int64_t experts, const char* call) {
  if (k < 1 || k > experts) {
    throw py::value_error(std::string(call) + ": expected 'k' in [1, " + std::to_string(experts) + "], got " +
                          std::to_string(k));
  }
}

void check_bounds(const IndexArray& index, std::int64_t bound, const char* call, const char* name) {
  const std::int64_t bad = core::find_bad_index(index.data(), index.size(), bound);
  if (bad < 0) return;
  const py::object error = py::module_::import("gmoe_ext.errors").attr("GraphIndexError");
  const py::object raised = error(call, name, bad, index.data()[bad], bound);
  PyErr_SetObject(error.ptr(), raised.ptr());
  throw py::error_already_set();
}

template <typename T>
py::tuple cosine_topk(const py::array& x_like, const py::array& memory_like, std::int64_t k, double eps) {
  constexpr const char* kCall = "cosine_topk";
  const auto x = take_numbers<T>(x_like, kCall, "x", 2);
  const auto memory = take_numbers<T>(memory_like, kCall, "memory", 2);
  check(memory.shape(1) == x.shape(1), kCall, "'memory' of shape [E, " + std::to_string(x.shape(1)) + "]", memory);
  check_k(k, memory.shape(0), kCall);
  if (!(eps > 0)) throw py::value_error("cosine_topk: expected 'eps' > 0");
  Dense<T> gate({x.shape(0), static_cast<py::ssize_t>(k)});
  IndexArray index({x.shape(0), static_cast<py::ssize_t>(k)});
  const core::CosineTopk<T> call{x.data(), memory.data(), x.shape(0),          x.shape(1),          memory.shape(0),
                                 k,        eps,           gate.mutable_data(), index.mutable_data()};
  {
    const py::gil_scoped_release unlocked;
    core::cosine_topk(call);
  }
  return py::make_tuple(gate, index);
}

template <typename T>
py::tuple topk_softmax(const py::array& logits_like, std::int64_t k) {
  constexpr const char* kCall = "topk_softmax";
  const auto logits = take_numbers<T>(logits_like, kCall, "logits", 2);
  check_k(k, logits.shape(1), kCall);
  Dense<T> gate({logits.shape(0), static_cast<py::ssize_t>(k)});
  IndexArray index({logits.shape(0), static_cast<py::ssize_t>(k)});
  const core::TopkSoftmax<T> call{logits.data(),       logits.shape(0),     logits.shape(1), k,
                                  gate.mutable_data(), index.mutable_data()};
  {
    const py::gil_scoped_release unlocked;
    core::topk_softmax(call);
  }
  return py::make_tuple(gate, index);
}

template <typename T>
Dense<T> expert_linear(const py::array& x_like, const py::array& weight_like, const py::object& bias_like,
                       const py::array& gate_like, const py::array& index_like) {
  constexpr const char* kCall = "expert_linear";
  const auto x = take_numbers<T>(x_like, kCall, "x", 2);
  const auto weight = take_numbers<T>(weight_like, kCall, "weight", 3);
  const auto gate = take_numbers<T>(gate_like, kCall, "gate", 2);
  const auto index = take_integers<std::int64_t>(index_like, kCall, "index");
  const std::int64_t rows = x.shape(0), in = x.shape(1), experts = weight.shape(0), out = weight.shape(1);
  check(weight.shape(2) == in, kCall, "'weight' of shape [E, F, " + std::to_string(in) + "]", weight);
  check(gate.shape(0) == rows, kCall, "'gate' of shape [" + std::to_string(rows) + ", k]", gate);
  check(index.ndim() == 2 && index.shape(0) == rows && index.shape(1) == gate.shape(1), kCall,
        "'index' of the shape of 'gate', " + shape_text(gate), index);
  check_bounds(index, experts, kCall, "index");
  Dense<T> bias;
  if (!bias_like.is_none()) {
    bias = take_numbers<T>(bias_like, kCall, "bias", 2);
    check(bias.shape(0) == experts && bias.shape(1) == out, kCall,
          "'bias' of shape [" + std::to_string(experts) + ", " + std::to_string(out) + "]", bias);
  }
  Dense<T> y({static_cast<py::ssize_t>(rows), static_cast<py::ssize_t>(out)});
  T* result = y.mutable_data();
  const T* offset = bias_like.is_none() ? nullptr : bias.data();
  {
    const py::gil_scoped_release unlocked;
    std::vector<std::int64_t> offsets(static_cast<std::size_t>(experts + 1));
    std::vector<std::int64_t> order(static_cast<std::size_t>(index.size()));
    core::expert_plan(
        core::ExpertPlanSort<std::int64_t>{index.data(), index.size(), experts, offsets.data(), order.data()});
    const core::ExpertPlanView plan{offsets.data(), order.data(), experts, rows, gate.shape(1)};
    core::expert_linear(
        core::ExpertLinear<T>{x.data(), weight.data(), offset, gate.data(), plan, nullptr, rows, in, out}, result);
  }
  return y;
}

template <typename T>
Dense<T> aggregate(const py::array& offsets_like, const py::array& columns_like, const py::array& x_like,
                   const py::object& weight_like) {
  constexpr const char* kCall = "aggregate";
  const auto x = take_numbers<T>(x_like, kCall, "x", 2);
  const auto offsets = take_integers<std::int64_t>(offsets_like, kCall, "offsets");
  const auto columns = take_integers<std::int64_t>(columns_like, kCall, "columns");
  check(offsets.ndim() == 1 && offsets.size() >= 1, kCall, "'offsets' of shape [N + 1]", offsets);
  check(columns.ndim() == 1, kCall, "'columns' of shape [M]", columns);
  const std::int64_t rows = offsets.size() - 1, edges = columns.size();
  if (core::find_bad_offset(offsets.data(), rows, edges) >= 0) {
    throw py::value_error("aggregate: expected 'offsets' that rise from 0 to the " + std::to_string(edges) +
                          " entries of 'columns'");
  }
  check_bounds(columns, x.shape(0), kCall, "columns");
  Dense<T> weight;
  if (!weight_like.is_none()) {
    weight = take_numbers<T>(weight_like, kCall, "weight", 1);
    check(weight.size() == edges, kCall, "'weight' of shape [" + std::to_string(edges) + "]", weight);
  }
  Dense<T> y({static_cast<py::ssize_t>(rows), x.shape(1)});
  const core::Aggregate<T, std::int64_t> call{
      x.data(), offsets.data(), columns.data(), weight_like.is_none() ? nullptr : weight.data(),
      rows,     edges,          x.shape(1),     y.mutable_data()};
  {
    const py::gil_scoped_release unlocked;
    core::aggregate(call, static_cast<std::int64_t>(x.shape(0)));
  }
  return y;
}

bool is_double(const py::array& x) { return x.dtype().kind() == 'f' && x.itemsize() == sizeof(double); }

}  // namespace

void bind_kernels(py::module_& m) {
  m.def(
      "cosine_topk",
      [](const py::array& x, const py::array& memory, std::int64_t k, double eps) {
        const bool wide = is_double(x) && is_double(memory);
        return wide ? cosine_topk<double>(x, memory, k, eps) : cosine_topk<float>(x, memory, k, eps);
      },
      py::arg("x"), py::arg("memory"), py::arg("k"), py::arg("eps") = 1e-12);
  m.def(
      "topk_softmax",
      [](const py::array& logits, std::int64_t k) {
        return is_double(logits) ? topk_softmax<double>(logits, k) : topk_softmax<float>(logits, k);
      },
      py::arg("logits"), py::arg("k"));
  m.def(
      "expert_linear",
      [](const py::array& x, const py::array& weight, const py::object& bias, const py::array& gate,
         const py::array& index) -> py::array {
        if (is_double(x) && is_double(weight)) return expert_linear<double>(x, weight, bias, gate, index);
        return expert_linear<float>(x, weight, bias, gate, index);
      },
      py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("gate"), py::arg("index"));
  m.def(
      "aggregate",
      [](const py::array& offsets, const py::array& columns, const py::array& x,
         const py::object& weight) -> py::array {
        if (is_double(x)) return aggregate<double>(offsets, columns, x, weight);
        return aggregate<float>(offsets, columns, x, weight);
      },
      py::arg("offsets"), py::arg("columns"), py::arg("x"), py::arg("weight") = py::none());
}

}  // namespace gmoe::runtime
