// The vocabulary of the CUDA kernels, on top of what differs between a device and the emulator of the tests
// (instructions.cuh).
//
// The emulator holds kernels to these rules: blocks have whole warps; no thread leaves before a barrier; lanes do not
// run in lockstep, so every exchange through shared memory has its __syncwarp; shared memory comes from
// GMOE_SHARED_ARRAY and DynamicShared only; no assembly, no static locals, no waiting between blocks.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "core/cuda/instructions.cuh"
#include "core/cuda/launch.h"
#include "core/types.h"

namespace gmoe::core::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// ---- threads

inline __device__ int lane_id() { return static_cast<int>(threadIdx.x) % kWarp; }
inline __device__ int warp_id() { return static_cast<int>(threadIdx.x) / kWarp; }
inline __device__ int warps_per_block() { return static_cast<int>(blockDim.x) / kWarp; }

// Every lane gets the same bits: each step adds the same two numbers in either order.
template <typename A>
__device__ A warp_sum(A value) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kAllLanes, value, lanes);
  return value;
}

// Sum of `value` over this lane and those before it.
template <typename A>
__device__ A warp_prefix_sum(A value) {
#pragma unroll
  for (int lanes = 1; lanes < kWarp; lanes *= 2) {
    const A before = __shfl_up_sync(kAllLanes, value, lanes);
    if (lane_id() >= lanes) value += before;
  }
  return value;
}

// A step of warp_sum_32: lanes with this bit keep the upper half of the values, the others the lower one. A template,
// so that every position is known to the compiler and the values stay in registers.
template <int Half, typename A>
__device__ __forceinline__ void fold_halves(A (&value)[kWarp]) {
  if constexpr (Half > 0) {
    const bool upper = (lane_id() & Half) != 0;
#pragma unroll
    for (int i = 0; i < Half; ++i) {
      const A away = upper ? value[i] : value[i + Half];
      const A kept = upper ? value[i + Half] : value[i];
      value[i] = kept + __shfl_xor_sync(kAllLanes, away, Half);
    }
    fold_halves<Half / 2>(value);
  }
}

// Sums 32 values over the warp with 31 shuffles instead of 160: lane l gets the sum of value[l]. Every sum is made by
// the same tree, so equal values have equal sums.
template <typename A>
__device__ __forceinline__ A warp_sum_32(A (&value)[kWarp]) {
  fold_halves<kWarp / 2>(value);
  return value[0];
}

template <typename A>
inline constexpr A kInfinity = std::numeric_limits<A>::infinity();

// ---- memory

// V neighbours that are loaded and stored at once, or 16 bytes at a time, to which their place must be aligned.
template <typename T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Pack {
  T value[V];
};

// 16 bytes, the most that a lane loads at once.
template <typename T>
inline constexpr int kPack = 16 / static_cast<int>(sizeof(T));

template <int V, typename T>
__device__ __forceinline__ Pack<T, V> load(const T* at) {
  return load_whole<Pack<T, V>>(at);
}
template <int V, typename T>
__device__ __forceinline__ void store(T* at, const Pack<T, V>& pack) {
  store_whole(at, pack);
}

// Whether rows of `dim` values that begin at all of `rows` can be read V at a time.
template <int V, typename... T>
bool fits_packs(std::int64_t dim, const T*... rows) {
  return dim % V == 0 && ((reinterpret_cast<std::uintptr_t>(rows) % (sizeof(T) * V) == 0) && ...);
}

// Carves arrays out of the dynamic shared memory, each 16-byte aligned; shared_bytes counts them for the launch.
class DynamicShared {
 public:
  template <typename T>
  __device__ T* take(std::int64_t n) {
    const std::int64_t begin = used_, end = begin + n * static_cast<std::int64_t>(sizeof(T));
    used_ = divide_up(end, 16) * 16;
    return reinterpret_cast<T*>(dynamic_shared(begin, end));
  }

 private:
  std::int64_t used_ = 0;
};

template <typename>
using CountOf = std::int64_t;

// Bytes of dynamic shared memory for arrays of n values of type T each, in the order in which they are taken.
template <typename... T>
std::size_t shared_bytes(CountOf<T>... n) {
  return static_cast<std::size_t>((divide_up(n * static_cast<std::int64_t>(sizeof(T)), 16) + ... + 0) * 16);
}

// ---- indices

// Whether value lies in [0, bound); notes its position if not.
inline __device__ bool check_index(std::int64_t value, std::int64_t bound, std::int64_t position, BadIndex* bad) {
  if (value >= 0 && value < bound) return true;
  atomicMin(bad, static_cast<BadIndex>(position));
  return false;
}

inline void check_experts(const char* op, std::int64_t num_experts) {
  if (num_experts <= kMaxExperts) return;
  throw std::invalid_argument(std::string("gmoe::") + op + ": expected at most " + std::to_string(kMaxExperts) +
                              " experts on CUDA, got " + std::to_string(num_experts));
}

}  // namespace gmoe::core::cuda
