// The C interface under the sanitizers: it answers as PackedStudent does, and reports what it is given wrong without
// reading or writing where it should not.
#include <cstring>
#include <numeric>

#include "runtime/gmoe_runtime.h"
#include "runtime/packed_student.h"
#include "tests/check.h"
#include "tests/student_files.h"

namespace gmoe::test {
namespace {

using runtime::Normalize;

const StudentSizes kStudent{6, 3, 4, Normalize::row_l2, {{9, 20, 3, 2, true}, {20, 5, 1, 1, false}}};
constexpr std::int64_t kRows = 11, kStored = 2 * kRows, kOutputs = 5, kChosen = 2;

// Two values in every row, dense and sparse.
struct Input {
  explicit Input(Random& random)
      : x(static_cast<std::size_t>(kRows * 6), 0.0f), value(random.values<float>(kStored)), offsets(kRows + 1) {
    std::iota(offsets.begin(), offsets.end(), 0);
    for (std::int64_t& offset : offsets) offset *= 2;
    for (std::int64_t i = 0; i < kRows; ++i) {
      column.insert(column.end(), {static_cast<std::int32_t>(i % 3), static_cast<std::int32_t>(3 + i % 2)});
      for (std::int64_t n = 2 * i; n < 2 * i + 2; ++n) x[i * 6 + column[n]] = value[n];
      nodes.push_back(i % 5 - 1);
    }
  }
  gmoe_rows dense() const { return {kRows, 6, x.data(), nullptr, nullptr, nodes.data()}; }
  gmoe_rows sparse() const { return {kRows, 6, value.data(), offsets.data(), column.data(), nodes.data()}; }

  std::vector<float> x, value;
  std::vector<std::int64_t> offsets, nodes;
  std::vector<std::int32_t> column;
};

struct Loaded {
  explicit Loaded(Random& random) {
    file.write(random_student(random, kStudent).bytes());
    CHECK(gmoe_student_load(file.path().c_str(), &student, nullptr) == GMOE_OK);
  }
  ~Loaded() { gmoe_student_free(student); }
  Loaded(const Loaded&) = delete;

