// A routed product by expert: a block owns 128 slots of an expert and 128 columns. Results stay apart, a row for each
// slot, or are slots' own; what belongs to one row is added up afterwards, in the order of the experts.
//
// Rows are gathered by asynchronous copies, two stages ahead; 8 warps multiply 2 x 64 rows with 4 x 32 columns, whose
// weights they read from the caches. Every slot has one owner, by its position in the plan, also where a damaged plan
// has it twice. Floor: the multiply-adds, and the results' way through memory where they are added up.
#pragma once

#include "core/cuda/routed_product.cuh"

namespace gmoe::core::cuda {

inline constexpr int kGroup = 128;  // slots of a block
inline constexpr int kGroupLaneRows = 8;

template <typename T, typename Out>
struct GroupedProduct {
  RoutedProduct<T, Out> p;             // out is [num_slots, columns] or null
  ExpertParts parts;                   // of kGroup slots
  const unsigned long long* position;  // [num_slots]: of the slot in the plan's order, from 1; 0 if it is missing
};

// The slots of a block, in shared memory.
template <typename A>
struct GroupSlots {
  std::int64_t* slot;  // or -1
  std::int64_t* row;   // of `in`, or -1
  A* gate;
};

template <typename T, typename Out, typename A>
__device__ void list_group(const GroupedProduct<T, Out>& g, const GroupSlots<A>& slots, const ExpertPart& part,
                           BadIndex* bad) {
  const int i = static_cast<int>(threadIdx.x);
  const std::int64_t at = part.begin + i;
  if (at >= part.end) return;
  const RoutedProduct<T, Out>& p = g.p;
  const std::int64_t slot = p.plan.order[at];
  slots.slot[i] = slots.row[i] = -1;
  const bool known = slot >= 0 && slot < num_slots(p.plan) && g.parts.expert_of(at) == part.expert &&
                     g.position[slot] == static_cast<unsigned long long>(at) + 1;
  if (!known) return note_bad_plan(p.plan, bad);
  slots.slot[i] = slot;
  slots.gate[i] = p.gate != nullptr ? A{widened(p.gate[slot])} : A{1};
  const std::int64_t row = p.source != nullptr ? p.source[slot] : slot / p.slots_per_in;
  if (p.source == nullptr || check_index(row, p.num_in_rows, slot, bad)) slots.row[i] = row;
}

template <typename T, typename Out, typename A>
__device__ void store_group(const RoutedProduct<T, Out>& p, const GroupSlots<A>& slots, std::int64_t expert, int count,
                            int first_column, int first_row, const LaneSums<A, kGroupLaneRows>& sum) {
  A bias[kColumnsPerLane];
  load_bias(p, expert, first_column, bias);
#pragma unroll
  for (int i = 0; i < kGroupLaneRows; ++i) {
    const int row = first_row + lane_row(i);
    const std::int64_t slot = row < count ? slots.slot[row] : -1;
    if (slot < 0) continue;
    const A gate = slots.gate[row];
#pragma unroll
    for (int j = 0; j < kColumnsPerLane; j += 2) {
      const int column = first_column + lane_column(lane_id(), j);
      Out* to = p.out + slot * p.weight.columns + column;
      Pack<Out, 2> pack;
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        pack.value[v] = narrowed<Out>(static_cast<Accumulator<Out>>(gate * (sum[i][j + v] + bias[j + v])));
      }
      if (p.packs) {
        if (column < p.weight.columns) store<2>(to, pack);
      } else {
#pragma unroll
        for (int v = 0; v < 2; ++v) {
          if (column + v < p.weight.columns) to[v] = pack.value[v];
        }
      }
    }
  }
}

