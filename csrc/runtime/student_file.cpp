#include "runtime/student_file.h"

#include <cmath>
#include <functional>
#include <initializer_list>
#include <limits>

namespace gmoe::runtime {
namespace {

constexpr std::size_t kMaxLayers = 64;
constexpr std::int64_t kMaxColumns = std::numeric_limits<std::int32_t>::max();
constexpr float kUnitTolerance = 1e-3f;
struct WeightKind {
  core::WeightType type;
  const char* name;   // in the document
  const char* dtype;  // of the tensor
};
constexpr WeightKind kWeightKinds[] = {{core::WeightType::float32, "float32", "F32"},
                                       {core::WeightType::bfloat16, "bfloat16", "BF16"},
                                       {core::WeightType::int8, "int8", "I8"}};
const WeightKind& weight_kind(core::WeightType type) { return kWeightKinds[static_cast<std::size_t>(type)]; }

constexpr Normalize kNormalizes[] = {Normalize::none, Normalize::row_l1, Normalize::row_l2};

struct Field {
  const char* name;
  std::function<void()> read;
  bool optional = false;
};

// An object with these fields and no others, each once, in any order.
void read_fields(JsonCursor& json, const std::string& what, std::initializer_list<Field> fields) {
  std::uint32_t seen = 0;
  json.object([&](const std::string& key) {
    std::uint32_t bit = 1;
    for (const Field& field : fields) {
      if (key == field.name) {
        if ((seen & bit) != 0) json.fail(what + ": '" + key + "' appears twice");
        seen |= bit;
        field.read();
        return;
      }
      bit <<= 1;
    }
    json.fail(what + ": unknown field '" + key.substr(0, 64) + "'");
  });
  std::uint32_t bit = 1;
  for (const Field& field : fields) {
    if ((seen & bit) == 0 && !field.optional) json.fail(what + ": '" + field.name + "' is missing");
    bit <<= 1;
  }
}

std::int64_t size_in(JsonCursor& json, const char* what, std::int64_t low, std::int64_t high) {
  const std::int64_t value = json.integer();
  if (value < low || value > high) {
    json.fail(std::string("expected '") + what + "' in [" + std::to_string(low) + ", " + std::to_string(high) +
              "], got " + std::to_string(value));
  }
  return value;
}

std::string layer_text(std::size_t layer) { return "layers." + std::to_string(layer); }

// The router takes the rows as unit vectors, and bounded cosines are what its softmax relies on.
void check_memory(const core::RoutedLayer& layer, const std::string& name) {
  for (std::int64_t e = 0; e < layer.experts; ++e) {
    double squares = 0;
    for (std::int64_t d = 0; d < layer.in; ++d) {
      const double value = layer.memory[e * layer.in + d];
      squares += value * value;
    }
    const double norm = std::sqrt(squares);
    if (norm != 0 && !(std::fabs(norm - 1) <= kUnitTolerance)) {
      throw FormatError("tensor '" + name + "': row " + std::to_string(e) + " has norm " + std::to_string(norm) +
                        ", expected 1 (or 0)");
    }
  }
}

}  // namespace

const char* normalize_name(Normalize normalize) {
  switch (normalize) {
    case Normalize::row_l1: return "row_l1";
    case Normalize::row_l2: return "row_l2";
    case Normalize::none: break;
  }
  return "none";
}

const char* weight_type_name(core::WeightType type) { return weight_kind(type).name; }

void StringList::push_back(std::string_view text) {
  text_ += text;
  text_ += '\0';
  ends_.push_back(static_cast<std::uint32_t>(text_.size()));
}

std::string_view StringList::operator[](std::size_t i) const {
  const std::uint32_t begin = i == 0 ? 0 : ends_[i - 1];
  return std::string_view(text_).substr(begin, ends_[i] - begin - 1);
}

StudentFile::StudentFile(const std::string& path) : reader_(path, kMetadataKey) {
  read_document();
  check_sizes();
  bind_tensors();
}

void StudentFile::read_document() {
  JsonCursor json(reader_.metadata(), "student");
  const auto read_version = [&] {
    format_version = json.integer();
    if (format_version < kOldestVersion || format_version > kFormatVersion) {
      throw FormatError("the file has format version " + std::to_string(format_version) +
                        ", this gmoe_ext reads versions " + std::to_string(kOldestVersion) + " to " +
                        std::to_string(kFormatVersion) + "; update gmoe_ext or pack the student again");
    }
  };
  const auto read_classes = [&] {
    if (!json.null_if()) json.array([&] { classes.push_back(json.string()); });
  };
  const auto read_layers = [&] {
    json.array([&] {
      if (layers.size() == kMaxLayers) json.fail("more than 64 layers");
      read_layer(json);
    });
  };
  read_fields(json, "student",
              {{"format_version", read_version},
               {"producer", [&] { producer = json.string(); }},
               {"model", [&] { model = json.string(); }},
               {"classes", read_classes},
               {"features", [&] { read_features(json); }},
               {"layers", read_layers}});
  json.end();
  const std::size_t expected = format_version == 1 ? 0 : layers.size();
  if (named_weights_ != expected) {
    throw FormatError("layer: 'weights' must be there in format version 2 and not before, got version " +
                      std::to_string(format_version));
  }
}

void StudentFile::read_features(JsonCursor& json) {
  const auto read_normalize = [&] {
    const std::string name = json.string();
    for (const Normalize normalize : kNormalizes) {
      if (name == normalize_name(normalize)) {
        features.normalize = normalize;
        return;
      }
    }
    json.fail("features: expected 'normalize' to be none, row_l1 or row_l2");
  };
  const auto read_positions = [&] {
    if (json.null_if()) return;
    read_fields(json, "positions",
                {{"nodes", [&] { features.position_nodes = size_in(json, "nodes", 0, kMaxColumns); }},
                 {"columns", [&] { features.position_columns = size_in(json, "columns", 1, kMaxColumns); }}});
  };
  read_fields(json, "features",
              {{"columns", [&] { features.columns = size_in(json, "columns", 0, kMaxColumns); }},
               {"normalize", read_normalize},
               {"positions", read_positions}});
}

void StudentFile::read_layer(JsonCursor& json) {
  core::RoutedLayer layer{};
  bool routed = false;
  const auto read_router = [&] {
    const std::string name = json.string();
    if (name != "cosine" && name != "none") json.fail("layer: expected 'router' to be cosine or none");
    routed = name == "cosine";
  };
  const auto read_activation = [&] {
    const std::string name = json.string();
    if (name != "relu" && name != "none") json.fail("layer: expected 'activation' to be relu or none");
    layer.relu = name == "relu";
  };
  const auto read_weights = [&] {
    const std::string name = json.string();
    for (const WeightKind& kind : kWeightKinds) {
      if (name != kind.name) continue;
      layer.type = kind.type;
      ++named_weights_;
      return;
    }
    json.fail("layer: expected 'weights' to be float32, bfloat16 or int8");
  };
  read_fields(json, "layer",
              {{"in", [&] { layer.in = size_in(json, "in", 1, kMaxColumns); }},
               {"out", [&] { layer.out = size_in(json, "out", 1, kMaxColumns); }},
               {"experts", [&] { layer.experts = size_in(json, "experts", 1, kMaxColumns); }},
               {"k", [&] { layer.k = size_in(json, "k", 1, kMaxColumns); }},
               {"router", read_router},
               {"activation", read_activation},
               {"weights", read_weights, true}});
  if (layer.k > layer.experts) json.fail("layer: 'k' is larger than 'experts'");
  if (!routed && layer.experts != 1) json.fail("layer: without a router expected 'experts' to be 1");
  layers.push_back(layer);
  routed_.push_back(routed);
}

void StudentFile::check_sizes() const {
  if (layers.empty()) throw FormatError("the student has no layers");
  if (features.columns + features.position_columns != layers.front().in) {
    throw FormatError("features of " + std::to_string(features.columns) + " columns and positions of " +
                      std::to_string(features.position_columns) + " do not make the first layer's " +
                      std::to_string(layers.front().in) + " inputs");
  }
  for (std::size_t l = 1; l < layers.size(); ++l) {
    if (layers[l].in != layers[l - 1].out) {
      throw FormatError(layer_text(l) + " takes " + std::to_string(layers[l].in) +
                        " inputs, the layer before it gives " + std::to_string(layers[l - 1].out));
    }
  }
  if (classes.size() != 0 && static_cast<std::int64_t>(classes.size()) != layers.back().out) {
    throw FormatError("the student has " + std::to_string(classes.size()) + " class names and " +
                      std::to_string(layers.back().out) + " outputs");
  }
}

void StudentFile::bind_tensors() {
  std::size_t bound = 0;
  const auto bind = [&](const std::string& name, const char* dtype, const std::vector<std::int64_t>& shape) {
    ++bound;
    return reader_.tensor(name, dtype, shape);
  };
  const auto bind_floats = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
    return static_cast<const float*>(bind(name, "F32", shape));
  };
  for (std::size_t l = 0; l < layers.size(); ++l) {
    core::RoutedLayer& layer = layers[l];
    const std::string name = layer_text(l);
    layer.weight = bind(name + ".weight", weight_kind(layer.type).dtype, {layer.experts, layer.in, layer.out});
    layer.bias = bind_floats(name + ".bias", {layer.experts, layer.out});
    if (layer.type == core::WeightType::int8) {
      layer.weight_scale = bind_floats(name + ".weight_scale", {layer.experts, layer.in});
    }
    if (routed_[l]) {
      layer.memory = bind_floats(name + ".memory", {layer.experts, layer.in});
      check_memory(layer, name + ".memory");
    }
  }
  if (features.position_columns > 0) {
    features.positions = bind_floats("positions", {features.position_nodes, features.position_columns});
  }
  if (bound != reader_.num_tensors()) {
    throw FormatError("the file has " + std::to_string(reader_.num_tensors()) + " tensors, the student uses " +
                      std::to_string(bound));
  }
}

}  // namespace gmoe::runtime
