// The product of a warp: 32 or 64 gathered rows, which stand in shared memory, with 32 columns of an expert's weights.
//
// Weights are packed once a call into panels of 32 columns, padded by zeros, such that what a lane needs next is one
// piece of 16 bytes beside its neighbours'; panels are read from the caches straight into registers, for no two warps
// of a block want the same columns of the same rows. Packing is also where a matrix is transposed, and where odd sizes
// and unaligned rows end. Rows stand in stages of 128 bytes a row, their 16-byte pieces swapped by row so that what
// lanes read at once lies in different banks.
//
// A lane holds the sums of 4 or 8 rows and 8 columns, the same ones for every type: with g = lane / 4 and t = lane % 4,
// rows g + 8 i and columns 8 (j / 2) + 2 t + j % 2, as the matrix instructions lay them out.
#pragma once

#include "core/cuda/tfloat32.cuh"

namespace gmoe::core::cuda {

inline constexpr int kPanel = 32;        // columns of a warp
inline constexpr int kStageBytes = 128;  // of a row
inline constexpr int kColumnsPerLane = 8;

// Of the 8 * Rows rows of a warp.
template <typename A, int Rows>
using LaneSums = A[Rows][kColumnsPerLane];

// Depth of a stage.
template <typename T>
inline constexpr int kStageDepth = kStageBytes / static_cast<int>(sizeof(T));

inline __device__ int lane_row(int i) { return lane_id() / 4 + 8 * i; }
inline __device__ int lane_column(int lane, int j) { return 8 * (j / 2) + 2 * (lane % 4) + j % 2; }

// Where a row of a stage has its 16-byte piece: eight rows, or two rows and four pieces, are in different banks.
inline __device__ int piece_at(int row, int piece) { return piece ^ ((row & 1) << 2 | (row >> 1 & 3)); }

struct PanelPlace {
  int depth, column;  // within the panel
};

// Multiply-adds, one depth at a time: a panel is [depth, 4, 8], the eight columns of each t.
template <typename T>
struct Panels {
  using A = Accumulator<T>;

  static __device__ PanelPlace place(int piece, int v) {
    constexpr int kPieces = kColumnsPerLane / kPack<T>;
    const int t = piece / kPieces % 4, j = piece % kPieces * kPack<T> + v;
    return {piece / kPieces / 4, lane_column(t, j)};
  }

  // Adds the products of a stage's rows, from the warp's first on, with as many depths of a panel.
  template <int Rows>
  static __device__ void multiply(const T* stage, const T* panel, int /*rows*/, LaneSums<A, Rows>& sum) {
    const int g = lane_id() / 4, t = lane_id() % 4;
    panel += t * kColumnsPerLane;
#pragma unroll 1
    for (int piece = 0; piece < kStageBytes / 16; ++piece) {
      Pack<T, kPack<T>> row[Rows];
#pragma unroll
      for (int i = 0; i < Rows; ++i) {
        row[i] = load<kPack<T>>(stage + lane_row(i) * kStageDepth<T> + piece_at(g, piece) * kPack<T>);
      }
#pragma unroll
      for (int v = 0; v < kPack<T>; ++v) {
        T column[kColumnsPerLane];
#pragma unroll
        for (int j = 0; j < kColumnsPerLane; j += kPack<T>) {
          const Pack<T, kPack<T>> pack = load<kPack<T>>(panel + (piece * kPack<T> + v) * kPanel + j);
#pragma unroll
          for (int u = 0; u < kPack<T>; ++u) column[j + u] = pack.value[u];
        }
#pragma unroll
        for (int i = 0; i < Rows; ++i) {
#pragma unroll
          for (int j = 0; j < kColumnsPerLane; ++j) sum[i][j] += row[i].value[v] * column[j];
        }
      }
    }
  }
};

// Matrix instructions. The order of depths within a product is free, so lane t takes the neighbours of a 16-byte piece,
// of rows and of weights alike, as the depths that two instructions want of it. A panel is [depth / kDepth, 4 (columns
// by 8), 32 lanes, kPack depths].
template <typename T>
struct MatrixPanels {
  static constexpr int kDepth = 4 * kPack<T>;  // of two instructions

  static __device__ PanelPlace place(int piece, int v) {
    const int lane = piece % kWarp, n = piece / kWarp % 4;
    return {piece / kWarp / 4 * kDepth + lane % 4 * kPack<T> + v, n * 8 + lane / 4};
  }

