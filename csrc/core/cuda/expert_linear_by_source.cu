// A warp adds up the rows of a sum's slots. Slots are sorted by source 10 bits at a time, from the lowest, by the
// stable sort of expert_plan. Floor: reading every slot's row once.
#include "core/cuda/expert_linear_by_source.h"

#include <bit>

#include "core/cuda/expert_plan.h"
#include "core/cuda/primitives.cuh"

namespace gmoe::core::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kDigitBits = 10;
constexpr std::int64_t kDigits = std::int64_t{1} << kDigitBits;
static_assert(kDigits <= kMaxExperts);

struct SlotSort {
  const std::int64_t* source;
  std::int64_t num_slots, num_sources;
  std::int64_t* key;       // [num_slots], of the sorted slots: their sources, bad ones as num_sources
  std::int64_t* order[2];  // [num_slots]: slots before and after a pass, and the other way round
  std::int64_t* start;     // [num_sources + 1]
  std::int64_t* by_digit;  // [num_slots]
  std::int64_t* digit_offsets;
  std::int32_t* digit;  // [num_slots]
  void* plan_workspace;

  int num_passes() const {
    return static_cast<int>(divide_up(std::bit_width(static_cast<std::uint64_t>(num_sources)), kDigitBits));
  }
};

__device__ std::int64_t thread_in_grid() { return static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; }

// Applies the last pass's order and takes the next digit.
__global__ void reorder_kernel(SlotSort s, const std::int64_t* before, std::int64_t* after, int pass, BadIndex* bad) {
  const std::int64_t i = thread_in_grid();
  if (i >= s.num_slots) return;
  const std::int64_t slot = pass == 0 ? i : before[s.by_digit[i]];
  const std::int64_t source = s.source[slot];
  const std::int64_t key = check_index(source, s.num_sources, slot, bad) ? source : s.num_sources;
  after[i] = slot;
  s.key[i] = key;
  s.digit[i] = static_cast<std::int32_t>(key >> (pass * kDigitBits) & (kDigits - 1));
}

__global__ void start_kernel(SlotSort s) {
  const std::int64_t source = thread_in_grid();
  if (source > s.num_sources) return;
  std::int64_t begin = 0, end = s.num_slots;
  while (begin < end) {
    const std::int64_t middle = begin + (end - begin) / 2;
    if (s.key[middle] < source) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  s.start[source] = begin;
}

// A warp per row.
template <int V, typename T>
__global__ void sum_slots_kernel(SlotSums<T> a) {
  using A = Accumulator<T>;
  const std::int64_t row = thread_in_grid() / kWarp;
  if (row >= a.num_rows) return;
  const std::int64_t begin = a.start != nullptr ? a.start[row] : row * a.per_row;
  const std::int64_t end = a.start != nullptr ? a.start[row + 1] : begin + a.per_row;
  for (std::int64_t d = lane_id() * V; d < a.dim; d += kWarp * V) {
    A sum[V] = {};
    for (std::int64_t i = begin; i < end; ++i) {
      if (a.order[i] < 0) continue;
      const Pack<A, V> pack = load<V>(a.rows + a.order[i] * a.dim + d);
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += pack.value[v];
    }
    Pack<T, V> result;
#pragma unroll
    for (int v = 0; v < V; ++v) result.value[v] = narrowed<T>(sum[v]);
    store<V>(a.out + row * a.dim + d, result);
  }
}

SlotSort take_sort(const std::int64_t* source, std::int64_t num_slots, std::int64_t num_sources, Workspace& workspace) {
  SlotSort s{source, num_slots, num_sources, {}, {}, {}, {}, {}, {}, {}};
  s.key = workspace.take<std::int64_t>(num_slots);
  s.order[0] = workspace.take<std::int64_t>(num_slots);
  s.order[1] = workspace.take<std::int64_t>(num_slots);
  s.start = workspace.take<std::int64_t>(num_sources + 1);
  s.by_digit = workspace.take<std::int64_t>(num_slots);
  s.digit_offsets = workspace.take<std::int64_t>(kDigits + 1);
  s.digit = workspace.take<std::int32_t>(num_slots);
  s.plan_workspace = workspace.take<unsigned char>(expert_plan_workspace(num_slots, kDigits));
  return s;
}

// The sorted slots.
const std::int64_t* sort_slots(const SlotSort& s, const Call& call) {
  const std::int64_t blocks = divide_up(s.num_slots, kThreads);
  const int passes = s.num_passes();
  for (int pass = 0; pass <= passes; ++pass) {
    launch("expert_linear/reorder", reorder_kernel, blocks, kThreads, 0, call.stream, s, s.order[(pass + 1) % 2],
           s.order[pass % 2], pass, call.bad_index);
    if (pass == passes) break;
    expert_plan<std::int32_t>({s.digit, s.num_slots, kDigits, s.digit_offsets, s.by_digit},
                              {s.plan_workspace, call.bad_index, call.stream});
  }
  launch("expert_linear/start", start_kernel, divide_up(s.num_sources + 1, kThreads), kThreads, 0, call.stream, s);
  return s.order[passes % 2];
}

}  // namespace

template <typename T>
void sum_slots(const SlotSums<T>& a, const Call& call) {
  constexpr int V = kPack<Accumulator<T>>;
  if (a.num_rows * a.dim == 0) return;
  launch("expert_linear/sum_slots",
         fits_packs<V>(a.dim, a.rows, a.out) ? sum_slots_kernel<V, T> : sum_slots_kernel<1, T>,
         divide_up(a.num_rows, kThreads / kWarp), kThreads, 0, call.stream, a);
}

template <typename T>
void sum_by_source(const SumBySource<T>& a, Workspace& workspace, const Call& call) {
  const SlotSort s = take_sort(a.source, a.num_slots, a.num_sources, workspace);
  if (workspace.counts_only() || a.num_sources * a.dim == 0) return;
  sum_slots<T>({a.rows, sort_slots(s, call), s.start, 0, a.num_sources, a.dim, a.out}, call);
}

template void sum_slots(const SlotSums<float>&, const Call&);
template void sum_by_source(const SumBySource<float>&, Workspace&, const Call&);
template void sum_slots(const SlotSums<double>&, const Call&);
template void sum_by_source(const SumBySource<double>&, Workspace&, const Call&);
template void sum_slots(const SlotSums<bfloat16>&, const Call&);
template void sum_by_source(const SumBySource<bfloat16>&, Workspace&, const Call&);

}  // namespace gmoe::core::cuda
