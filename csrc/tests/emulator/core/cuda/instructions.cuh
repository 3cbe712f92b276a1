// What CUDA and csrc/core/cuda/instructions.cuh give the kernels, for the emulator: found before that file where this
// directory comes first. __shared__ is missing on purpose: GMOE_SHARED_ARRAY wraps it, and a raw use must not compile.
//
// Whatever a test may leave out, or an error may name, takes the place of the call as its last argument.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "core/cuda/launch.h"
#include "core/types.h"
#include "tests/emulator/executor.h"
#include "tests/emulator/matrix.h"

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

#define threadIdx (::gmoe::emulator::g_indices.thread)
#define blockIdx (::gmoe::emulator::g_indices.block)
#define blockDim (::gmoe::emulator::g_indices.block_size)
#define gridDim (::gmoe::emulator::g_indices.grid_size)

#define GMOE_SHARED_ARRAY(T, name, n)                                                                           \
  static const char gmoe_key_##name = 0;                                                                        \
  T* const name = static_cast<T*>(::gmoe::emulator::shared_array(&gmoe_key_##name, sizeof(T) * (n), alignof(T), \
                                                                 ::gmoe::emulator::Place::current()))

using GmoePlace = ::gmoe::emulator::Place;

// ---- CUDA's own

inline void __syncthreads(GmoePlace place = GmoePlace::current()) { ::gmoe::emulator::sync_threads(false, place); }
inline void __syncwarp(unsigned mask = 0xffffffffu, GmoePlace place = GmoePlace::current()) {
  using namespace ::gmoe::emulator;
  exchange(Exchange::sync, mask, 0, 0, place);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, GmoePlace place = GmoePlace::current()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  using namespace ::gmoe::emulator;
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(Exchange::shuffle, mask, bits, source & 31, place);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, GmoePlace place = GmoePlace::current()) {
  return __shfl_sync(mask, value, ::gmoe::emulator::lane() ^ lanes, place);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, int lanes, GmoePlace place = GmoePlace::current()) {
  const int lane = ::gmoe::emulator::lane();
  return __shfl_sync(mask, value, lane < lanes ? lane : lane - lanes, place);
}

inline unsigned __ballot_sync(unsigned mask, bool predicate, GmoePlace place = GmoePlace::current()) {
  using namespace ::gmoe::emulator;
  return static_cast<unsigned>(exchange(Exchange::ballot, mask, predicate ? 1 : 0, 0, place));
}
inline unsigned __match_any_sync(unsigned mask, std::uint64_t value, GmoePlace place = GmoePlace::current()) {
  using namespace ::gmoe::emulator;
  return static_cast<unsigned>(exchange(Exchange::match, mask, value, 0, place));
}
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __ffs(int bits) { return bits == 0 ? 0 : std::countr_zero(static_cast<unsigned>(bits)) + 1; }

// Integers only: a float atomic is not deterministic.
inline int atomicAdd(int* at, int value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
inline unsigned atomicOr(unsigned* at, unsigned value) { return __atomic_fetch_or(at, value, __ATOMIC_RELAXED); }
inline unsigned atomicAnd(unsigned* at, unsigned value) { return __atomic_fetch_and(at, value, __ATOMIC_RELAXED); }
// A compare-and-swap that ThreadSanitizer knows as an atomic, without order, as on the device.
template <typename T, typename Change>
T gmoe_change_atomically(T* at, const Change& change) {
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(at, &old, change(old), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) continue;
  return old;
}
inline unsigned long long atomicMin(unsigned long long* at, unsigned long long value) {
  return gmoe_change_atomically(at, [=](auto old) { return old < value ? old : value; });
}
inline unsigned long long atomicMax(unsigned long long* at, unsigned long long value) {
  return gmoe_change_atomically(at, [=](auto old) { return old > value ? old : value; });
}

// ---- those of csrc/core/cuda/instructions.cuh

namespace gmoe::core::cuda {

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), std::int64_t blocks, int threads, std::size_t shared_bytes,
            Stream, const Arguments&... arguments) {
  emulator::launch({name, blocks, threads, shared_bytes}, kernel, arguments...);
}

inline void fill_zero(void* at, std::size_t bytes, Stream) { std::memset(at, 0, bytes); }

template <typename T>
Accumulator<T> widened(T v) {
  return widen(v);
}
template <typename T>
T narrowed(Accumulator<T> v) {
  return narrow<T>(v);
}
inline unsigned rounded_to_tf32(float value) { return emulator::rounded_to_tf32(value); }

template <typename Whole, typename T>
Whole load_whole(const T* at, GmoePlace place = GmoePlace::current()) {
  emulator::check_alignment(at, alignof(Whole), place);
  Whole value;
  std::memcpy(&value, at, sizeof value);
  return value;
}
template <typename Whole, typename T>
void store_whole(T* at, const Whole& value, GmoePlace place = GmoePlace::current()) {
  emulator::check_alignment(at, alignof(Whole), place);
  std::memcpy(at, &value, sizeof value);
}

inline unsigned char* dynamic_shared(std::int64_t begin, std::int64_t end, GmoePlace place = GmoePlace::current()) {
  return emulator::dynamic_shared(begin, end, place);
}

inline void copy_async16(void* shared, const void* global, bool valid = true, GmoePlace place = GmoePlace::current()) {
  emulator::copy_async16(shared, global, valid, place);
}
inline void copy_async_commit() { emulator::commit_copies(); }
template <int N>
void copy_async_wait(GmoePlace place = GmoePlace::current()) {
  emulator::wait_for_copies(N, place);
}

using MultiplyFragments = void (*)(emulator::MatrixFragments&, const GmoePlace&);
inline void multiply_by(MultiplyFragments multiply, float& c0, float& c1, float& c2, float& c3, unsigned a0,
                        unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1, const GmoePlace& place) {
  emulator::MatrixFragments own{{a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}};
  multiply(own, place);
  c0 = own.c[0];
  c1 = own.c[1];
  c2 = own.c[2];
  c3 = own.c[3];
}
inline void multiply_m16n8k16(float& c0, float& c1, float& c2, float& c3, unsigned a0, unsigned a1, unsigned a2,
                              unsigned a3, unsigned b0, unsigned b1, GmoePlace place = GmoePlace::current()) {
  multiply_by(emulator::multiply_m16n8k16, c0, c1, c2, c3, a0, a1, a2, a3, b0, b1, place);
}
inline void multiply_m16n8k8(float& c0, float& c1, float& c2, float& c3, unsigned a0, unsigned a1, unsigned a2,
                             unsigned a3, unsigned b0, unsigned b1, GmoePlace place = GmoePlace::current()) {
  multiply_by(emulator::multiply_m16n8k8, c0, c1, c2, c3, a0, a1, a2, a3, b0, b1, place);
}

inline void load_transposed_8x8(const bfloat16* row, unsigned (&fragment)[4], GmoePlace place = GmoePlace::current()) {
  emulator::check_alignment(row, 16, place);
  emulator::MatrixRow own{};
  std::memcpy(own.row, row, sizeof own.row);
  emulator::transpose_8x8(own, place);
  std::memcpy(fragment, own.fragment, sizeof fragment);
}

}  // namespace gmoe::core::cuda