  TemporaryFile file;
  gmoe_student* student = nullptr;
};

GMOE_TEST(c_api_answers_as_the_student_does) {
  Random random(1);
  const Loaded loaded(random);
  const Input input(random);
  const runtime::PackedStudent student(loaded.file.path());
  for (const bool sparse : {false, true}) {
    set_case(sparse ? "sparse" : "dense");
    const gmoe_rows x = sparse ? input.sparse() : input.dense();
    const runtime::Rows rows{
        kRows,  sparse ? nullptr : x.data, 6, x.indptr, x.indices, sparse ? x.data : nullptr, sparse ? kStored : 0,
        x.nodes};
    std::vector<float> logits = unwritten<float>(kRows * kOutputs), want = logits, proba = logits, want_proba = logits;
    student.predict(rows, want.data());
    student.predict_proba(rows, want_proba.data());
    CHECK(gmoe_predict(loaded.student, &x, logits.data(), nullptr) == GMOE_OK);
    CHECK(gmoe_predict_proba(loaded.student, &x, proba.data(), nullptr) == GMOE_OK);
    CHECK_EQUAL(logits, want);
    CHECK_EQUAL(proba, want_proba);
    for (const std::int64_t k : {std::int64_t{1}, kOutputs}) {
      std::vector<float> top = unwritten<float>(kRows * k);
      std::vector<std::int64_t> classes = unwritten_index(kRows * k);
      CHECK(gmoe_top_classes(loaded.student, &x, k, top.data(), classes.data(), nullptr) == GMOE_OK);
      for (std::int64_t i = 0; i < kRows * k; ++i) CHECK(top[i] == proba[i / k * kOutputs + classes[i]]);
    }
    std::vector<float> gate = unwritten<float>(kRows * kChosen), want_gate = gate;
    std::vector<std::int64_t> index = unwritten_index(kRows * kChosen), want_index = index;
    student.route(rows, 0, want_gate.data(), want_index.data());
    CHECK(gmoe_route(loaded.student, &x, 0, gate.data(), index.data(), nullptr) == GMOE_OK);
    CHECK_EQUAL(gate, want_gate);
    CHECK_EQUAL(index, want_index);
  }
}

GMOE_TEST(c_api_refuses_rows_that_do_not_fit) {
  Random random(2);
  const Loaded loaded(random);
  const Input sound(random);
  constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();
  const auto refused = [&](const char* what, bool sparse, const auto& damage) {
    set_case(what);
    Input input = sound;
    gmoe_rows x = sparse ? input.sparse() : input.dense();
    damage(input, x);
    float logits[kRows * kOutputs];
    gmoe_error error;
    std::memset(&error, 'x', sizeof error);
    CHECK(gmoe_predict(loaded.student, &x, logits, &error) == GMOE_ERROR_ARGUMENT);
    CHECK(std::memchr(error.text, '\0', sizeof error.text) != nullptr);
    CHECK(gmoe_predict(loaded.student, &x, logits, nullptr) == GMOE_ERROR_ARGUMENT);
  };
  refused("count", false, [](Input&, gmoe_rows& x) { x.count = -1; });
  refused("data", false, [](Input&, gmoe_rows& x) { x.data = nullptr; });
  refused("columns", false, [](Input&, gmoe_rows& x) { x.columns = 7; });
  refused("no nodes", false, [](Input&, gmoe_rows& x) { x.nodes = nullptr; });
  refused("large node", false, [](Input& input, gmoe_rows&) { input.nodes.back() = 4; });
  refused("small node", false, [](Input& input, gmoe_rows&) { input.nodes.front() = -kHuge; });
  refused("sparse data", true, [](Input&, gmoe_rows& x) { x.data = nullptr; });
  refused("indices", true, [](Input&, gmoe_rows& x) { x.indices = nullptr; });
  refused("large column", true, [](Input& input, gmoe_rows&) { input.column.back() = 6; });
  refused("small column", true, [](Input& input, gmoe_rows&) { input.column.front() = -1; });
  refused("columns descend", true, [](Input& input, gmoe_rows&) { std::swap(input.column[4], input.column[5]); });
  refused("column twice", true, [](Input& input, gmoe_rows&) { input.column[5] = input.column[4]; });
  refused("first offset", true, [](Input& input, gmoe_rows&) { input.offsets.front() = 1; });
  refused("offset past the end", true, [](Input& input, gmoe_rows&) { input.offsets[3] = kHuge; });
  refused("negative offset", true, [](Input& input, gmoe_rows&) { input.offsets[3] = -kHuge; });
  refused("negative last offset", true, [](Input& input, gmoe_rows&) { input.offsets.back() = -1; });
}

GMOE_TEST(c_api_refuses_arguments_that_do_not_fit) {
  Random random(3);
  const Loaded loaded(random);
  const Input input(random);
  const gmoe_rows x = input.dense();
  gmoe_student* const s = loaded.student;
  float out[kRows * kOutputs];
  std::int64_t index[kRows * kOutputs];
  for (const std::int64_t layer : {std::int64_t{-1}, std::int64_t{1}, std::int64_t{2}}) {
    CHECK(gmoe_route(s, &x, layer, out, index, nullptr) == GMOE_ERROR_ARGUMENT);  // the last layer has no router
  }
  for (const std::int64_t k : {std::int64_t{-1}, std::int64_t{0}, kOutputs + 1}) {
    CHECK(gmoe_top_classes(s, &x, k, out, index, nullptr) == GMOE_ERROR_ARGUMENT);
  }
  for (const int threads : {0, -1, 1025}) CHECK(gmoe_student_set_threads(s, threads, nullptr) == GMOE_ERROR_ARGUMENT);
  CHECK(gmoe_student_set_threads(s, 2, nullptr) == GMOE_OK);
  CHECK(gmoe_abi_version() == GMOE_ABI_VERSION && std::strlen(gmoe_version()) > 0);
  const char* name = "";
  CHECK(gmoe_student_class_name(s, 0, &name, nullptr) == GMOE_OK && name == nullptr);
  CHECK(gmoe_student_class_name(s, kOutputs, &name, nullptr) == GMOE_ERROR_ARGUMENT);
  std::int64_t k = 0, experts = 0;
  CHECK(gmoe_student_layer_experts(s, 0, &k, &experts, nullptr) == GMOE_OK && k == kChosen && experts == 3);
  CHECK(gmoe_student_layer_experts(s, 2, &k, &experts, nullptr) == GMOE_ERROR_ARGUMENT);
  CHECK(gmoe_predict(nullptr, &x, out, nullptr) == GMOE_ERROR_ARGUMENT);
  CHECK(gmoe_predict(s, nullptr, out, nullptr) == GMOE_ERROR_ARGUMENT);
  CHECK(gmoe_predict(s, &x, nullptr, nullptr) == GMOE_ERROR_ARGUMENT);
  CHECK(gmoe_student_describe(s, nullptr, nullptr) == GMOE_ERROR_ARGUMENT);
  gmoe_student_info info;
  CHECK(gmoe_student_describe(s, &info, nullptr) == GMOE_OK);
  CHECK(info.num_inputs == 9 && info.num_features == 6 && info.num_classes == kOutputs && info.num_layers == 2);
}

GMOE_TEST(c_api_names_a_file_that_it_cannot_serve) {
  const TemporaryFile file;
  file.write("not a student");
  gmoe_student* student = nullptr;
  gmoe_error error;
  CHECK(gmoe_student_load(file.path().c_str(), &student, &error) == GMOE_ERROR_FORMAT && student == nullptr);
  CHECK(std::strstr(error.text, file.path().c_str()) != nullptr);
  // Of every length around that of the text, so that it is cut at each byte of a character.
  for (std::size_t letters = 480; letters < 520; ++letters) {
    std::string path(letters, 'a');
    for (int i = 0; i < 10; ++i) path += "\xe2\x82\xac";
    CHECK(gmoe_student_load(path.c_str(), &student, &error) == GMOE_ERROR_SYSTEM);
    CHECK(std::memchr(error.text, '\0', sizeof error.text) != nullptr);
  }
  CHECK(gmoe_student_load(nullptr, &student, &error) == GMOE_ERROR_ARGUMENT);
  gmoe_student_free(nullptr);
}

}  // namespace
}  // namespace gmoe::test
