// The packed student: its kernels and its answers against plain loops, and its files, sound and damaged.
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <system_error>
#include <thread>

#include "runtime/json_cursor.h"
#include "runtime/packed_student.h"
#include "tests/check.h"
#include "tests/student_files.h"

namespace gmoe::test {
namespace {

using runtime::Normalize;
using runtime::PackedStudent;
using runtime::Rows;

constexpr core::WeightType kBfloat16 = core::WeightType::bfloat16, kInt8 = core::WeightType::int8;
const StudentSizes kStudents[] = {
    {1, 0, 0, Normalize::none, {{1, 1, 1, 1, false}}},
    {5, 3, 0, Normalize::row_l1, {{8, 17, 3, 3, true, kBfloat16}, {17, 2, 3, 1, false}}},
    {0, 7, 11, Normalize::none, {{7, 33, 5, 2, true, kInt8}, {33, 3, 1, 1, false, kBfloat16}}},
    {13, 2, 5, Normalize::none, {{15, 67, 3, 2, true}, {67, 5, 3, 2, true, kInt8}, {5, 129, 2, 1, false, kBfloat16}}},
    {61, 0, 0, Normalize::row_l2, {{61, 16, 4, 2, true}, {16, 64, 4, 3, true}, {64, 101, 2, 1, false}}},
    {40, 24, 90, Normalize::row_l2, {{64, 257, 3, 2, true}, {257, 47, 7, 4, false}}},
    {9, 0, 0, Normalize::row_l1, {{9, 33, 5, 2, true, core::WeightType::float32, 19}, {33, 6, 4, 3, false, kInt8, 40}}},
    {8, 3, 6, Normalize::none, {{11, 20, 4, 4, true, kBfloat16, 7, true}, {20, 5, 6, 2, false, kInt8, 33, true}}},
    {12,
     0,
     0,
     Normalize::none,
     {{12, 21, 1, 1, true}, {21, 4, 1, 1, false}, {12, 70, 1, 1, true}, {70, 4, 1, 1, false}},
     2},
    {5,
     2,
     3,
     Normalize::row_l2,
     {{7, 3, 4, 2, false, kInt8, 6}, {7, 3, 3, 1, false}, {7, 3, 1, 1, false, kBfloat16}},
     3}};
constexpr std::int64_t kBatches[] = {0, 1, 5, 6, 8, 20, 37, 300};
constexpr double kNearTie = 1e-4;  // below, rounding decides which expert is chosen

// Rows in both forms. Two of three features are zero, in batches of 37 rows nearly all, and rows 7, 17, ... are zero
// altogether.
struct Batch {
  Batch(Random& random, const StudentSizes& s, std::int64_t count) : dense(random.values<float>(count * s.features)) {
    dense.reserve(1);  // no features and no rows have addresses too
    nodes.reserve(1);
    const std::int64_t one_in = count == 37 ? 30 : 3;
    for (std::int64_t i = 0; i < count; ++i) {
      for (std::int64_t j = 0; j < s.features; ++j) {
        float& v = dense[i * s.features + j];
        if (i % 10 == 7 || random.below(one_in) > 0) v = 0;
        if (v == 0) continue;
        column.push_back(static_cast<std::int32_t>(j));
        value.push_back(v);
      }
      offsets.push_back(static_cast<std::int64_t>(column.size()));
      nodes.push_back(random.below(s.position_nodes + 1) - 1);
    }
    rows.count = sparse.count = count;
    rows.columns = sparse.columns = s.features;
    rows.nodes = sparse.nodes = s.position_columns > 0 ? nodes.data() : nullptr;
    rows.dense = dense.data();
    sparse.offsets = offsets.data();
    sparse.column = column.data();
    sparse.value = value.data();
    sparse.stored = offsets.back();
  }
  Batch(const Batch&) = delete;

