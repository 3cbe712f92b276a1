// What a packed student's file says, checked against itself and against its tensors (docs/reference/runtime_format.md).
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
  std::int64_t columns = 0;           // of the rows a caller hands in
  std::int64_t position_columns = 0;  // appended to each; 0 without a table
  std::int64_t position_nodes = 0;
  Normalize normalize = Normalize::none;
  const float* positions = nullptr;  // [position_nodes, position_columns]
};

class StudentFile {
 public:
  explicit StudentFile(const std::string& path);

  std::int64_t num_bytes() const { return reader_.num_bytes(); }
  std::int64_t num_inputs() const { return layers.front().in; }  // features and positions
  std::int64_t widest() const;                                   // columns of the longest row on its way
  // Layers of a member.
  std::size_t depth() const { return layers.size() / static_cast<std::size_t>(members); }
  // What rows go through before the router of a layer compares them; null where they are compared as they are.
  const core::RoutedLayer* projection(std::size_t layer) const {
    return projections[layer].out == 0 ? nullptr : &projections[layer];
  }

  std::string producer, model;
  StringList classes;  // empty, or one name an output
  Features features;
  std::int64_t members = 1;                    // networks that vote, each on all features
  std::vector<core::RoutedLayer> layers;       // those of the first member, of the second, ...
  std::vector<core::RoutedLayer> projections;  // one a layer, of one expert; `out` 0 where there is none

 private:
  void read_document();
  void read_features(JsonCursor& json);
  void read_layer(JsonCursor& json);
  void check_sizes() const;
  void bind_tensors();

  SafetensorsReader reader_;
  std::vector<bool> routed_;  // one a layer
};

}  // namespace gmoe::runtime
