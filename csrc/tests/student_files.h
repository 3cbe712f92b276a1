// Packed students of random numbers as files (docs/reference/runtime_format.md), and their answers by plain loops.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "runtime/student_file.h"
#include "tests/inputs.h"

namespace gmoe::test {

// A file of its own for every test process, removed at the end.
class TemporaryFile {
 public:
  TemporaryFile()
      : path_(std::filesystem::temp_directory_path() / ("gmoe_tests_" + std::to_string(::getpid()) + ".safetensors")) {}
  ~TemporaryFile() {
    std::error_code ignored;  // nothing was written where a test failed early
    std::filesystem::remove(path_, ignored);
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  std::string path() const { return path_.string(); }
  void write(const std::string& bytes) const {
    std::ofstream(path_, std::ios::binary | std::ios::trunc)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }

 private:
  std::filesystem::path path_;
};

struct LayerSizes {
  std::int64_t in, out, experts, k;  // one expert: no router
  bool relu;
  core::WeightType type = core::WeightType::float32;
  std::int64_t router_dim = 0;  // columns that the router projects rows to; 0: it compares them as they are
  bool over_all = false;
};

struct StudentSizes {
  std::int64_t features, position_columns, position_nodes;
  runtime::Normalize normalize;
  std::vector<LayerSizes> layers;
  std::int64_t members = 1;  // each with as many of the layers

  std::size_t depth() const { return layers.size() / static_cast<std::size_t>(members); }
};

struct Tensor {
  std::string name, dtype, shape, bytes;
};

// What the stored numbers of one matrix an expert stand for.
struct Matrices {
  std::vector<double> weight;
  std::vector<float> bias;
};

struct Student {
  StudentSizes sizes;
  std::vector<Matrices> layers, projections;  // one a layer, like the next
  std::vector<std::vector<float>> memory;     // of norm 1, or 3 behind a projection
  std::vector<float> positions;
  std::vector<Tensor> tensors;

  std::string bytes() const;
};

Student random_student(Random& random, const StudentSizes& sizes);
// A safetensors file: the length, the header padded to a cache line, the data.
std::string with_header(std::string header, const std::string& data);

struct Answer {
  std::vector<double> logits;
  std::vector<std::vector<double>> gate;          // of each layer, ascending in the expert
  std::vector<std::vector<std::int64_t>> expert;  // ascending
  double smallest_gap;                            // between the k-th cosine and the next, over all layers
};
// x has the features, position the columns of the node's row or zeros.
Answer answer(const Student& student, const float* x, const float* position);

}  // namespace gmoe::test
