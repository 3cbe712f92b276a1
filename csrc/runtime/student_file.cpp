#include "runtime/student_file.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <limits>

namespace gmoe::runtime {
namespace {

constexpr std::size_t kMaxLayers = 1024;  // of all members
// {"router":"none","in":1,"out":1,"experts":1,"k":1,"activation":"none","weights":"int8"}: no layer's text is shorter.
constexpr std::size_t kMinLayerBytes = 87;
constexpr std::int64_t kMaxColumns = std::numeric_limits<std::int32_t>::max();
constexpr float kUnitTolerance = 1e-3f;
constexpr double kMaxMemoryNorm = 100;  // of a projecting router: the largest temperature of a softmax
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

void read_names(JsonCursor& json, StringList& names) {
  if (!json.null_if()) json.array([&] { names.push_back(json.string()); });
}

std::string layer_text(std::size_t layer) { return "layers." + std::to_string(layer); }

// Memories are unit vectors, or behind a projection vectors whose length is the temperature of the softmax, bounded.
void check_memory(const core::RoutedLayer& layer, bool unit, const std::string& name) {
  for (std::int64_t e = 0; e < layer.experts; ++e) {
    double squares = 0;
    for (std::int64_t d = 0; d < layer.compared; ++d) {
      const double value = layer.memory[e * layer.compared + d];
      squares += value * value;
    }
    const double norm = std::sqrt(squares);
    const bool fits = unit ? norm == 0 || std::fabs(norm - 1) <= kUnitTolerance
                           : norm <= kMaxMemoryNorm * (1 + static_cast<double>(kUnitTolerance));
    if (!fits) {
      throw FormatError("tensor '" + name + "': row " + std::to_string(e) + " has norm " + std::to_string(norm) +
                        ", expected " + (unit ? "1 (or 0)" : "at most 100"));
    }
  }
}

// An infinite weight times a zero feature is NaN, but nothing if the feature is skipped: results would differ.
template <typename Bits>
void check_finite(const void* tensor, std::int64_t size, Bits exponent, const std::string& name) {
  const char* bytes = static_cast<const char*>(tensor);
  constexpr std::int64_t kAtOnce = 4096;  // values checked without a branch
  for (std::int64_t begin = 0; begin < size; begin += kAtOnce) {
    bool bad = false;
    for (std::int64_t i = begin; i < std::min(size, begin + kAtOnce); ++i) {
      Bits bits;
      std::memcpy(&bits, bytes + i * static_cast<std::int64_t>(sizeof bits), sizeof bits);
      bad |= (bits & exponent) == exponent;
    }
    if (bad) throw FormatError("tensor '" + name + "' contains NaN or infinite values");
  }
}

void check_finite_floats(const float* tensor, std::int64_t size, const std::string& name) {
  check_finite<std::uint32_t>(tensor, size, 0x7F800000, name);
}

void check_finite_weights(const core::RoutedLayer& layer, const std::string& name) {
  const std::int64_t rows = layer.experts * layer.in, size = rows * layer.out;
  switch (layer.type) {
    case core::WeightType::float32:
      check_finite<std::uint32_t>(layer.weight, size, 0x7F800000, name + ".weight");
      break;
    case core::WeightType::bfloat16: check_finite<std::uint16_t>(layer.weight, size, 0x7F80, name + ".weight"); break;
    case core::WeightType::int8: check_finite_floats(layer.weight_scale, rows, name + ".weight_scale"); break;
  }
  check_finite_floats(layer.bias, layer.experts * layer.out, name + ".bias");
}

void check_feature_names(const Features& features) {
  if (features.names.size() == 0) return;
  if (static_cast<std::int64_t>(features.names.size()) != features.columns) {
    throw FormatError("the student has " + std::to_string(features.names.size()) + " feature names and " +
                      std::to_string(features.columns) + " feature columns");
  }
  std::vector<std::string_view> sorted;
  for (std::size_t i = 0; i < features.names.size(); ++i) sorted.push_back(features.names[i]);
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end()) throw FormatError("two features are named '" + std::string(twice->substr(0, 64)) + "'");
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

std::int64_t StudentFile::widest() const {
  std::int64_t columns = 0;
  for (const core::RoutedLayer& layer : layers) columns = std::max({columns, layer.in, layer.out, layer.compared});
  return columns;
}

StudentFile::StudentFile(const std::string& path) : reader_(path, kMetadataKey, kChecksumKey) {
  // Growing by doubling, they could take more memory than the file.
  const std::size_t most_layers = std::min(kMaxLayers, reader_.metadata().size() / kMinLayerBytes + 1);
  layers.reserve(most_layers);
  projections.reserve(most_layers);
  read_document();
  check_sizes();
  bind_tensors();
  reader_.check_checksum();
}

void StudentFile::read_document() {
  JsonCursor json(reader_.metadata(), "student");
  const auto read_version = [&] {
    const std::int64_t version = json.integer();
    if (version == kFormatVersion) return;
    throw FormatError("the file has format version " + std::to_string(version) + ", this gmoe_ext reads version " +
                      std::to_string(kFormatVersion) + "; update gmoe_ext or pack the student again");
  };
  const auto read_layers = [&] {
    json.array([&] {
      if (layers.size() == kMaxLayers) json.fail("more than " + std::to_string(kMaxLayers) + " layers");
      read_layer(json);
    });
  };
  const auto read_members = [&] { members = size_in(json, "members", 1, static_cast<std::int64_t>(kMaxLayers)); };
  read_fields(json, "student",
              {{"format_version", read_version},
               {"producer", [&] { producer = json.string(); }},
               {"model", [&] { model = json.string(); }},
               {"classes", [&] { read_names(json, classes); }},
               {"features", [&] { read_features(json); }},
               {"members", read_members},
               {"layers", read_layers}});
  json.end();
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
               {"names", [&] { read_names(json, features.names); }, true},
               {"normalize", read_normalize},
               {"positions", read_positions}});
}