template <bool Dots, typename T, typename Out>
__global__ void __launch_bounds__(kProductThreads) grouped_product_kernel(GroupedProduct<T, Out> g, BadIndex* bad) {
  using A = Accumulator<T>;
  constexpr int kStageSize = kGroup * kStageDepth<T>;
  const RoutedProduct<T, Out>& p = g.p;
  const ExpertPart part = g.parts.part(blockIdx.x / p.num_column_blocks);
  if (part.begin == part.end) return;
  DynamicShared shared;
  T* stage = shared.take<T>(kStages * kStageSize);
  A* dot_part = shared.take<A>(Dots ? kGroup * kColumnPanels : 0);
  const GroupSlots<A> slots{shared.take<std::int64_t>(kGroup), shared.take<std::int64_t>(kGroup),
                            shared.take<A>(kGroup)};
  list_group(g, slots, part, bad);
  __syncthreads();

  const int count = static_cast<int>(part.end - part.begin), stages = static_cast<int>(p.weight.num_stages());
  const int first_row = warp_id() / kColumnPanels * 8 * kGroupLaneRows;
  const int first_column = p.first_column() + warp_id() % kColumnPanels * kPanel;
  const bool works = first_row < count && first_column < p.weight.columns;
  const T* panel = works ? p.weight.panel(part.expert, first_column / kPanel) : nullptr;
  const auto fetch_stage = [&](int i, int to) {
    if (i < stages) fetch<kGroup>(p, slots.row, count, i, stage + to * kStageSize);
    copy_async_commit();
  };
  for (int i = 0; i + 1 < kStages; ++i) fetch_stage(i, i);
  LaneSums<A, kGroupLaneRows> sum = {};
  for (int i = 0, from = 0; i < stages; ++i, from = (from + 1) % kStages) {
    copy_async_wait<kStages - 2>();
    __syncthreads();  // the stage has come for all, and all have left the one that is fetched next
    fetch_stage(i + kStages - 1, (from + kStages - 1) % kStages);
    if (!works) continue;
    Panels<T>::multiply(stage + from * kStageSize + first_row * kStageDepth<T>, panel, count - first_row, sum);
    panel += kStageDepth<T> * kPanel;
  }
  if (Dots) {
    const auto slot = [&](int row) { return slots.slot[row]; };
    const auto row_of = [&](int row) { return slots.row[row]; };
    write_dots(p, BatchRows{count, slot, row_of}, first_column, first_row, sum, dot_part, bad);
  }
  if (p.with_out) store_group(p, slots, part.expert, count, first_column, first_row, sum);
}

// ---- where slots are in the plan

inline constexpr int kPlanThreads = 256;

template <typename Parts>
__global__ void position_kernel(Parts parts, unsigned long long* position) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kPlanThreads + threadIdx.x;
  if (i >= num_slots(parts.plan)) return;
  const std::int64_t slot = parts.plan.order[i], e = parts.expert_of(i);
  const bool known = slot >= 0 && slot < num_slots(parts.plan) && parts.offset(e) <= i && i < parts.offset(e + 1);
  if (known) atomicMax(position + slot, static_cast<unsigned long long>(i) + 1);
}

// A row's slots by ascending expert, -1 for one that the plan lacks.
template <typename Parts>
__global__ void rank_kernel(Parts parts, const unsigned long long* position, std::int64_t* ranked, BadIndex* bad) {
  const std::int64_t slot = static_cast<std::int64_t>(blockIdx.x) * kPlanThreads + threadIdx.x;
  if (slot >= num_slots(parts.plan)) return;
  const unsigned long long own = position[slot];
  if (own == 0) note_bad_plan(parts.plan, bad);
  if (ranked == nullptr) return;
  const std::int64_t first = slot / parts.plan.k * parts.plan.k;
  std::int64_t rank = first;
  for (std::int64_t other = first; other < first + parts.plan.k; ++other) {
    rank += position[other] < own || (position[other] == own && other < slot) ? 1 : 0;
  }
  ranked[rank] = own == 0 ? -1 : slot;
}

}  // namespace gmoe::core::cuda