  std::vector<float> dense, value;
  std::vector<std::int64_t> offsets{0}, nodes;
  std::vector<std::int32_t> column;
  Rows rows, sparse;
};

// Rows whose answer depends on rounding get the student's own.
std::vector<double> wanted_logits(const Student& student, const Batch& batch, const std::vector<float>& got) {
  const StudentSizes& s = student.sizes;
  const std::int64_t outputs = s.layers.back().out;
  const std::vector<float> nowhere(static_cast<std::size_t>(s.position_columns), 0.0f);
  std::vector<double> want;
  for (std::int64_t i = 0; i < batch.rows.count; ++i) {
    const float* position = nowhere.data();
    if (batch.nodes[i] >= 0) position = student.positions.data() + batch.nodes[i] * s.position_columns;
    const Answer right = answer(student, batch.dense.data() + i * s.features, position);
    for (std::int64_t c = 0; c < outputs; ++c) {
      want.push_back(right.smallest_gap > kNearTie ? right.logits[c] : got[i * outputs + c]);
    }
  }
  return want;
}

// f(student as numbers, student as served, batch) for every case.
template <typename F>
void for_each_student(const F& f) {
  Random random(1);
  const TemporaryFile file;
  for (const StudentSizes& s : kStudents) {
    const Student student = random_student(random, s);
    file.write(student.bytes());
    const PackedStudent served(file.path());
    for (const std::int64_t count : kBatches) {
      set_case(count, " rows of ", s.features, " + ", s.position_columns, " features, ", s.layers.size(), " layers");
      f(student, served, Batch(random, s, count));
    }
  }
}

GMOE_TEST(student_answers_dense_and_sparse_rows) {
  for_each_student([](const Student& student, const PackedStudent& served, const Batch& batch) {
    for (const Rows* rows : {&batch.rows, &batch.sparse}) {
      runtime::check_rows(served.file(), *rows);
      std::vector<float> logits = unwritten<float>(rows->count * served.num_outputs());
      served.predict(*rows, logits.data());
      CHECK_CLOSE(logits, wanted_logits(student, batch, logits));
    }
  });
}

GMOE_TEST(student_answers_a_row_alike_in_every_batch) {
  for_each_student([](const Student&, const PackedStudent& served, const Batch& batch) {
    const std::int64_t outputs = served.num_outputs();
    std::vector<float> together = unwritten<float>(batch.rows.count * outputs), alone = together;
    served.predict(batch.rows, together.data());
    for (std::int64_t i = 0; i < batch.rows.count; ++i) {
      Rows row = batch.rows;
      row.count = 1;
      row.dense += i * row.columns;
      if (row.nodes != nullptr) row.nodes += i;
      served.predict(row, alone.data() + i * outputs);
    }
    CHECK_EQUAL(alone, together);
  });
}

GMOE_TEST(student_takes_rows_that_end_in_their_position) {
  for_each_student([](const Student& student, const PackedStudent& served, const Batch& batch) {
    const StudentSizes& s = student.sizes;
    std::vector<float> whole;
    for (std::int64_t i = 0; i < batch.rows.count; ++i) {
      whole.insert(whole.end(), batch.dense.begin() + i * s.features, batch.dense.begin() + (i + 1) * s.features);
      for (std::int64_t j = 0; j < s.position_columns; ++j) {
        whole.push_back(batch.nodes[i] < 0 ? 0.0f : student.positions[batch.nodes[i] * s.position_columns + j]);
      }
    }
    std::vector<float> logits = unwritten<float>(batch.rows.count * served.num_outputs()), want = logits;
    served.predict({batch.rows.count, whole.data(), s.features + s.position_columns}, logits.data());
    served.predict(batch.rows, want.data());
    CHECK_EQUAL(logits, want);
  });
}

GMOE_TEST(student_routes_as_it_predicts) {
  for_each_student([](const Student& student, const PackedStudent& served, const Batch& batch) {
    const StudentSizes& s = student.sizes;
    const std::vector<float> nowhere(static_cast<std::size_t>(s.position_columns), 0.0f);
    for (std::size_t l = 0; l < s.layers.size(); ++l) {
      const std::int64_t k = s.layers[l].k;
      if (s.layers[l].experts == 1) continue;
      std::vector<float> gate = unwritten<float>(batch.rows.count * k);
      std::vector<std::int64_t> index = unwritten_index(batch.rows.count * k);
      served.route(batch.rows, l, gate.data(), index.data());
      for (std::int64_t i = 0; i < batch.rows.count; ++i) {
        const float* position = nowhere.data();
        if (batch.nodes[i] >= 0) position = student.positions.data() + batch.nodes[i] * s.position_columns;
        const Answer right = answer(student, batch.dense.data() + i * s.features, position);
        if (right.smallest_gap < kNearTie) continue;
        for (std::int64_t r = i * k; r < (i + 1) * k; ++r) {
          const auto at = std::lower_bound(right.expert[l].begin(), right.expert[l].end(), index[r]);
          CHECK(at != right.expert[l].end() && *at == index[r]);
          if (at == right.expert[l].end()) continue;
          CHECK(std::fabs(gate[r] - right.gate[l][at - right.expert[l].begin()]) < 1e-5);
          CHECK(r == i * k || gate[r] <= gate[r - 1]);
        }
      }
    }
  });
}

void serve_many_callers(const StudentSizes& s) {
  Random random(2);
  const TemporaryFile file;
  file.write(random_student(random, s).bytes());
  const Batch batch(random, s, 1201);
  // Heavy enough that predict shares it among threads of its own.
  PackedStudent first(file.path());
  first.set_num_threads(1);
  std::vector<float> want = unwritten<float>(batch.rows.count * first.num_outputs());
  first.predict(batch.rows, want.data());

  PackedStudent served(file.path());  // whose weights nobody has packed yet
  constexpr int kCallers = 3;
  std::vector<std::vector<float>> logits(kCallers, unwritten<float>(static_cast<std::int64_t>(want.size())));
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] {
      served.set_num_threads(2 + caller);
      for (int again = 0; again < 2; ++again) served.predict(batch.rows, logits[caller].data());
      float one[9];
      served.predict({1, batch.dense.data(), s.features}, one);
      std::vector<float> gate(static_cast<std::size_t>(batch.rows.count) * 2);
      std::vector<std::int64_t> index(gate.size());
      served.route(batch.rows, 1, gate.data(), index.data());
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const std::vector<float>& got : logits) CHECK_EQUAL(got, want);
}

GMOE_TEST(student_serves_many_callers_at_once) {
  serve_many_callers({150, 0, 0, Normalize::none, {{150, 130, 4, 2, true}, {130, 9, 4, 2, false}}});
  const LayerSizes hidden{150, 130, 4, 2, true, kBfloat16, 60}, last{130, 9, 4, 2, false, kInt8, 31, true};
  serve_many_callers({150, 0, 0, Normalize::row_l1, {hidden, last, {150, 40, 1, 1, true}, {40, 9, 4, 2, false}}, 2});
}

GMOE_TEST(student_passes_nan_to_its_own_row_alone) {
  for_each_student([](const Student& student, const PackedStudent& served, const Batch& batch) {
    const StudentSizes& s = student.sizes;
    if (s.features == 0) return;
    std::vector<float> clean = unwritten<float>(batch.rows.count * served.num_outputs()), logits = clean;
    served.predict(batch.rows, clean.data());
    std::vector<float> x = batch.dense;
    for (std::int64_t i = 0; i < batch.rows.count; i += 3) x[i * s.features] = std::nanf("");
    Rows rows = batch.rows;
    rows.dense = x.data();
    served.predict(rows, logits.data());
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const bool spoiled = i / static_cast<std::size_t>(served.num_outputs()) % 3 == 0;
      CHECK(spoiled ? std::isnan(logits[i]) : logits[i] == clean[i]);
    }
  });
}

