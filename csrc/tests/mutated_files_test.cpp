// Students' files with random damage, through the loader and, if it lets them pass, through both paths of an answer.
// A file is refused with a reason or served; the loader asks for no more memory than a few times the file's size.
//
// --files and --seed choose how many and which. Files that were let pass are damaged further, so that one run walks
// away from the sound files. The file at hand lies in the temporary directory: after a crash it is still there.
#include <time.h>

#include <algorithm>

#include "runtime/packed_student.h"
#include "tests/allocations.h"
#include "tests/check.h"
#include "tests/student_files.h"

namespace gmoe::test {
namespace {

using runtime::Normalize;

constexpr std::size_t kMostTimesFile = 4, kMostBesides = 4096;  // texts of errors, and what an empty file needs
constexpr double kMostSeconds = 2;                              // of the processor, where a sound file takes 0.1 ms
constexpr std::size_t kShortestReason = 12, kLongestReason = 1000;
constexpr std::size_t kPool = 64;   // files to damage
constexpr std::int64_t kBatch = 8;  // rows, answered as a block

const StudentSizes kSound[] = {
    {6, 0, 0, Normalize::none, {{6, 18, 3, 2, true}, {18, 3, 3, 2, false}}},
    {2, 3, 2, Normalize::row_l1, {{5, 4, 2, 1, true, core::WeightType::int8}, {4, 2, 1, 1, false}}},
    {3, 4, 0, Normalize::row_l2, {{7, 9, 3, 3, true, core::WeightType::bfloat16}, {9, 5, 2, 1, false}}},
    {1, 0, 0, Normalize::none, {{1, 1, 1, 1, false}}},
    {4,
     0,
     0,
     Normalize::none,
     {{4, 6, 3, 2, true, core::WeightType::float32, 5}, {6, 3, 4, 2, false, core::WeightType::int8, 3, true}}},
    {3, 2, 2, Normalize::none, {{5, 4, 1, 1, true}, {4, 2, 1, 1, false}, {5, 3, 2, 1, true}, {3, 2, 1, 1, false}}, 2}};

double processor_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

std::string with_names(std::string bytes, const std::string& names) {
  const std::string none = R"(\"classes\": null)";
  std::uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof header);
  std::string text = bytes.substr(8, header);
  text.replace(text.find(none), none.size(), R"(\"classes\": [)" + names + "]");
  text.erase(text.find_last_not_of(' ') + 1);
  return with_header(text, bytes.substr(8 + header));
}

class Mutator {
 public:
  explicit Mutator(std::uint64_t seed) : random_(seed) {
    for (const StudentSizes& sizes : kSound) pool_.push_back(random_student(random_, sizes).bytes());
    pool_.push_back(with_names(pool_[0], R"(\"a\", \"\u00e9\", \"\\\"\")"));
    num_sound_ = pool_.size();
  }

  std::string next() {
    std::string bytes = any(pool_);
    const std::int64_t times = 1 + random_.below(3);
    for (std::int64_t i = 0; i < times; ++i) damage(bytes);
    return bytes;
  }

  // A file that passed becomes one to start from, in the place of an earlier one.
  void keep(const std::string& bytes) {
    if (pool_.size() < kPool) {
      pool_.push_back(bytes);
    } else {
      pool_[num_sound_ + at(pool_.size() - num_sound_)] = bytes;
    }
  }

 private:
  std::size_t at(std::size_t size) { return static_cast<std::size_t>(random_.below(static_cast<std::int64_t>(size))); }
  template <typename T>
  const T& any(const std::vector<T>& from) {
    return from[at(from.size())];
  }
  // Where the header ends, whatever the file claims.
  static std::size_t header_end(const std::string& bytes) {
    std::uint64_t length = 0;
    if (bytes.size() < 8) return bytes.size();
    std::memcpy(&length, bytes.data(), sizeof length);
    return length > bytes.size() - 8 ? bytes.size() : 8 + length;
  }

  void damage(std::string& bytes) {
    const std::size_t end = header_end(bytes);
    if (end <= 8) {
      bytes.append(at(80), ' ');
      return;
    }
    switch (random_.below(9)) {
      case 0: return flip(bytes, 0, end);
      case 1: return flip(bytes, 0, bytes.size());
      case 2: return change_digit(bytes, end);
      case 3: return splice(bytes, end, any(kTokens));
      case 4: return resize(bytes);
      case 5: return change_length(bytes);
      case 6: return repeat(bytes, end);
      case 7: return graft(bytes, end);
      default: return change_number(bytes, end);
    }
  }

