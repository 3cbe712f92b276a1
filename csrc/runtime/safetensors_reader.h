// A safetensors file mapped read-only, every number in its header checked before it is used: the header's length, the
// JSON, each tensor's dtype, shape, byte count, alignment and place. The tensors cover the data exactly, without a hole
// or an overlap. What is allocated is bounded by the header's own length, never by a number it claims.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/json_cursor.h"

namespace gmoe::runtime {

class MappedFile {
 public:
  explicit MappedFile(const std::string& path);  // std::system_error if it cannot be opened or mapped
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::string_view bytes() const { return {static_cast<const char*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

struct TensorEntry {
  static constexpr int kMaxRank = 4;

  std::string name;
  std::array<std::int64_t, kMaxRank> shape{};
  std::int64_t begin = 0, end = 0;  // bytes from the start of the data
  std::int8_t rank = 0;
  std::int8_t dtype = 0;  // position in the table of dtypes
};

class SafetensorsReader {
 public:
  // Keeps the value of one key of __metadata__; FormatError if the file is damaged or has no such key. The other key
  // may be absent; it holds the CRC-32 of that value and the tensor data.
  SafetensorsReader(const std::string& path, std::string_view metadata_key, std::string_view checksum_key);

  // FormatError if the file has a checksum and it differs.
  void check_checksum() const;
  const std::string& metadata() const { return metadata_; }
  // A tensor of exactly this dtype ("F32", "BF16", ...) and shape; FormatError if it is missing or differs.
  const void* tensor(const std::string& name, const char* dtype, const std::vector<std::int64_t>& shape) const;
  std::size_t num_tensors() const { return tensors_.size(); }
  std::string_view bytes() const { return file_.bytes(); }
  std::int64_t num_bytes() const { return static_cast<std::int64_t>(file_.bytes().size()); }

 private:
  std::string_view header() const;
  void read_metadata(JsonCursor& json, std::string_view metadata_key, std::string_view checksum_key);
  void read_tensor(JsonCursor& json, const std::string& name);
  void check_layout();

  MappedFile file_;
  std::int64_t data_begin_ = 0;  // from the start of the file
  std::vector<TensorEntry> tensors_;
  std::string metadata_, checksum_;
};

}  // namespace gmoe::runtime