// ---- files

// Loads and asks for one row; false if the file was refused.
bool loads(const TemporaryFile& file, const std::string& bytes) {
  file.write(bytes);
  try {
    const PackedStudent student(file.path());
    std::vector<float> x(static_cast<std::size_t>(student.file().layers.front().in), 0.5f);
    std::vector<float> logits(static_cast<std::size_t>(student.num_outputs()));
    student.predict({1, x.data(), static_cast<std::int64_t>(x.size())}, logits.data());
    return true;
  } catch (const runtime::FormatError&) {
    return false;
  }
}

const StudentSizes kFiled{2, 3, 2, Normalize::row_l1, {{5, 4, 2, 1, true, kInt8}, {4, 2, 1, 1, false}}};

GMOE_TEST(damaged_files_are_refused_or_served) {
  Random random(3);
  const TemporaryFile file;
  const std::string sound = random_student(random, kFiled).bytes();
  CHECK(loads(file, sound));
  std::uint64_t header = 0;
  std::memcpy(&header, sound.data(), sizeof header);
  const std::size_t data = 8 + header;
  set_case("cut short");
  for (std::size_t size = 0; size < sound.size(); ++size) CHECK(!loads(file, sound.substr(0, size)));
  set_case("followed by more");
  CHECK(!loads(file, sound + std::string(4, '\0')));
  set_case("one byte changed");
  int served = 0;
  for (std::size_t at = 0; at < data; ++at) {
    for (const char c : {'\0', '"', '\\', '9', '-', ']', '{', '\xff'}) {
      std::string bytes = sound;
      bytes[at] = c;
      served += loads(file, bytes) ? 1 : 0;
    }
  }
  CHECK(served > 0 && served < static_cast<int>(data));  // a few letters, as those of names, may change
  set_case("one byte of the data changed");
  for (std::size_t at = data; at < sound.size(); ++at) {
    std::string bytes = sound;
    bytes[at] = static_cast<char>(bytes[at] ^ 0xff);
    loads(file, bytes);
  }
}