  void flip(std::string& bytes, std::size_t begin, std::size_t end) {
    for (std::int64_t n = random_.below(4); n >= 0; --n) {
      char& c = bytes[begin + at(end - begin)];
      c = random_.below(2) == 0 ? static_cast<char>(c ^ (1 << random_.below(8)))
                                : static_cast<char>(random_.below(256));
    }
  }
  void change_digit(std::string& bytes, std::size_t end) {
    const std::size_t found = bytes.find_first_of("0123456789", 8 + at(end - 8));
    if (found < end) bytes[found] = static_cast<char>('0' + random_.below(10));
  }
  // Puts a text in the place of a short piece of the header, whose length follows or does not.
  void splice(std::string& bytes, std::size_t end, const std::string& text) {
    const std::size_t begin = 8 + at(end - 8), size = std::min(end - begin, at(12));
    bytes.replace(begin, size, text);
    if (random_.below(4) > 0) set_length(bytes, end - 8 - size + text.size());
  }
  void resize(std::string& bytes) {
    if (random_.below(10) < 7) return bytes.resize(at(bytes.size()));
    bytes.append(at(64), static_cast<char>(random_.below(256)));
  }
  void change_length(std::string& bytes) {
    std::uint64_t length = header_end(bytes) - 8;
    if (random_.below(2) == 0) length += static_cast<std::uint64_t>(random_.below(19)) - 9;
    if (random_.below(4) == 0) length = static_cast<std::uint64_t>(random_.below(std::int64_t{1} << 62)) * 4;
    set_length(bytes, length);
  }
  // A piece of the header twice, or missing.
  void repeat(std::string& bytes, std::size_t end) {
    const std::size_t begin = 8 + at(end - 8), size = at(end - begin);
    const std::string piece = bytes.substr(begin, size);
    const bool twice = random_.below(2) == 0 && bytes.size() < 1 << 16;
    bytes.replace(begin, size, twice ? piece + piece : "");
    set_length(bytes, end - 8 + (twice ? size : 0) - (twice ? 0 : size));
  }
  // A piece of another file's header.
  void graft(std::string& bytes, std::size_t end) {
    const std::string& other = any(pool_);
    splice(bytes, end, other.substr(at(other.size()), at(100)));
  }
  // Floats that are none, or any.
  void change_number(std::string& bytes, std::size_t end) {
    if (bytes.size() < end + 4) return;
    const auto noise = static_cast<std::uint32_t>(random_.below(std::int64_t{1} << 32));
    const std::vector<std::uint32_t> numbers{0x7FC00000, 0x7F800000, 0xFF800000, 1, noise};
    const std::uint32_t value = any(numbers);
    std::memcpy(bytes.data() + end + 4 * at((bytes.size() - end) / 4), &value, sizeof value);
  }
  static void set_length(std::string& bytes, std::uint64_t length) {
    if (bytes.size() >= 8) std::memcpy(bytes.data(), &length, sizeof length);
  }

  inline static const std::vector<std::string> kTokens = {"0",
                                                          "1",
                                                          "4294967296",
                                                          "9007199254740992",
                                                          "9007199254740993",
                                                          "99999999999999999999",
                                                          "-1",
                                                          "1e9",
                                                          "0.5",
                                                          "null",
                                                          "true",
                                                          "[",
                                                          "]",
                                                          "{",
                                                          "}",
                                                          "[]",
                                                          "{}",
                                                          ",",
                                                          ":",
                                                          "\"",
                                                          "\\\"",
                                                          "\\",
                                                          "\\u0000",
                                                          "\\ud83d",
                                                          "\xc3",
                                                          "\xff",
                                                          "[[[[[[[[",
                                                          "\"dtype\": \"I8\"",
                                                          "\"dtype\": \"BF16\"",
                                                          "\"F64\"",
                                                          "\"shape\": []",
                                                          "\"shape\": [0]",
                                                          "\"data_offsets\": [0, 0]",
                                                          "layers.0.weight",
                                                          "layers.1.memory",
                                                          "positions",
                                                          R"(\"k\": 0)",
                                                          R"(\"k\": 2)",
                                                          R"(\"experts\": 1)",
                                                          R"(\"weights\": \"int8\")",
                                                          R"(\"router\": \"none\")",
                                                          R"(\"positions\": null)",
                                                          R"(\"format_version\": 1)",
                                                          R"(\"format_version\": 2)",
                                                          R"(\"members\": 2)",
                                                          R"(\"members\": 1)",
                                                          R"(\"router\": \"projected\")",
                                                          R"(\"router_dim\": 4)",
                                                          R"(\"gates\": \"all\")",
                                                          "layers.0.router.weight",
                                                          R"(\"normalize\": \"none\")",
                                                          R"(\"columns\": 0)"};

