// The path of a block of rows through a student: grouped by expert in every layer, on weights packed for register
// tiles.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "runtime/row_path.h"

namespace gmoe::runtime {

// Buffers of one thread, for blocks of at most `rows` rows.
struct BlockBuffers {
  BlockBuffers(const RowBuffers& row, std::int64_t rows);

  core::BlockScratch scratch() { return {scaled.data(), offsets.data(), slots.data()}; }

  std::vector<float> input, projected, x, y, scaled, gate;
  std::vector<std::int64_t> index, slots, offsets;
  // The non-zeros of sparse rows, and their positions.
  std::vector<float> value, tail;
  std::vector<std::int32_t> column;
  std::vector<std::int64_t> row;
};

class BlockPath {
 public:
  BlockPath(const StudentFile& file, const RowPath& row_path);

  std::int64_t rows_per_block() const { return rows_per_block_; }
  // Packs the weights at the first call. Call it before threads share the blocks, so that none waits for another.
  void pack() const;
  // logits[end - begin, num_outputs] of rows [begin, end).
  void predict(const Rows& rows, std::int64_t begin, std::int64_t end, RowBuffers& row_buffers, BlockBuffers& buffers,
               float* logits) const;

 private:
  const float* dense_input(const Rows& rows, std::int64_t begin, std::int64_t end, BlockBuffers& buffers) const;
  const float* member(const Rows& rows, std::int64_t begin, std::int64_t end, const float* input, std::size_t first,
                      RowBuffers& row_buffers, BlockBuffers& buffers) const;
  void sparse_layer(const Rows& rows, std::int64_t begin, std::int64_t end, std::size_t l, RowBuffers& row_buffers,
                    BlockBuffers& buffers, float* y) const;
  void choose(std::size_t l, const float* x, std::int64_t stride, std::int64_t count, RowBuffers& row_buffers,
              BlockBuffers& buffers) const;

  const StudentFile& file_;
  const RowPath& row_path_;
  std::int64_t rows_per_block_;
  mutable std::once_flag packed_once_;
  mutable std::vector<core::RoutedLayer> layers_, projections_;  // those of the file, with panels
  mutable std::vector<float> panels_;
};

}  // namespace gmoe::runtime
