#include "tests/student_files.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "tests/check.h"

namespace gmoe::test {
namespace {

constexpr double kTemperature = 3;

void normalize_rows(std::vector<float>& rows, std::int64_t dim, double norm) {
  for (std::size_t row = 0; row < rows.size(); row += static_cast<std::size_t>(dim)) {
    double sum = 0;
    for (std::int64_t d = 0; d < dim; ++d) sum += static_cast<double>(rows[row + d]) * rows[row + d];
    for (std::int64_t d = 0; d < dim; ++d) rows[row + d] = static_cast<float>(rows[row + d] / std::sqrt(sum) * norm);
  }
}

std::string shape_text(std::initializer_list<std::int64_t> shape) {
  std::string text;
  for (const std::int64_t size : shape) text += join(text.empty() ? "[" : ", ", size);
  return text + "]";
}

template <typename T>
Tensor tensor(const std::string& name, const char* dtype, std::initializer_list<std::int64_t> shape,
              const std::vector<T>& values) {
  return {name, dtype, shape_text(shape),
          std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T))};
}

// Appends matrices as they are stored, and returns what they stand for.
Matrices random_matrices(Random& random, const LayerSizes& layer, const std::string& name,
                         std::vector<Tensor>& tensors) {
  const std::int64_t size = layer.experts * layer.in * layer.out;
  std::vector<double> weight;
  const auto store = [&](const auto& values, const char* dtype) {
    for (const auto value : values) weight.push_back(core::widen(value));
    tensors.push_back(tensor(name + ".weight", dtype, {layer.experts, layer.in, layer.out}, values));
  };
  if (layer.type == core::WeightType::float32) store(random.values<float>(size), "F32");
  if (layer.type == core::WeightType::bfloat16) store(random.values<core::bfloat16>(size), "BF16");
  if (layer.type == core::WeightType::int8) {
    const auto scale = random.values<float>(layer.experts * layer.in);
    std::vector<std::int8_t> values;
    for (std::int64_t i = 0; i < size; ++i) {
      values.push_back(static_cast<std::int8_t>(random.below(255) - 127));
      weight.push_back(static_cast<double>(scale[i / layer.out]) * values.back());
    }
    tensors.push_back(tensor(name + ".weight", "I8", {layer.experts, layer.in, layer.out}, values));
    tensors.push_back(tensor(name + ".weight_scale", "F32", {layer.experts, layer.in}, scale));
  }
  const auto bias = random.values<float>(layer.experts * layer.out);
  tensors.push_back(tensor(name + ".bias", "F32", {layer.experts, layer.out}, bias));
  return {weight, bias};
}

std::string layer_json(const LayerSizes& layer) {
  const std::string weights = join(R"(, \"weights\": \")", runtime::weight_type_name(layer.type), R"(\")");
  const std::string projection = layer.router_dim == 0
                                     ? ""
                                     : join(R"(, \"router_dim\": )", layer.router_dim, R"(, \"gates\": \")",
                                            layer.over_all ? "all" : "chosen", R"(\")");
  const char* router = layer.experts == 1 ? "none" : layer.router_dim > 0 ? "projected" : "cosine";
  return join(R"({\"router\": \")", router, R"(\")", projection, R"(, \"in\": )", layer.in, R"(, \"out\": )", layer.out,
              R"(, \"experts\": )", layer.experts, R"(, \"k\": )", layer.k, weights, R"(, \"activation\": \")",
              layer.relu ? "relu" : "none", R"(\"})");
}

// The text of a JSON string, as the metadata holds it.
std::string document(const StudentSizes& s) {
  const std::string positions = s.position_columns == 0 ? "null"
                                                        : join(R"({\"nodes\": )", s.position_nodes,
                                                               R"(, \"columns\": )", s.position_columns, "}");
  std::string layers;
  for (const LayerSizes& layer : s.layers) layers += (layers.empty() ? "" : ", ") + layer_json(layer);
  return join(R"({\"format_version\": )", runtime::kFormatVersion, R"(, \"members\": )", s.members,
              R"(, \"producer\": \"test\", \"model\": \"rbm\", )", R"(\"classes\": null, \"features\": {\"columns\": )",
              s.features, R"(, \"normalize\": \")", runtime::normalize_name(s.normalize), R"(\", \"positions\": )",
              positions, R"(}, \"layers\": [)", layers, "]}");
}

}  // namespace

Student random_student(Random& random, const StudentSizes& sizes) {
  Student student{sizes, {}, {}, {}, random.values<float>(sizes.position_nodes * sizes.position_columns), {}};
  for (std::size_t l = 0; l < sizes.layers.size(); ++l) {
    const LayerSizes& layer = sizes.layers[l];
    const std::string name = join("layers.", l);
    student.layers.push_back(random_matrices(random, layer, name, student.tensors));
    const bool projected = layer.router_dim > 0;
    const LayerSizes projection{layer.in, layer.router_dim, 1, 1, false, layer.type};
    student.projections.push_back(projected ? random_matrices(random, projection, name + ".router", student.tensors)
                                            : Matrices{});
    const std::int64_t dim = projected ? layer.router_dim : layer.in;
    student.memory.push_back(random.values<float>(layer.experts > 1 ? layer.experts * dim : 0));
    normalize_rows(student.memory.back(), dim, projected ? kTemperature : 1);
    if (layer.experts == 1) continue;
    student.tensors.push_back(tensor(name + ".memory", "F32", {layer.experts, dim}, student.memory.back()));
  }
  if (sizes.position_columns > 0) {
    student.tensors.push_back(
        tensor("positions", "F32", {sizes.position_nodes, sizes.position_columns}, student.positions));
  }
  return student;
}