  // Two words for each of the instructions.
  struct Fragment {
    unsigned word[4];
  };
  static __device__ Fragment fragment(const T* at) {
    const Pack<unsigned, 4> pack = load<4>(reinterpret_cast<const unsigned*>(at));
    return {{pack.value[0], pack.value[1], pack.value[2], pack.value[3]}};
  }
  // Rows come as they are in memory; weights are rounded when they are packed.
  static __device__ Fragment row_fragment(const T* at) {
    if constexpr (std::is_same_v<T, tfloat32>) {
      const Pack<T, 4> pack = load<4>(at);
      Fragment rounded;
#pragma unroll
      for (int v = 0; v < 4; ++v) rounded.word[v] = rounded_to_tf32(pack.value[v].value);
      return rounded;
    } else {
      return fragment(at);
    }
  }

  template <int Rows>
  static __device__ void multiply(const T* stage, const T* panel, int rows, LaneSums<float, Rows>& sum) {
    const int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (int step = 0; step < kStageDepth<T> / kDepth; ++step) {
      Fragment column[4];
#pragma unroll
      for (int n = 0; n < 4; ++n) column[n] = fragment(panel + ((step * 4 + n) * kWarp + lane_id()) * kPack<T>);
#pragma unroll
      for (int m = 0; m < Rows / 2; ++m) {
        if (16 * m >= rows) break;
        Fragment row[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          row[half] =
              row_fragment(stage + lane_row(2 * m + half) * kStageDepth<T> + piece_at(g, step * 4 + t) * kPack<T>);
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const unsigned (&a0)[4] = row[0].word, (&a1)[4] = row[1].word, (&b)[4] = column[n].word;
            multiply_words<T>(sum[2 * m][2 * n], sum[2 * m][2 * n + 1], sum[2 * m + 1][2 * n],
                              sum[2 * m + 1][2 * n + 1], a0[2 * half], a1[2 * half], a0[2 * half + 1], a1[2 * half + 1],
                              b[2 * half], b[2 * half + 1]);
          }
        }
      }
    }
  }
};
template <>
struct Panels<bfloat16> : MatrixPanels<bfloat16> {};
template <>
struct Panels<tfloat32> : MatrixPanels<tfloat32> {};

// All experts' weights as panels: [num_experts, panels(), stages() of depth].
template <typename T>
struct PackedWeight {
  const T* panels;
  std::int64_t num_experts, depth, columns;

  // A stage also where there is no depth: the bias needs a turn.
  __host__ __device__ std::int64_t num_stages() const { return depth > 0 ? divide_up(depth, kStageDepth<T>) : 1; }
  __host__ __device__ std::int64_t num_panels() const { return divide_up(columns, kPanel); }
  __host__ __device__ std::int64_t panel_size() const { return num_stages() * kStageDepth<T> * kPanel; }
  __host__ __device__ std::int64_t size() const { return num_experts * num_panels() * panel_size(); }
  __device__ const T* panel(std::int64_t expert, std::int64_t index) const {
    return panels + (expert * num_panels() + index) * panel_size();
  }
};

inline constexpr int kPackThreads = 256;

// A thread writes 16 bytes. weight is [num_experts, columns, depth], or [num_experts, depth, columns] if Transposed.
template <bool Transposed, typename T>
__global__ void pack_weight_kernel(PackedWeight<T> to, const Element<T>* weight, T* panels) {
  const std::int64_t piece = static_cast<std::int64_t>(blockIdx.x) * kPackThreads + threadIdx.x;
  if (piece >= to.size() / kPack<T>) return;
  const std::int64_t pieces = to.panel_size() / kPack<T>;
  const std::int64_t expert = piece / pieces / to.num_panels(), panel = piece / pieces % to.num_panels();
  weight += expert * to.columns * to.depth;
  Pack<T, kPack<T>> pack;
#pragma unroll
  for (int v = 0; v < kPack<T>; ++v) {
    const PanelPlace place = Panels<T>::place(static_cast<int>(piece % pieces), v);
    const std::int64_t column = panel * kPanel + place.column, depth = place.depth;
    const bool inside = column < to.columns && depth < to.depth;
    pack.value[v] =
        inside ? factor<T>(weight[Transposed ? depth * to.columns + column : column * to.depth + depth]) : T{};
  }
  store<kPack<T>>(panels + piece * kPack<T>, pack);
}

}  // namespace gmoe::core::cuda
