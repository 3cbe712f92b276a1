// out[o] = sum over the slots of o of gate_s (W_e in[row of s] + b_e): forward of expert_linear and, with rows in and
// out exchanged and weights transposed, its gradients for x and the gate. What the two ways to it share:
// tile_product.cuh, where a block owns rows of the result, and grouped_product.cuh, where it owns slots of an expert.
#pragma once

#include "core/cuda/expert_parts.cuh"
#include "core/cuda/weight_panels.cuh"

namespace gmoe::core::cuda {

inline constexpr int kProductThreads = 256;
inline constexpr int kTileColumns = 128;  // of a block
inline constexpr int kColumnPanels = kTileColumns / kPanel;
inline constexpr int kStages = 3;  // in shared memory, of which two are on their way

template <typename T>
struct RoutedInputs {
  using A = Accumulator<T>;
  const Element<T>* in;        // [num_in_rows, depth]
  const std::int64_t* source;  // [num_slots]: the row of `in` that a slot reads, or null: slot / slots_per_in
  std::int64_t num_in_rows, slots_per_in;
  bool copies, packs;  // whether rows of `in` can be read, and of `out` be written, by 16 bytes
  PackedWeight<T> weight;
  const Element<T>* bias;  // [num_experts, columns] or null
  const Element<T>* gate;  // [num_slots] or null
  ExpertPlanView plan;
  const std::int64_t* cut;  // [num_experts, num_tiles + 1], by cut_kernel, where tiles are blocks'
  std::int64_t num_tiles;
  int num_column_blocks, slots_per_out, rows_per_tile;
  bool with_out;  // else dot products alone
  // Dot products of each slot's product, without bias and gate, with a row of `against`, by block of columns.
  const Element<T>* against;           // [.., columns]
  const std::int64_t* against_source;  // [num_slots] or null: the row of `in` is the row of `against` too
  std::int64_t num_against_rows;
  A* dot;  // [num_slots, num_column_blocks]

  __host__ __device__ int slots_per_tile() const { return rows_per_tile * slots_per_out; }
  // Of the block.
  __device__ std::int64_t tile() const { return blockIdx.x / num_column_blocks; }
  __device__ int first_column() const { return static_cast<int>(blockIdx.x % num_column_blocks) * kTileColumns; }
  __device__ std::int64_t first_slot() const { return tile() * slots_per_tile(); }
  __device__ int num_slots() const {
    const std::int64_t left = core::cuda::num_slots(plan) - first_slot();
    return left < slots_per_tile() ? static_cast<int>(left) : slots_per_tile();
  }
};

template <typename T, typename Out>
struct RoutedProduct : RoutedInputs<T> {
  Out* out;  // [num_slots / slots_per_out, columns]
};

// Rows of a batch to a stage, 16 bytes at a time: 8 threads a row.
template <int Batch, typename T, typename Out>
__device__ void fetch(const RoutedProduct<T, Out>& p, const std::int64_t* in_row, int count, int stage_of_depth,
                      T* stage) {
  constexpr int kPieces = kStageBytes / 16, kRows = kProductThreads / kPieces;
  const int piece = static_cast<int>(threadIdx.x) % kPieces;
  const std::int64_t depth = p.weight.depth, at = stage_of_depth * kStageDepth<T> + piece * kPack<T>;
#pragma unroll 2
  for (int row = static_cast<int>(threadIdx.x) / kPieces; row < Batch; row += kRows) {
    if (row >= count) break;
    const Element<T>* from = p.in + in_row[row] * depth + at;
    T* to = stage + row * kStageDepth<T> + piece_at(row, piece) * kPack<T>;
    if (p.copies) {
      const bool valid = in_row[row] >= 0 && at < depth;
      copy_async16(to, valid ? from : p.in, valid);
    } else {
#pragma unroll
      for (int v = 0; v < kPack<T>; ++v) to[v] = in_row[row] >= 0 && at + v < depth ? T{from[v]} : T{};
    }
  }
}

template <typename T, typename Out, typename A>
__device__ void load_bias(const RoutedProduct<T, Out>& p, std::int64_t expert, int first_column,
                          A (&bias)[kColumnsPerLane]) {
#pragma unroll
  for (int j = 0; j < kColumnsPerLane; ++j) {
    const int column = first_column + lane_column(lane_id(), j);
    const bool some = p.bias != nullptr && column < p.weight.columns;
    bias[j] = some ? A{widened(p.bias[expert * p.weight.columns + column])} : A{0};
  }
}

// The slot of a row of the batch, or -1, and the row of `in` that it reads.
template <typename SlotOf, typename RowOf>
struct BatchRows {
  int count;
  SlotOf slot;
  RowOf row;
};
template <typename SlotOf, typename RowOf>
BatchRows(int, SlotOf, RowOf) -> BatchRows<SlotOf, RowOf>;

// Dot products of a batch's sums with rows of `against`: over a lane's columns, its warp's, then the warps in order.
template <int Rows, typename T, typename Out, typename A, typename Batch>
__device__ void write_dots(const RoutedProduct<T, Out>& p, const Batch& batch, int first_column, int first_row,
                           const LaneSums<A, Rows>& sum, A* part, BadIndex* bad) {
#pragma unroll
  for (int i = 0; i < Rows; ++i) {
    const int row = first_row + lane_row(i);
    const std::int64_t slot = row < batch.count ? batch.slot(row) : -1;
    A dot = 0;
    if (slot >= 0) {
      const std::int64_t from = p.against_source != nullptr ? p.against_source[slot] : batch.row(row);
      if (p.against_source == nullptr || check_index(from, p.num_against_rows, slot, bad)) {
#pragma unroll
        for (int j = 0; j < kColumnsPerLane; ++j) {
          const int column = first_column + lane_column(lane_id(), j);
          if (column < p.weight.columns) dot += sum[i][j] * widened(p.against[from * p.weight.columns + column]);
        }
      }
    }
    dot += __shfl_xor_sync(kAllLanes, dot, 1);
    dot += __shfl_xor_sync(kAllLanes, dot, 2);
    if (lane_id() % 4 == 0) part[row * kColumnPanels + first_column % kTileColumns / kPanel] = dot;
  }
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x);
  const std::int64_t slot = row < batch.count ? batch.slot(row) : -1;
  if (slot < 0) return;
  A dot = 0;
  for (int i = 0; i < kColumnPanels; ++i) dot += part[row * kColumnPanels + i];
  p.dot[slot * p.num_column_blocks + first_column / kTileColumns] = dot;
}

}  // namespace gmoe::core::cuda