void StudentFile::read_layer(JsonCursor& json) {
  core::RoutedLayer layer{}, projection{};
  bool routed = false, projected = false, has_gates = false;
  const auto read_router = [&] {
    const std::string name = json.string();
    routed = name != "none";
    projected = name == "projected";
    if (routed && !projected && name != "cosine") {
      json.fail("layer: expected 'router' to be cosine, projected or none");
    }
  };
  const auto read_gates = [&] {
    const std::string name = json.string();
    if (name != "chosen" && name != "all") json.fail("layer: expected 'gates' to be chosen or all");
    layer.over_all = name == "all";
    has_gates = true;
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
               {"router_dim", [&] { projection.out = size_in(json, "router_dim", 1, kMaxColumns); }, true},
               {"gates", read_gates, true},
               {"activation", read_activation},
               {"weights", read_weights}});
  if (layer.k > layer.experts) json.fail("layer: 'k' is larger than 'experts'");
  if (!routed && layer.experts != 1) json.fail("layer: without a router expected 'experts' to be 1");
  if (projected != (projection.out > 0) || projected != has_gates) {
    json.fail("layer: 'router_dim' and 'gates' must be there with the router projected and with no other");
  }
  layer.compared = projected ? projection.out : layer.in;
  projection.in = layer.in;
  projection.experts = projection.k = 1;
  projection.type = layer.type;
  layers.push_back(layer);
  projections.push_back(projection);
  routed_.push_back(routed);
}

void StudentFile::check_sizes() const {
  if (layers.empty()) throw FormatError("the student has no layers");
  if (layers.size() % static_cast<std::size_t>(members) != 0) {
    throw FormatError(std::to_string(layers.size()) + " layers are no whole number of layers for each of " +
                      std::to_string(members) + " members");
  }
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const bool first = l % depth() == 0, last = l % depth() == depth() - 1;
    if (first && features.columns + features.position_columns != layers[l].in) {
      throw FormatError("features of " + std::to_string(features.columns) + " columns and positions of " +
                        std::to_string(features.position_columns) + " do not make the " + std::to_string(layers[l].in) +
                        " inputs of " + layer_text(l));
    }
    if (!first && layers[l].in != layers[l - 1].out) {
      throw FormatError(layer_text(l) + " takes " + std::to_string(layers[l].in) +
                        " inputs, the layer before it gives " + std::to_string(layers[l - 1].out));
    }
    if (last && layers[l].out != layers.back().out) {
      throw FormatError(layer_text(l) + " ends a member with " + std::to_string(layers[l].out) +
                        " outputs, the last one has " + std::to_string(layers.back().out));
    }
  }
  if (classes.size() != 0 && static_cast<std::int64_t>(classes.size()) != layers.back().out) {
    throw FormatError("the student has " + std::to_string(classes.size()) + " class names and " +
                      std::to_string(layers.back().out) + " outputs");
  }
  check_feature_names(features);
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
  const auto bind_experts = [&](core::RoutedLayer& layer, const std::string& name) {
    layer.weight = bind(name + ".weight", weight_kind(layer.type).dtype, {layer.experts, layer.in, layer.out});
    layer.bias = bind_floats(name + ".bias", {layer.experts, layer.out});
    if (layer.type == core::WeightType::int8) {
      layer.weight_scale = bind_floats(name + ".weight_scale", {layer.experts, layer.in});
    }
    check_finite_weights(layer, name);
  };
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const std::string name = layer_text(l);
    bind_experts(layers[l], name);
    if (!routed_[l]) continue;
    if (projection(l) != nullptr) bind_experts(projections[l], name + ".router");
    layers[l].memory = bind_floats(name + ".memory", {layers[l].experts, layers[l].compared});
    check_memory(layers[l], projection(l) == nullptr, name + ".memory");
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
