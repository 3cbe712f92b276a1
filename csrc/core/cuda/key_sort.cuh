// Items in the order of their keys, equal ones in their own order: the stable sort of expert_plan, 10 bits of the keys
// at a time, from the lowest.
#pragma once

#include <bit>

#include "core/cuda/primitives.cuh"
#include "core/cuda/workspace.h"
#include "core/expert_plan.h"

namespace gmoe::core::cuda {

struct KeySort {
  static constexpr int kDigitBits = 10;
  static constexpr std::int64_t kDigits = std::int64_t{1} << kDigitBits;
  static_assert(kDigits <= kMaxExperts);

  std::int64_t num_items, num_keys;
  int passes;
  std::int64_t *start, *order;               // [num_keys + 1], [num_items]: the result
  std::int64_t *other, *by_digit, *offsets;  // of several passes
  std::int32_t* digit;                       // [num_items]
  void* plan;

  KeySort(std::int64_t items, std::int64_t keys, Workspace& workspace) : num_items(items), num_keys(keys) {
    const int bits = std::bit_width(static_cast<std::uint64_t>(keys > 1 ? keys - 1 : 1));
    passes = static_cast<int>(divide_up(bits, kDigitBits));
    start = workspace.take<std::int64_t>(keys + 1);
    order = workspace.take<std::int64_t>(items);
    other = workspace.take<std::int64_t>(passes > 1 ? items : 0);
    by_digit = workspace.take<std::int64_t>(passes > 1 ? items : 0);
    offsets = workspace.take<std::int64_t>(passes > 1 ? kDigits + 1 : 0);
    digit = workspace.take<std::int32_t>(items);
    plan = workspace.take<unsigned char>(expert_plan_workspace(items, passes > 1 ? kDigits : keys));
  }
};

// First i in [0, count) with before(i) false, or count; true comes first.
template <typename Before>
__device__ std::int64_t first_not(std::int64_t count, const Before& before) {
  std::int64_t low = 0, high = count;
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (before(middle)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

inline constexpr int kSortThreads = 256;

// Applies the order of the last pass, if there was one, and takes the next digit.
template <typename Key>
__global__ void reorder_kernel(KeySort s, Key key, const std::int64_t* before, std::int64_t* after, int pass) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kSortThreads + threadIdx.x;
  if (i >= s.num_items) return;
  const std::int64_t item = pass == 0 ? i : pass == 1 ? s.by_digit[i] : before[s.by_digit[i]];
  if (pass > 0) after[i] = item;
  if (pass < s.passes) s.digit[i] = static_cast<std::int32_t>(key(item) >> (pass * s.kDigitBits) & (s.kDigits - 1));
}

template <typename Key>
__global__ void key_start_kernel(KeySort s, Key key) {
  const std::int64_t k = static_cast<std::int64_t>(blockIdx.x) * kSortThreads + threadIdx.x;
  if (k <= s.num_keys) s.start[k] = first_not(s.num_items, [&](std::int64_t i) { return key(s.order[i]) < k; });
}

// key(item) is in [0, num_keys).
template <typename Key>
void sort_by_key(const KeySort& s, const Key& key, const Call& call) {
  const Call plan{s.plan, call.bad_index, call.stream};
  const std::int64_t blocks = divide_up(s.num_items, kSortThreads);
  const auto reorder = [&](int pass) {
    if (blocks == 0) return;
    // The last of them ends in `order`.
    std::int64_t* const places[2] = {s.order, s.other};
    const int to = (s.passes - pass) % 2;
    launch("key_sort/reorder", reorder_kernel<Key>, blocks, kSortThreads, 0, call.stream, s, key, places[1 - to],
           places[to], pass);
  };
  if (s.passes == 1) {
    reorder(0);
    return expert_plan<std::int32_t>({s.digit, s.num_items, s.num_keys, s.start, s.order}, plan);
  }
  for (int pass = 0; pass < s.passes; ++pass) {
    reorder(pass);
    expert_plan<std::int32_t>({s.digit, s.num_items, s.kDigits, s.offsets, s.by_digit}, plan);
  }
  reorder(s.passes);
  launch("key_sort/start", key_start_kernel<Key>, divide_up(s.num_keys + 1, kSortThreads), kSortThreads, 0, call.stream,
         s, key);
}

}  // namespace gmoe::core::cuda