// What a file consists of behind the length of its header.
struct Parts {
  explicit Parts(const std::string& bytes) {
    std::uint64_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof length);
    header = bytes.substr(8, length);
    data = bytes.substr(8 + length);
  }
  std::string header, data;
};

std::string replaced(std::string text, const std::string& part, const std::string& other) {
  const std::size_t at = text.find(part);
  CHECK(at != std::string::npos);
  return at == std::string::npos ? text : text.replace(at, part.size(), other);
}

GMOE_TEST(headers_that_contradict_themselves_are_refused) {
  struct Case {
    std::string sound, damaged;
  };
  const std::string shape = R"("shape": [2, 5])", offsets = R"("data_offsets": [0, 40])", huge = "9007199254740992";
  const Case cases[] = {{R"("dtype": "F32")", R"("dtype": "F99")"},
                        {R"("dtype": "F32")", R"("dtype": "F64")"},
                        {R"("dtype": "F32", )", ""},
                        {R"("dtype": "F32")", R"("dtype": "F32", "dtype": "F32")"},
                        {R"("dtype": "I8")", R"("dtype": "U8")"},
                        {shape, R"("shape": [10])"},
                        {shape, R"("shape": [2, 5, 1, 1, 1])"},
                        {shape, R"("shape": [2, 6])"},
                        {shape, R"("shape": [])"},
                        {shape, R"("shape": [-2, -5])"},
                        {shape, R"("shape": [)" + huge + ", " + huge + "]"},
                        {shape, R"("shape": [)" + huge + ", 4]"},
                        {offsets, R"("data_offsets": [0, 40, 80])"},
                        {offsets, R"("data_offsets": [0])"},
                        {offsets, R"("data_offsets": [])"},
                        {offsets, R"("data_offsets": [40, 0])"},
                        {offsets, R"("data_offsets": [1, 41])"},
                        {offsets, R"("data_offsets": [4, 44])"},
                        {offsets, R"("data_offsets": [)" + huge + ", " + huge + "]"},
                        {"layers.0.bias", "layers.0.memory"},
                        {"layers.0.bias", "layers.0.other"},
                        {"layers.0.bias", ""},
                        {"layers.0.bias", std::string(129, 'x')},
                        {R"({"__metadata__")", R"({"__metadata__": {}, "__metadata__")"},
                        {"gmoe_ext.student", "other"},
                        {R"(\"format_version\": 1)", R"(\"format_version\": 0)"},
                        {R"(\"format_version\": 1)", R"(\"format_version\": 2)"},
                        {R"(\"members\": 1)", R"(\"members\": 0)"},
                        {R"(\"members\": 1, )", ""},
                        {R"(\"weights\": \"int8\")", R"(\"weights\": \"float32\")"},
                        {R"(\"in\": 5)", R"(\"in\": 6)"},
                        {R"(\"in\": 5)", R"(\"in\": 0)"},
                        {R"(\"in\": 5)", R"(\"in\": )" + huge},
                        {R"(\"out\": 4)", R"(\"out\": 3)"},
                        {R"(\"experts\": 2)", R"(\"experts\": 3)"},
                        {R"(\"k\": 1)", R"(\"k\": 3)"},
                        {R"(\"k\": 1)", R"(\"k\": 0)"},
                        {R"(\"nodes\": 2)", R"(\"nodes\": 3)"},
                        {R"(\"cosine\")", R"(\"projected\")"},
                        {R"(\"columns\": 2)", R"(\"columns\": 2, \"names\": [\"a\"])"},
                        {R"(\"columns\": 2)", R"(\"columns\": 2, \"names\": [\"a\", \"a\"])"},
                        {R"(\"classes\": null)", R"(\"classes\": [\"a\"])"},
                        {R"(\"layers\": [)", R"(\"layers\": [[[[[[[[[[[[)"},
                        {R"(\"layers\": [)", R"(\"layers\": [], \"layers\": [)"}};
  Random random(4);
  const TemporaryFile file;
  const Parts sound(random_student(random, kFiled).bytes());
  for (const Case& c : cases) {
    set_case(c.sound, " made ", c.damaged);
    CHECK(!loads(file, with_header(replaced(sound.header, c.sound, c.damaged), sound.data)));
  }
  set_case("two feature names");
  const char* named = R"(\"columns\": 2, \"names\": [\"a\", \"b\"])";
  CHECK(loads(file, with_header(replaced(sound.header, R"(\"columns\": 2)", named), sound.data)));
}

