#include "runtime/safetensors_reader.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <system_error>

namespace gmoe::runtime {
namespace {

static_assert(std::endian::native == std::endian::little,
              "safetensors numbers are little-endian and are used in place");

constexpr std::int64_t kLengthBytes = 8;            // the header's length comes first
constexpr std::int64_t kMaxHeaderBytes = 16 << 20;  // many times the class names of a large student
constexpr std::size_t kMaxNameBytes = 128;
// {"a":{"dtype":"F32","shape":[],"data_offsets":[0,0]}} less the outer braces: no entry is shorter.
constexpr std::int64_t kMinEntryBytes = 50;

struct DtypeInfo {
  const char* name;
  std::int64_t bytes;
};
constexpr DtypeInfo kDtypes[] = {{"F32", 4}, {"F64", 8}, {"F16", 2}, {"BF16", 2}, {"I64", 8}, {"U64", 8}, {"I32", 4},
                                 {"U32", 4}, {"I16", 2}, {"U16", 2}, {"I8", 1},   {"U8", 1},  {"BOOL", 1}};

std::string shape_text(const std::int64_t* shape, std::size_t rank) {
  std::string text = "[";
  for (std::size_t d = 0; d < rank; ++d) {
    if (d > 0) text += ", ";
    text += std::to_string(shape[d]);
  }
  text += ']';
  return text;
}

[[noreturn]] void fail_tensor(const std::string& name, const std::string& what) {
  throw FormatError("tensor '" + name + "': " + what);
}

std::int8_t find_dtype(const std::string& tensor, const std::string& name) {
  for (std::size_t i = 0; i < std::size(kDtypes); ++i) {
    if (name == kDtypes[i].name) return static_cast<std::int8_t>(i);
  }
  fail_tensor(tensor, "unknown dtype '" + name.substr(0, 16) + "'");
}

// The size of the tensor by its shape; refuses one that overflows, which no file can have.
std::int64_t bytes_of(const TensorEntry& entry) {
  std::int64_t bytes = kDtypes[entry.dtype].bytes;
  for (int d = 0; d < entry.rank; ++d) {
    if (__builtin_mul_overflow(bytes, entry.shape[static_cast<std::size_t>(d)], &bytes)) {
      fail_tensor(entry.name, "its shape holds more than 2^63 bytes");
    }
  }
  return bytes;
}

// CRC-32 as in zlib, eight bytes a step: table[n][b] is the remainder of byte b followed by n zero bytes.
class Crc32 {
 public:
  Crc32() {
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
      std::uint32_t crc = byte;
      for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xEDB88320u : 0u);
      table_[0][byte] = crc;
    }
    for (std::size_t n = 1; n < 8; ++n) {
      for (std::size_t byte = 0; byte < 256; ++byte) table_[n][byte] = step(table_[n - 1][byte], 0);
    }
  }

  template <typename... More>
  std::uint32_t update(std::uint32_t crc, std::string_view bytes, More... more) const {
    std::size_t i = 0;
    for (; i + 8 <= bytes.size(); i += 8) {
      std::uint64_t word;
      std::memcpy(&word, bytes.data() + i, sizeof word);
      word ^= crc;
      crc = 0;
      for (std::size_t n = 0; n < 8; ++n) crc ^= table_[7 - n][(word >> (8 * n)) & 255];
    }
    for (; i < bytes.size(); ++i) crc = step(crc, static_cast<unsigned char>(bytes[i]));
    if constexpr (sizeof...(more) > 0) return update(crc, more...);
    return crc;
  }

 private:
  std::uint32_t step(std::uint32_t crc, unsigned char byte) const { return (crc >> 8) ^ table_[0][(crc ^ byte) & 255]; }

  std::array<std::array<std::uint32_t, 256>, 8> table_;
};

}  // namespace