std::string Student::bytes() const {
  std::string header = R"({"__metadata__": {"gmoe_ext.student": ")" + document(sizes) + "\"}", data;
  // Elements of 4 bytes, then of 2, then of 1: all start at a multiple of their size.
  for (const char* dtype : {"F32", "BF16", "I8"}) {
    for (const Tensor& tensor : tensors) {
      if (tensor.dtype != dtype) continue;
      header += join(R"(, ")", tensor.name, R"(": {"dtype": ")", dtype, R"(", "shape": )", tensor.shape,
                     R"(, "data_offsets": [)", data.size(), ", ", data.size() + tensor.bytes.size(), "]}");
      data += tensor.bytes;
    }
  }
  return with_header(header + "}", data);
}

std::string with_header(std::string header, const std::string& data) {
  header.resize((header.size() + 8 + 63) / 64 * 64 - 8, ' ');
  const std::uint64_t length = header.size();
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes + header + data;
}

namespace {

// What expert e makes of a row.
double product(const Matrices& m, const LayerSizes& layer, std::int64_t e, std::int64_t c,
               const std::vector<double>& row) {
  double z = m.bias[e * layer.out + c];
  for (std::int64_t j = 0; j < layer.in; ++j) z += row[j] * m.weight[(e * layer.in + j) * layer.out + c];
  return z;
}

std::vector<double> scores(const Student& student, std::size_t l, const std::vector<double>& row) {
  const LayerSizes& layer = student.sizes.layers[l];
  std::vector<double> compared = row, score = zeros(layer.experts);
  if (layer.experts == 1) return score;
  if (layer.router_dim > 0) {
    const LayerSizes projection{layer.in, layer.router_dim, 1, 1, false};
    compared = zeros(layer.router_dim);
    for (std::int64_t h = 0; h < layer.router_dim; ++h) {
      compared[h] = product(student.projections[l], projection, 0, h, row);
    }
  }
  double squares = 0;
  for (const double v : compared) squares += v * v;
  for (std::size_t i = 0; i < student.memory[l].size(); ++i) {
    score[i / compared.size()] +=
        student.memory[l][i] * compared[i % compared.size()] / std::max(std::sqrt(squares), 1e-12);
  }
  return score;
}

// The layer's answer to a row; its routing goes to the end of `result`.
std::vector<double> layer_answer(const Student& student, std::size_t l, const std::vector<double>& row,
                                 Answer& result) {
  const LayerSizes& layer = student.sizes.layers[l];
  const std::vector<double> score = scores(student, l, row);
  std::vector<std::int64_t> order(static_cast<std::size_t>(layer.experts));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return score[a] > score[b]; });
  if (layer.k < layer.experts) {
    result.smallest_gap = std::min(result.smallest_gap, score[order[layer.k - 1]] - score[order[layer.k]]);
  }
  double total = 0;
  for (std::int64_t r = 0; r < (layer.over_all ? layer.experts : layer.k); ++r) total += std::exp(score[order[r]]);
  order.resize(static_cast<std::size_t>(layer.k));
  std::sort(order.begin(), order.end());
  std::vector<double> y = zeros(layer.out), gates;
  for (const std::int64_t e : order) {
    gates.push_back(std::exp(score[e]) / total);
    for (std::int64_t c = 0; c < layer.out; ++c) y[c] += gates.back() * product(student.layers[l], layer, e, c, row);
  }
  for (double& v : y) v = layer.relu ? std::max(v, 0.0) : v;
  result.gate.push_back(std::move(gates));
  result.expert.push_back(std::move(order));
  return y;
}

}  // namespace

Answer answer(const Student& student, const float* x, const float* position) {
  const StudentSizes& s = student.sizes;
  std::vector<double> input(x, x + s.features);
  double size = 0;
  for (const double v : input) size += s.normalize == runtime::Normalize::row_l1 ? std::fabs(v) : v * v;
  if (s.normalize == runtime::Normalize::row_l2) size = std::sqrt(size);
  for (double& v : input) v /= s.normalize == runtime::Normalize::none ? 1 : std::max(size, 1e-12);
  input.insert(input.end(), position, position + s.position_columns);

  Answer result{{}, {}, {}, 2};
  std::vector<double> mean = zeros(s.layers.back().out), row;
  for (std::size_t l = 0; l < s.layers.size(); ++l) {
    row = layer_answer(student, l, l % s.depth() == 0 ? input : row, result);
    if (l % s.depth() + 1 < s.depth()) continue;
    double total = 0;
    for (const double z : row) total += std::exp(z);
    for (std::size_t c = 0; c < row.size(); ++c) mean[c] += std::exp(row[c]) / total / static_cast<double>(s.members);
  }
  for (double& v : mean) v = std::log(v);
  result.logits = s.members == 1 ? row : mean;
  return result;
}

}  // namespace gmoe::test
