// The names of CUDA that kernels use, on the CPU. __shared__ is missing on purpose: primitives.cuh wraps it, and a use
// that is not wrapped must not compile. Include only from primitives.cuh.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "core/cuda/host/executor.h"
#include "core/cuda/host/matrix.h"

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

#define threadIdx (::gmoe::core::cuda::host::g_indices.thread)
#define blockIdx (::gmoe::core::cuda::host::g_indices.block)
#define blockDim (::gmoe::core::cuda::host::g_indices.block_size)
#define gridDim (::gmoe::core::cuda::host::g_indices.grid_size)

namespace gmoe::core::cuda::host {

template <typename T>
T shuffle(unsigned mask, T value, int source, const Place& place) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(Exchange::shuffle, mask, bits, source, place);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// A compare-and-swap that ThreadSanitizer knows as an atomic, without order, as on the device.
template <typename T, typename Change>
T change_atomically(T* at, const Change& change) {
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(at, &old, change(old), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) continue;
  return old;
}

}  // namespace gmoe::core::cuda::host

using GmoePlace = ::gmoe::core::cuda::host::Place;

inline void __syncthreads(GmoePlace place = GmoePlace::current()) {
  ::gmoe::core::cuda::host::sync_threads(false, place);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, GmoePlace place = GmoePlace::current()) {
  using namespace ::gmoe::core::cuda::host;
  exchange(Exchange::sync, mask, 0, 0, place);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, GmoePlace place = GmoePlace::current()) {
  return ::gmoe::core::cuda::host::shuffle(mask, value, source & 31, place);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, GmoePlace place = GmoePlace::current()) {
  using namespace ::gmoe::core::cuda::host;
  return shuffle(mask, value, (lane() ^ lanes) & 31, place);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, int lanes, GmoePlace place = GmoePlace::current()) {
  using namespace ::gmoe::core::cuda::host;
  return shuffle(mask, value, lane() < lanes ? lane() : lane() - lanes, place);
}

inline unsigned __ballot_sync(unsigned mask, bool predicate, GmoePlace place = GmoePlace::current()) {
  using namespace ::gmoe::core::cuda::host;
  return static_cast<unsigned>(exchange(Exchange::ballot, mask, predicate ? 1 : 0, 0, place));
}
inline unsigned __match_any_sync(unsigned mask, std::uint64_t value, GmoePlace place = GmoePlace::current()) {
  using namespace ::gmoe::core::cuda::host;
  return static_cast<unsigned>(exchange(Exchange::match, mask, value, 0, place));
}
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __ffs(int bits) { return bits == 0 ? 0 : std::countr_zero(static_cast<unsigned>(bits)) + 1; }

// Integers only: a float atomic is not deterministic.
inline int atomicAdd(int* at, int value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
inline unsigned atomicOr(unsigned* at, unsigned value) { return __atomic_fetch_or(at, value, __ATOMIC_RELAXED); }
inline unsigned atomicAnd(unsigned* at, unsigned value) { return __atomic_fetch_and(at, value, __ATOMIC_RELAXED); }
inline unsigned long long atomicMin(unsigned long long* at, unsigned long long value) {
  return ::gmoe::core::cuda::host::change_atomically(at, [=](auto old) { return old < value ? old : value; });
}
inline unsigned long long atomicMax(unsigned long long* at, unsigned long long value) {
  return ::gmoe::core::cuda::host::change_atomically(at, [=](auto old) { return old > value ? old : value; });
}