MappedFile::MappedFile(const std::string& path) {
  const auto fail = [](const char* what) { throw std::system_error(errno, std::generic_category(), what); };
  // Without O_NONBLOCK a pipe would keep the caller waiting for somebody to write into it.
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) fail("open");
  struct stat status{};
  const bool known = ::fstat(file, &status) == 0;
  const bool regular = known && S_ISREG(status.st_mode);
  if (regular && status.st_size > 0) {
    size_ = static_cast<std::size_t>(status.st_size);
    data_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
  }
  const int error = errno;
  ::close(file);
  errno = error;
  if (!known) fail("fstat");
  if (!regular) throw FormatError("not a regular file");
  if (data_ == MAP_FAILED) {
    data_ = nullptr;
    fail("mmap");
  }
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

SafetensorsReader::SafetensorsReader(const std::string& path, std::string_view metadata_key,
                                     std::string_view checksum_key)
    : file_(path) {
  const std::string_view bytes = file_.bytes();
  const auto size = static_cast<std::int64_t>(bytes.size());
  if (size < kLengthBytes) {
    throw FormatError("the file has " + std::to_string(size) + " bytes, too few for a safetensors header");
  }
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof length);
  if (length > static_cast<std::uint64_t>(kMaxHeaderBytes) || static_cast<std::int64_t>(length) > size - kLengthBytes) {
    throw FormatError("the header claims " + std::to_string(length) + " bytes, expected at most " +
                      std::to_string(std::min(kMaxHeaderBytes, size - kLengthBytes)) +
                      ": the file is cut short or is no safetensors file");
  }
  data_begin_ = kLengthBytes + static_cast<std::int64_t>(length);

  tensors_.reserve(static_cast<std::size_t>(static_cast<std::int64_t>(length) / kMinEntryBytes + 1));
  bool has_metadata = false;
  JsonCursor json(header(), "header");
  json.object([&](const std::string& name) {
    if (name == "__metadata__") {
      if (has_metadata) json.fail("'__metadata__' appears twice");
      has_metadata = true;
      read_metadata(json, metadata_key, checksum_key);
    } else {
      read_tensor(json, name);
    }
  });
  json.end();
  tensors_.shrink_to_fit();  // frees the room reserved for short entries
  if (metadata_.empty()) {
    throw FormatError("the metadata has no '" + std::string(metadata_key) +
                      "': this is no packed student; make one with gmoe_ext.export.pack");
  }
  check_layout();
}

std::string_view SafetensorsReader::header() const {
  return file_.bytes().substr(kLengthBytes, static_cast<std::size_t>(data_begin_ - kLengthBytes));
}

void SafetensorsReader::read_metadata(JsonCursor& json, std::string_view metadata_key, std::string_view checksum_key) {
  json.object([&](const std::string& key) {
    std::string value = json.string();
    if (key != metadata_key && key != checksum_key) return;
    std::string& kept = key == metadata_key ? metadata_ : checksum_;
    if (!kept.empty()) json.fail("'" + key + "' appears twice in the metadata");
    kept = std::move(value);
  });
}

void SafetensorsReader::check_checksum() const {
  if (checksum_.empty()) return;
  const std::string_view data = file_.bytes().substr(static_cast<std::size_t>(data_begin_));
  const std::uint32_t crc = ~Crc32().update(~0u, metadata_, data);
  if (checksum_ == std::to_string(crc)) return;
  throw FormatError("the checksum of the document and the weights is " + std::to_string(crc) + ", expected " +
                    checksum_.substr(0, 10) + ": the file is damaged");
}