GMOE_TEST(tensors_and_members_that_do_not_fit_are_refused) {
  Random random(5);
  const TemporaryFile file;
  Student student = random_student(random, kFiled);
  student.tensors.push_back({"layers.7.bias", "F32", "[1]", std::string(4, '\0')});
  CHECK(!loads(file, student.bytes()));
  const auto two_members = [&](std::int64_t last_out) {
    return random_student(random, {4, 0, 0, Normalize::none, {{4, 3, 1, 1, false}, {4, last_out, 1, 1, false}}, 2});
  };
  CHECK(loads(file, two_members(3).bytes()));
  CHECK(!loads(file, two_members(2).bytes()));
}

// CRC-32 by its definition, a bit at a time.
std::uint32_t crc32(const std::string& bytes) {
  std::uint32_t crc = ~0u;
  for (const char byte : bytes) {
    crc ^= static_cast<unsigned char>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xEDB88320u : 0u);
  }
  return ~crc;
}

GMOE_TEST(a_checksum_covers_the_document_and_every_byte_of_the_weights) {
  Random random(6);
  const TemporaryFile file;
  const Parts sound(random_student(random, kFiled).bytes());
  const std::size_t begin = sound.header.find('{', 2 + std::strlen(R"("__metadata__": {)"));
  const std::size_t end = sound.header.find("}\"", begin) + 1;
  std::string document = sound.header.substr(begin, end - begin);
  document.erase(std::remove(document.begin(), document.end(), '\\'), document.end());
  const auto sealed = [&](std::uint32_t crc, const std::string& data) {
    return with_header(replaced(sound.header, "}\"", join("}\", \"", runtime::kChecksumKey, "\": \"", crc, "\"")),
                       data);
  };
  const std::uint32_t crc = crc32(document + sound.data);
  CHECK(loads(file, sealed(crc, sound.data)));
  CHECK(!loads(file, sealed(crc + 1, sound.data)));
  CHECK(!loads(file, replaced(sealed(crc, sound.data), R"(\"test\")", R"(\"tent\")")));
  for (std::size_t at = 0; at < sound.data.size(); ++at) {
    set_case("byte ", at);
    std::string data = sound.data;
    data[at] = static_cast<char>(data[at] ^ 1);
    CHECK(!loads(file, sealed(crc, data)));
  }
}