  Random random_;
  std::vector<std::string> pool_;
  std::size_t num_sound_ = 0;
};

struct Totals {
  std::int64_t refused = 0, served = 0;
  double slowest = 0, most_times_file = 0;
};

void answer_rows(const runtime::PackedStudent& student) {
  const std::int64_t columns = student.file().layers.front().in;
  const std::vector<float> x(static_cast<std::size_t>(kBatch * columns), 0.5f);
  std::vector<float> logits(static_cast<std::size_t>(kBatch * student.num_outputs()));
  for (const std::int64_t count : {std::int64_t{1}, kBatch}) student.predict({count, x.data(), columns}, logits.data());
}

// True if the file was let pass.
bool load(const std::string& path, std::size_t size, Totals& totals) {
  const CountAllocations count;
  const auto check_memory = [&] {
    const std::size_t peak = count.peak();
    CHECK(peak <= kMostTimesFile * size + kMostBesides);
    const double beyond = static_cast<double>(peak) - static_cast<double>(kMostBesides);
    if (size > 0) totals.most_times_file = std::max(totals.most_times_file, beyond / static_cast<double>(size));
  };
  try {
    const runtime::PackedStudent student(path);
    check_memory();
    answer_rows(student);
    return true;
  } catch (const runtime::FormatError& error) {
    check_memory();
    const std::string reason = error.what();
    if (reason.size() < kShortestReason || reason.size() >= kLongestReason) {
      fail(__FILE__, __LINE__, join("refused because of '", reason, "'"));
    }
    return false;
  }
}

GMOE_TEST(mutated_files_are_refused_or_served) {
  const TemporaryFile file;
  Mutator mutator(options().seed);
  Totals totals;
  for (std::int64_t i = 0; i < options().files; ++i) {
    set_case("file ", i, " of seed ", options().seed);
    const std::string bytes = mutator.next();
    file.write(bytes);
    const double start = processor_seconds();
    const bool served = load(file.path(), bytes.size(), totals);
    const double took = processor_seconds() - start;
    CHECK(took < kMostSeconds);
    totals.slowest = std::max(totals.slowest, took);
    ++(served ? totals.served : totals.refused);
    if (served) mutator.keep(bytes);
  }
  const std::string memory = join("at most ", totals.most_times_file, " x file + ", kMostBesides, " bytes");
  const std::string text =
      join("seed ", options().seed, ": ", totals.refused, " files refused, ", totals.served, " served; slowest ",
           1e3 * totals.slowest, " ms, memory ", CountAllocations::possible() ? memory : "not counted: no sanitizer");
  std::printf("       %s\n", text.c_str());
  CHECK(totals.refused > 0 && totals.served > 0);
}

// What makes a loader hold the most for its bytes: entries, names and layers as short as they may be.
GMOE_TEST(headers_full_of_short_entries_take_little_memory) {
  constexpr int kEntries = 3000, kLayers = 1000;
  std::string tensors = "{", names, layers;
  for (int i = 0; i < kEntries; ++i) {
    tensors += join(i == 0 ? "" : ",", '"', i, R"(":{"dtype":"I8","shape":[0],"data_offsets":[0,0]})");
    names += i == 0 ? R"(\"\")" : R"(,\"\")";
  }
  for (int i = 0; i < kLayers; ++i) {
    layers += i == 0 ? "" : ",";
    layers +=
        R"({\"router\":\"none\",\"in\":1,\"out\":1,\"experts\":1,\"k\":1,\"activation\":\"none\",\"weights\":\"int8\"})";
  }
  const std::string full =
      R"({"__metadata__":{"gmoe_ext.student":"{\"format_version\":1,\"members\":1,\"producer\":\"\",\"model\":\"\",\"classes\":null,)"
      R"(\"features\":{\"columns\":1,\"normalize\":\"none\",\"positions\":null},\"layers\":[)" +
      layers + "]}\"}}";
  Random random(5);
  const TemporaryFile file;
  Totals totals;
  for (const std::string& bytes : {with_header(tensors + "}", ""), with_header(full, ""),
                                   with_names(random_student(random, kSound[0]).bytes(), names)}) {
    set_case("a header of ", bytes.size(), " bytes");
    file.write(bytes);
    CHECK(!load(file.path(), bytes.size(), totals));
  }
}

}  // namespace
}  // namespace gmoe::test
