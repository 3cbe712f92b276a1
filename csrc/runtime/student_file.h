// A packed student's file (docs/reference/runtime_format.md): its document, checked against itself and its tensors.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/cpu/routed_layer.h"
#include "runtime/safetensors_reader.h"

namespace gmoe::runtime {

inline constexpr std::int64_t kFormatVersion = 1;
inline constexpr char kMetadataKey[] = "gmoe_ext.student";
inline constexpr char kChecksumKey[] = "gmoe_ext.crc32";  // of the document and the tensor data, in decimal digits

// How a row of features is prepared before the first layer.
enum class Normalize { none, row_l1, row_l2 };
const char* normalize_name(Normalize normalize);
const char* weight_type_name(core::WeightType type);

// Many short strings in one, each with a zero byte behind it.
class StringList {
 public:
  void push_back(std::string_view text);
  std::size_t size() const { return ends_.size(); }
  std::string_view operator[](std::size_t i) const;

 private:
  std::string text_;
  std::vector<std::uint32_t> ends_;
};

struct Features {
  std::int64_t columns = 0;           // of the rows that callers pass
  std::int64_t position_columns = 0;  // appended to each; 0 without a table
  std::int64_t position_nodes = 0;
  Normalize normalize = Normalize::none;
  const float* positions = nullptr;  // [position_nodes, position_columns]
  StringList names;                  // empty, or one different name per column
};

class StudentFile {
 public:
  explicit StudentFile(const std::string& path);

  std::string_view bytes() const { return reader_.bytes(); }
  std::int64_t num_bytes() const { return reader_.num_bytes(); }
  std::int64_t num_inputs() const { return layers.front().in; }  // features and positions
  std::int64_t widest() const;                                   // columns of the widest input or output
  // Layers of a member.
  std::size_t depth() const { return layers.size() / static_cast<std::size_t>(members); }
  // The projection of a layer's router, or null.
  const core::RoutedLayer* projection(std::size_t layer) const {
    return projections[layer].out == 0 ? nullptr : &projections[layer];
  }

  std::string producer, model;
  StringList classes;  // empty, or one name per output
  Features features;
  std::int64_t members = 1;                    // networks that vote, each on all features
  std::vector<core::RoutedLayer> layers;       // those of the first member, of the second, ...
  std::vector<core::RoutedLayer> projections;  // one per layer, of one expert; `out` is 0 if there is none

 private:
  void read_document();
  void read_features(JsonCursor& json);
  void read_layer(JsonCursor& json);
  void check_sizes() const;
  void bind_tensors();

  SafetensorsReader reader_;
  std::vector<bool> routed_;  // one per layer
};

}  // namespace gmoe::runtime
