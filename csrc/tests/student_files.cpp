#include "tests/student_files.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "tests/check.h"

namespace gmoe::test {
namespace {

void normalize_rows(std::vector<float>& rows, std::int64_t dim) {
  for (std::size_t row = 0; row < rows.size(); row += static_cast<std::size_t>(dim)) {
    double sum = 0;
    for (std::int64_t d = 0; d < dim; ++d) sum += static_cast<double>(rows[row + d]) * rows[row + d];
    for (std::int64_t d = 0; d < dim; ++d) rows[row + d] = static_cast<float>(rows[row + d] / std::sqrt(sum));
  }
}

std::string layer_json(const LayerSizes& layer) {
  return join(R"({\"router\": \")", layer.experts > 1 ? "cosine" : "none", R"(\", \"in\": )", layer.in,
              R"(, \"out\": )", layer.out, R"(, \"experts\": )", layer.experts, R"(, \"k\": )", layer.k,
              R"(, \"activation\": \")", layer.relu ? "relu" : "none", R"(\"})");
}

std::string document(const StudentSizes& s) {
  const std::string positions = s.position_columns == 0 ? "null"
                                                        : join(R"({\"nodes\": )", s.position_nodes,
                                                               R"(, \"columns\": )", s.position_columns, "}");
  std::string layers;
  for (const LayerSizes& layer : s.layers) layers += (layers.empty() ? "" : ", ") + layer_json(layer);
  return join(R"({\"format_version\": 1, \"producer\": \"test\", \"model\": \"rbm\", \"classes\": null, )",
              R"(\"features\": {\"columns\": )", s.features, R"(, \"normalize\": \")",
              runtime::normalize_name(s.normalize), R"(\", \"positions\": )", positions, R"(}, \"layers\": [)", layers,
              "]}");
}

}  // namespace

std::string safetensors(const std::string& document, const std::vector<Tensor>& tensors) {
  std::string header = R"({"__metadata__": {"gmoe_ext.student": ")" + document + "\"}", data;
  for (const Tensor& tensor : tensors) {
    const std::size_t begin = data.size();
    data.append(reinterpret_cast<const char*>(tensor.values.data()), tensor.values.size() * sizeof(float));
    header += join(R"(, ")", tensor.name, R"(": {"dtype": "F32", "shape": )", tensor.shape, R"(, "data_offsets": [)",
                   begin, ", ", data.size(), "]}");
  }
  header += '}';
  header.resize((header.size() + 8 + 63) / 64 * 64 - 8, ' ');
  const std::uint64_t length = header.size();
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes + header + data;
}

Student random_student(Random& random, const StudentSizes& sizes) {
  Student student{sizes, {}, {}, {}, random.values<float>(sizes.position_nodes * sizes.position_columns)};
  for (const LayerSizes& layer : sizes.layers) {
    student.weight.push_back(random.values<float>(layer.experts * layer.in * layer.out));
    student.bias.push_back(random.values<float>(layer.experts * layer.out));
    student.memory.push_back(random.values<float>(layer.experts > 1 ? layer.experts * layer.in : 0));
    normalize_rows(student.memory.back(), layer.in);
  }
  return student;
}

std::string Student::bytes() const {
  std::vector<Tensor> tensors;
  for (std::size_t l = 0; l < sizes.layers.size(); ++l) {
    const LayerSizes& layer = sizes.layers[l];
    const std::string name = join("layers.", l);
    tensors.push_back({name + ".weight", join("[", layer.experts, ", ", layer.in, ", ", layer.out, "]"), weight[l]});
    tensors.push_back({name + ".bias", join("[", layer.experts, ", ", layer.out, "]"), bias[l]});
    if (layer.experts > 1) {
      tensors.push_back({name + ".memory", join("[", layer.experts, ", ", layer.in, "]"), memory[l]});
    }
  }
  if (sizes.position_columns > 0) {
    tensors.push_back({"positions", join("[", sizes.position_nodes, ", ", sizes.position_columns, "]"), positions});
  }
  return safetensors(document(sizes), tensors);
}

Answer answer(const Student& student, const float* x, const float* position) {
  const StudentSizes& s = student.sizes;
  std::vector<double> row(x, x + s.features);
  double size = 0;
  for (const double v : row) size += s.normalize == runtime::Normalize::row_l1 ? std::fabs(v) : v * v;
  if (s.normalize == runtime::Normalize::row_l2) size = std::sqrt(size);
  for (double& v : row) v /= s.normalize == runtime::Normalize::none ? 1 : std::max(size, 1e-12);
  row.insert(row.end(), position, position + s.position_columns);

  Answer result{{}, {}, {}, 2};
  for (std::size_t l = 0; l < s.layers.size(); ++l) {
    const LayerSizes& layer = s.layers[l];
    double squares = 0;
    for (const double v : row) squares += v * v;
    std::vector<double> cosine = zeros(layer.experts);
    for (std::int64_t i = 0; layer.experts > 1 && i < layer.experts * layer.in; ++i) {
      cosine[i / layer.in] += student.memory[l][i] * row[i % layer.in] / std::max(std::sqrt(squares), 1e-12);
    }
    std::vector<std::int64_t> order(static_cast<std::size_t>(layer.experts));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return cosine[a] > cosine[b]; });
    if (layer.k < layer.experts) {
      result.smallest_gap = std::min(result.smallest_gap, cosine[order[layer.k - 1]] - cosine[order[layer.k]]);
    }
    order.resize(static_cast<std::size_t>(layer.k));
    std::sort(order.begin(), order.end());
    double total = 0;
    for (const std::int64_t e : order) total += std::exp(cosine[e]);
    std::vector<double> y = zeros(layer.out), gates;
    for (const std::int64_t e : order) {
      gates.push_back(std::exp(cosine[e]) / total);
      for (std::int64_t c = 0; c < layer.out; ++c) {
        double z = student.bias[l][e * layer.out + c];
        for (std::int64_t j = 0; j < layer.in; ++j) z += row[j] * student.weight[l][(e * layer.in + j) * layer.out + c];
        y[c] += gates.back() * z;
      }
    }
    for (double& v : y) v = layer.relu ? std::max(v, 0.0) : v;
    result.gate.push_back(std::move(gates));
    result.expert.push_back(std::move(order));
    row = std::move(y);
  }
  result.logits = std::move(row);
  return result;
}

}  // namespace gmoe::test
