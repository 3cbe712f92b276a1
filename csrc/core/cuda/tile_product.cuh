// A routed product whose results have several slots each, for experts small enough to be read by every tile.
//
// A block owns a tile of output rows, whose slots are neighbours, and 128 columns. The plan is sorted already, so the
// tile's slots of an expert are a run of it, which cut_kernel finds. The block takes the runs expert by expert in
// batches of 64 slots: their rows are gathered by asynchronous copies, two stages ahead, also from one batch to the
// next; 8 warps multiply 2 x 32 rows with 4 x 32 columns; sums, biased and gated, are added to the tile, which stands
// in shared memory and is stored once. So each output has one owner, and its sum one order. Floor: the greater of the
// multiply-adds and of the reads of all weights by every tile from the second-level cache.
#pragma once

#include "core/cuda/routed_product.cuh"

namespace gmoe::core::cuda {

inline constexpr int kBatch = 64;        // slots of one expert
inline constexpr int kTileRows = 96;     // with three stages, two blocks of floats share a multiprocessor of sm_80
inline constexpr int kTileSlots = 1024;  // at most: for them a block keeps lists
inline constexpr int kTileLaneRows = 4;
// Sums in double take two registers each.
template <typename T>
inline constexpr int kBlocksAtOnce = sizeof(Accumulator<T>) == 8 ? 1 : 2;

inline int rows_per_tile(std::int64_t slots_per_out) {
  const std::int64_t most = kTileSlots / slots_per_out;
  return most < kTileRows ? static_cast<int>(most) : kTileRows;
}

// ---- the slots of a tile

// By expert, then slot; in shared memory.
template <typename A>
struct TileSlots {
  std::int64_t* begin;  // [num_experts]: where the run is in the plan
  int* start;           // [num_experts + 1]: where it is here
  std::int64_t* row;    // of `in`, or -1
  int* slot;            // from the tile's first
  int* earlier;         // slots of the same batch that go to the same row and come before
  int* seen;            // of each slot of the tile, how often the plan has it
  A* gate;
  unsigned long long* most_earlier;  // of the tile
  int* damaged;                      // more than 0: the plan does not have every slot of the tile once, in order