GMOE_TEST(a_path_that_cannot_be_opened_is_a_system_error) {
  const TemporaryFile file;
  const std::string pipe = file.path() + ".pipe";  // to which nobody writes
  CHECK(::mkfifo(pipe.c_str(), 0600) == 0);
  for (const std::string& path :
       {file.path() + ".missing", std::string(), std::filesystem::temp_directory_path().string(), pipe}) {
    bool refused = false;
    try {
      const PackedStudent student(path);
    } catch (const std::system_error&) {
      refused = true;
    } catch (const runtime::FormatError&) {
      refused = true;  // a directory, a pipe
    }
    CHECK(refused);
  }
  std::filesystem::remove(pipe);
}

// The text as a JSON string, or "refused".
std::string decoded(const std::string& text) {
  try {
    runtime::JsonCursor json(text, "text");
    const std::string value = json.string();
    json.end();
    return value;
  } catch (const runtime::FormatError&) {
    return "refused";
  }
}

GMOE_TEST(json_strings_are_decoded_or_refused) {
  struct Case {
    std::string text, want;
  };
  const Case cases[] = {{R"("")", ""},
                        {R"( "a\"\\\/\b\f\n\r\tz" )", "a\"\\/\b\f\n\r\tz"},
                        {R"("\u0041\u00e9\u20ac\ud83d\ude00")", "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"},
                        {"\"\xc3\xa9\xf0\x9f\x98\x80\"", "\xc3\xa9\xf0\x9f\x98\x80"},
                        {"", "refused"},
                        {"\"", "refused"},
                        {"\"\\", "refused"},
                        {"\"\\\"", "refused"},
                        {"\"\\u", "refused"},
                        {"\"\\u00e", "refused"},
                        {R"("\ud83d")", "refused"},
                        {R"("\ud83dA")", "refused"},
                        {R"("\ude00")", "refused"},
                        {R"("\x41")", "refused"},
                        {"\"\n\"", "refused"},
                        {"\"\xc3\"", "refused"},
                        {"\"\xc3", "refused"},
                        {"\"\xc0\x80\"", "refused"},
                        {"\"\xed\xa0\x80\"", "refused"},
                        {"\"\xf4\x90\x80\x80\"", "refused"},
                        {"\"\xff\"", "refused"},
                        {R"("a" "b")", "refused"}};
  for (const Case& c : cases) {
    set_case(c.text);
    CHECK(decoded(c.text) == c.want);
  }
}

GMOE_TEST(json_integers_are_exact_or_refused) {
  const auto read = [](const std::string& text) -> std::int64_t {
    try {
      runtime::JsonCursor json(text, "text");
      const std::int64_t value = json.integer();
      json.end();
      return value;
    } catch (const runtime::FormatError&) {
      return -1;
    }
  };
  CHECK(read("0") == 0);
  CHECK(read(" 17\n") == 17);
  CHECK(read("9007199254740992") == std::int64_t{1} << 53);
  for (const char* text :
       {"", "-1", "01", "1.5", "1e3", "9007199254740993", "99999999999999999999999999", "1 2", "x"}) {
    set_case(text);
    CHECK(read(text) == -1);
  }
}

}  // namespace
}  // namespace gmoe::test