void SafetensorsReader::read_tensor(JsonCursor& json, const std::string& name) {
  if (name.empty() || name.size() > kMaxNameBytes) json.fail("a tensor's name is empty or longer than 128 bytes");
  TensorEntry entry;
  entry.name = name;
  bool has_dtype = false, has_shape = false, has_offsets = false;
  const auto once = [&](bool& seen) {
    if (seen) json.fail("a field of tensor '" + name + "' appears twice");
    seen = true;
  };
  json.object([&](const std::string& field) {
    if (field == "dtype") {
      once(has_dtype);
      entry.dtype = find_dtype(name, json.string());
    } else if (field == "shape") {
      once(has_shape);
      json.array([&] {
        if (entry.rank == TensorEntry::kMaxRank) fail_tensor(name, "has more than 4 dimensions");
        entry.shape[static_cast<std::size_t>(entry.rank++)] = json.integer();
      });
    } else if (field == "data_offsets") {
      once(has_offsets);
      std::int64_t offsets[2];
      int count = 0;
      json.array([&] {
        if (count == 2) fail_tensor(name, "has more than two data_offsets");
        offsets[count++] = json.integer();
      });
      if (count != 2) fail_tensor(name, "has fewer than two data_offsets");
      entry.begin = offsets[0];
      entry.end = offsets[1];
    } else {
      json.fail("tensor '" + name + "' has an unknown field");
    }
  });
  if (!has_dtype || !has_shape || !has_offsets) fail_tensor(name, "lacks dtype, shape or data_offsets");
  tensors_.push_back(std::move(entry));
}

void SafetensorsReader::check_layout() {
  const std::int64_t data_size = num_bytes() - data_begin_;
  for (const TensorEntry& entry : tensors_) {
    const std::int64_t bytes = bytes_of(entry);
    if (entry.begin > entry.end || entry.end > data_size) {
      fail_tensor(entry.name, "data_offsets [" + std::to_string(entry.begin) + ", " + std::to_string(entry.end) +
                                  "] leave the file's " + std::to_string(data_size) + " bytes of data");
    }
    if (entry.end - entry.begin != bytes) {
      fail_tensor(entry.name, "shape " + shape_text(entry.shape.data(), static_cast<std::size_t>(entry.rank)) + " of " +
                                  kDtypes[entry.dtype].name + " takes " + std::to_string(bytes) +
                                  " bytes, data_offsets give " + std::to_string(entry.end - entry.begin));
    }
    if ((data_begin_ + entry.begin) % kDtypes[entry.dtype].bytes != 0) {
      fail_tensor(entry.name, "starts at a byte that is no multiple of its element size");
    }
  }
  std::sort(tensors_.begin(), tensors_.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  std::int64_t covered = 0;
  for (const TensorEntry& entry : tensors_) {
    if (entry.begin != covered) {
      fail_tensor(entry.name, entry.begin < covered ? "overlaps the tensor before it" : "leaves a hole before it");
    }
    covered = entry.end;
  }
  if (covered != data_size) {
    throw FormatError("the tensors take " + std::to_string(covered) + " bytes, the file has " +
                      std::to_string(data_size) + " bytes of data");
  }
  std::sort(tensors_.begin(), tensors_.end(),
            [](const TensorEntry& a, const TensorEntry& b) { return a.name < b.name; });
  for (std::size_t i = 1; i < tensors_.size(); ++i) {
    if (tensors_[i].name == tensors_[i - 1].name) fail_tensor(tensors_[i].name, "appears twice");
  }
}

const void* SafetensorsReader::tensor(const std::string& name, const char* dtype,
                                      const std::vector<std::int64_t>& shape) const {
  const auto found =
      std::lower_bound(tensors_.begin(), tensors_.end(), name,
                       [](const TensorEntry& entry, const std::string& wanted) { return entry.name < wanted; });
  if (found == tensors_.end() || found->name != name) fail_tensor(name, "is missing");
  const char* got = kDtypes[found->dtype].name;
  if (std::strcmp(got, dtype) != 0) fail_tensor(name, std::string("expected dtype ") + dtype + ", got " + got);
  const auto rank = static_cast<std::size_t>(found->rank);
  if (rank != shape.size() || !std::equal(shape.begin(), shape.end(), found->shape.begin())) {
    fail_tensor(name, "expected shape " + shape_text(shape.data(), shape.size()) + ", got " +
                          shape_text(found->shape.data(), rank));
  }
  return file_.bytes().data() + data_begin_ + found->begin;
}

}  // namespace gmoe::runtime