  template <typename T, typename Out>
  static __device__ TileSlots take(const RoutedProduct<T, Out>& p, DynamicShared& shared) {
    const int n = p.slots_per_tile();
    const std::int64_t experts = p.plan.num_experts;
    return {shared.take<std::int64_t>(experts),
            shared.take<int>(experts + 1),
            shared.take<std::int64_t>(n),
            shared.take<int>(n),
            shared.take<int>(n),
            shared.take<int>(n),
            shared.take<A>(n),
            shared.take<unsigned long long>(1),
            shared.take<int>(1)};
  }
  __device__ int expert_at(std::int64_t experts, int i) const {
    return static_cast<int>(core::cuda::expert_at(experts, i, [&](std::int64_t e) { return start[e]; }));
  }
  static std::size_t bytes(std::int64_t experts, std::int64_t n) {
    return shared_bytes<std::int64_t, int, std::int64_t, int, int, int, A, unsigned long long, int>(
        experts, experts + 1, n, n, n, n, n, 1, 1);
  }
};

// start[], by the first warp. A damaged plan may have more slots than the tile: those are left out.
template <typename A>
__device__ void add_up_runs(const TileSlots<A>& slots, std::int64_t num_experts, int num_slots) {
  if (warp_id() != 0) return;
  std::int64_t carried = 0;
  for (std::int64_t first = 0; first < num_experts; first += kWarp) {
    const std::int64_t e = first + lane_id();
    const std::int64_t sum =
        carried + warp_prefix_sum(e < num_experts ? static_cast<std::int64_t>(slots.start[e + 1]) : 0);
    if (e < num_experts) slots.start[e + 1] = static_cast<int>(sum < num_slots ? sum : num_slots);
    carried = __shfl_sync(kAllLanes, sum, kWarp - 1);
  }
  if (lane_id() == 0) slots.start[0] = 0;
}

template <typename A>
__device__ void note_damage(const ExpertPlanView& plan, const TileSlots<A>& slots, BadIndex* bad) {
  note_bad_plan(plan, bad);
  atomicAdd(slots.damaged, 1);
}

template <typename T, typename Out, typename A>
__device__ void list_slot(const RoutedProduct<T, Out>& p, const TileSlots<A>& slots, int i, BadIndex* bad) {
  const std::int64_t first = p.first_slot();
  const int e = slots.expert_at(p.plan.num_experts, i);
  const std::int64_t slot = p.plan.order[slots.begin[e] + i - slots.start[e]];
  const bool ascends = i == slots.start[e] || slot > p.plan.order[slots.begin[e] + i - slots.start[e] - 1];
  const bool known =
      ascends && slot >= first && slot < first + p.num_slots() && atomicAdd(slots.seen + (slot - first), 1) == 0;
  if (!known) return note_damage(p.plan, slots, bad);
  slots.slot[i] = static_cast<int>(slot - first);
  slots.row[i] = -1;
  slots.gate[i] = p.gate != nullptr ? A{widened(p.gate[slot])} : A{1};
  const std::int64_t row = p.source != nullptr ? p.source[slot] : slot / p.slots_per_in;
  if (p.source == nullptr || check_index(row, p.num_in_rows, slot, bad)) slots.row[i] = row;
}

// Rows are visible to the block when this returns, the rest after its next barrier. False where the plan is damaged:
// then the tile has no slots.
template <typename T, typename Out, typename A>
__device__ bool list_slots(const RoutedProduct<T, Out>& p, const TileSlots<A>& slots, BadIndex* bad) {
  const int thread = static_cast<int>(threadIdx.x), num_slots = p.num_slots();
  const std::int64_t tile = p.tile();
  const std::int64_t experts = p.plan.num_experts;
  for (std::int64_t e = thread; e < experts; e += kProductThreads) {
    const std::int64_t begin = p.cut[e * (p.num_tiles + 1) + tile], end = p.cut[e * (p.num_tiles + 1) + tile + 1];
    slots.begin[e] = begin;
    slots.start[e + 1] = static_cast<int>(end < begin ? 0 : end - begin < num_slots ? end - begin : num_slots);
  }
  for (int i = thread; i < num_slots; i += kProductThreads) slots.seen[i] = 0;
  if (thread == 0) *slots.most_earlier = *slots.damaged = 0;
  __syncthreads();
  add_up_runs(slots, experts, num_slots);
  __syncthreads();
  const int listed = slots.start[experts];
  if (thread == 0 && listed < num_slots) note_damage(p.plan, slots, bad);
  for (int i = thread; i < listed; i += kProductThreads) {
    list_slot(p, slots, i, bad);
  }
  __syncthreads();
  if (*slots.damaged > 0) return false;
  for (int i = thread; i < listed; i += kProductThreads) {
    const int e = slots.expert_at(experts, i), in_batch = (i - slots.start[e]) % kBatch;
    int before = 0;
    while (before < in_batch && slots.slot[i - before - 1] / p.slots_per_out == slots.slot[i] / p.slots_per_out)
      ++before;
    slots.earlier[i] = before;
    if (before > 0) atomicMax(slots.most_earlier, static_cast<unsigned long long>(before));
  }
  return true;
}

// ---- the work of a tile

// A stage of depth of a batch.
struct ProductStep {
  int expert, first, count;  // the batch, in TileSlots
  int stage;

