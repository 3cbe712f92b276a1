#include "runtime/rows.h"

#include "core/cpu/check_index.h"
#include "runtime/student_file.h"

namespace gmoe::runtime {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

void check_columns(const StudentFile& file, const Rows& rows) {
  const Features& features = file.features;
  const std::int64_t in = file.layers.front().in;
  std::string got = "[";
  got += std::to_string(rows.count) + ", " + std::to_string(rows.columns);
  got += ']';
  if (rows.nodes != nullptr) {
    if (features.positions == nullptr) refuse("'nodes' given, but this student has no position table");
    if (rows.columns != features.columns) {
      refuse("expected 'x' of shape [N, " + std::to_string(features.columns) + "] beside 'nodes', got " + got);
    }
    return;
  }
  if (rows.columns == in) return;
  if (rows.columns == features.columns && features.position_columns > 0) {
    refuse("this student needs positions: pass 'nodes' (-1 for an unknown node), or 'x' with " + std::to_string(in) +
           " columns, positions last");
  }
  refuse("expected 'x' of shape [N, " + std::to_string(in) + "], got " + got);
}

void check_sparse(const Rows& rows) {
  if (core::find_bad_offset(rows.offsets, rows.count, rows.stored) >= 0) {
    refuse("x.indptr does not rise from 0 to the " + std::to_string(rows.stored) + " stored values");
  }
  if (core::find_bad_index(rows.column, rows.stored, rows.columns) >= 0) {
    refuse("x.indices leave [0, " + std::to_string(rows.columns) + ")");
  }
  for (std::int64_t i = 0; i < rows.count; ++i) {
    for (std::int64_t n = rows.offsets[i] + 1; n < rows.offsets[i + 1]; ++n) {
      if (rows.column[n] <= rows.column[n - 1]) {
        refuse("the columns of row " + std::to_string(i) + " of 'x' do not ascend; sort them and add up duplicates " +
               "(SciPy: x.sum_duplicates())");
      }
    }
  }
}

}  // namespace

NodeError::NodeError(std::int64_t at, std::int64_t got, std::int64_t end)
    : std::out_of_range("'nodes' at position " + std::to_string(at) + " is " + std::to_string(got) +
                        ", expected -1 <= node < " + std::to_string(end)),
      position(at),
      value(got),
      bound(end) {}

void check_rows(const StudentFile& file, const Rows& rows) {
  check_columns(file, rows);
  if (rows.dense == nullptr && rows.offsets != nullptr) check_sparse(rows);
  if (rows.nodes == nullptr) return;
  for (std::int64_t i = 0; i < rows.count; ++i) {
    if (rows.nodes[i] < -1 || rows.nodes[i] >= file.features.position_nodes) {
      throw NodeError(i, rows.nodes[i], file.features.position_nodes);
    }
  }
}

void check_layer(const StudentFile& file, std::int64_t layer) {
  const auto layers = static_cast<std::int64_t>(file.layers.size());
  if (layer < 0 || layer >= layers) {
    refuse("expected 'layer' in [0, " + std::to_string(layers) + "), got " + std::to_string(layer));
  }
}

void check_routed_layer(const StudentFile& file, std::int64_t layer) {
  check_layer(file, layer);
  if (file.layers[static_cast<std::size_t>(layer)].memory == nullptr) {
    refuse("layer " + std::to_string(layer) + " has one expert and no router");
  }
}

void check_threads(std::int64_t threads) {
  constexpr std::int64_t kMost = 1024;
  if (threads < 1 || threads > kMost) refuse("expected 1 to 1024, got " + std::to_string(threads));
}

}  // namespace gmoe::runtime