  __device__ void begin_batch(const int* start, int num_experts, int at) {
    while (expert < num_experts && at == start[expert + 1]) ++expert;
    first = at;
    count = expert == num_experts ? 0 : start[expert + 1] - at < kBatch ? start[expert + 1] - at : kBatch;
    stage = 0;
  }
  __device__ void advance(const int* start, int num_experts, int num_stages) {
    if (++stage == num_stages) begin_batch(start, num_experts, first + count);
  }
};

// Where the tile has a column of a row: neighbouring rows have theirs in different banks.
inline __device__ int tile_at(int row, int column) { return row * kTileColumns + (column ^ (row & 3) << 3); }

// Adds a batch's sums to the tile. Slots of one row take turns.
template <typename T, typename Out, typename A>
__device__ void add_to_tile(const RoutedProduct<T, Out>& p, const TileSlots<A>& slots, const ProductStep& step,
                            int first_column, int first_row, const LaneSums<A, kTileLaneRows>& sum, A* tile) {
  const int column_in_tile = first_column % kTileColumns;
  A bias[kColumnsPerLane];
  load_bias(p, step.expert, first_column, bias);
  const int turns = static_cast<int>(*slots.most_earlier) + 1;
  for (int turn = 0; turn < turns; ++turn) {
    if (turn > 0) __syncthreads();
#pragma unroll
    for (int i = 0; i < kTileLaneRows; ++i) {
      const int row = first_row + lane_row(i), at = step.first + row;
      if (row >= step.count || slots.earlier[at] != turn) continue;
      const int out_row = slots.slot[at] / p.slots_per_out;
      const A gate = slots.gate[at];
#pragma unroll
      for (int j = 0; j < kColumnsPerLane; j += 2) {
        A* to = tile + tile_at(out_row, column_in_tile + lane_column(lane_id(), j));
        Pack<A, 2> pack = load<2>(to);
        pack.value[0] += gate * (sum[i][j] + bias[j]);
        pack.value[1] += gate * (sum[i][j + 1] + bias[j + 1]);
        store<2>(to, pack);
      }
    }
  }
}

template <int V, typename T, typename Out, typename A>
__device__ void store_tile(const RoutedProduct<T, Out>& p, const A* tile) {
  constexpr int kPacks = kTileColumns / V;
  const std::int64_t first_row = p.tile() * p.rows_per_tile;
  const int rows = p.num_slots() / p.slots_per_out, first_column = p.first_column();
  for (int i = static_cast<int>(threadIdx.x); i < rows * kPacks; i += kProductThreads) {
    const int row = i / kPacks, column = i % kPacks * V;
    if (first_column + column >= p.weight.columns) continue;
    const A* from = tile + tile_at(row, column);
    Pack<Out, V> pack;
#pragma unroll
    for (int v = 0; v < V; ++v) pack.value[v] = narrowed<Out>(static_cast<Accumulator<Out>>(from[v]));
    store<V>(p.out + (first_row + row) * p.weight.columns + first_column + column, pack);
  }
}

template <bool Dots, typename T, typename Out>
__global__ void __launch_bounds__(kProductThreads, kBlocksAtOnce<T>)
    tile_product_kernel(RoutedProduct<T, Out> p, BadIndex* bad) {
  using A = Accumulator<T>;
  constexpr int kStageSize = kBatch * kStageDepth<T>;
  DynamicShared shared;
  T* stage = shared.take<T>(kStages * kStageSize);
  A* tile = shared.take<A>(p.rows_per_tile * kTileColumns);
  A* part = shared.take<A>(Dots ? kBatch * kColumnPanels : 0);
  const TileSlots<A> slots = TileSlots<A>::take(p, shared);
  for (int i = static_cast<int>(threadIdx.x); i < p.rows_per_tile * kTileColumns; i += kProductThreads) tile[i] = 0;
  const int experts = list_slots(p, slots, bad) ? static_cast<int>(p.plan.num_experts) : 0;
  const int stages = static_cast<int>(p.weight.num_stages());
  const int first_row = warp_id() / kColumnPanels * 8 * kTileLaneRows;
  const int first_column = p.first_column() + warp_id() % kColumnPanels * kPanel;
  ProductStep now{};
  now.begin_batch(slots.start, experts, 0);
  ProductStep ahead = now;
  const auto fetch_next = [&](int to) {
    fetch<kBatch>(p, slots.row + ahead.first, ahead.count, ahead.stage, stage + to * kStageSize);
    copy_async_commit();
    if (ahead.count > 0) ahead.advance(slots.start, experts, stages);
  };
  for (int i = 0; i + 1 < kStages; ++i) fetch_next(i);
  LaneSums<A, kTileLaneRows> sum = {};
  const T* panel = nullptr;
  for (int from = 0; now.count > 0; from = (from + 1) % kStages) {
    copy_async_wait<kStages - 2>();
    __syncthreads();  // the stage has come for all, and all have left the one that is fetched next
    fetch_next((from + kStages - 1) % kStages);
    if (first_row < now.count && first_column < p.weight.columns) {
      if (now.stage == 0) panel = p.weight.panel(now.expert, first_column / kPanel);
      Panels<T>::multiply(stage + from * kStageSize + first_row * kStageDepth<T>, panel, now.count - first_row, sum);
      panel += kStageDepth<T> * kPanel;
    }
    if (now.stage + 1 == stages) {
      if (Dots) {
        const auto slot = [&](int row) { return p.first_slot() + slots.slot[now.first + row]; };
        const auto row_of = [&](int row) { return slots.row[now.first + row]; };
        write_dots(p, BatchRows{now.count, slot, row_of}, first_column, first_row, sum, part, bad);
      }
      if (p.with_out) add_to_tile(p, slots, now, first_column, first_row, sum, tile);
#pragma unroll
      for (int i = 0; i < kTileLaneRows * kColumnsPerLane; ++i) sum[i / kColumnsPerLane][i % kColumnsPerLane] = 0;
    }
    now.advance(slots.start, experts, stages);
  }
  __syncthreads();
  if (!p.with_out) return;
  if (p.packs) return store_tile<kPack<Out>>(p, tile);
  store_tile<1>(p, tile);
}

}  // namespace gmoe::core::cuda
