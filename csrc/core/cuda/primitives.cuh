// The vocabulary of the CUDA kernels. The same sources are compiled by nvcc for the device and as C++ for the host
// executor (host/executor.h), on which the tests run them; what differs between the two stands in this file.
//
// Rules that the executor holds kernels to: blocks have whole warps; no thread leaves before a barrier; lanes are not
// in lockstep, so every exchange through shared memory has its __syncwarp; shared memory through GMOE_SHARED_ARRAY and
// DynamicShared only; no assembly, no static locals, no waiting between blocks.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "core/cuda/launch.h"
#include "core/types.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>

#define GMOE_SHARED_ARRAY(T, name, n) __shared__ T name[n]
#else
#include "core/cuda/host/cuda_names.h"

#define GMOE_SHARED_ARRAY(T, name, n)                                                                       \
  static const char gmoe_key_##name = 0;                                                                    \
  T* const name = static_cast<T*>(::gmoe::core::cuda::host::shared_array(&gmoe_key_##name, sizeof(T) * (n), \
                                                                         alignof(T), std::source_location::current()))
#endif

namespace gmoe::core::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// ---- launch

#ifdef __CUDACC__
inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error));
  }
}

// Of the tests on a device, which look at the results at once.
inline void wait_if_told([[maybe_unused]] const char* name, [[maybe_unused]] Stream stream) {
#ifdef GMOE_WAIT_FOR_LAUNCHES
  check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), name);
#endif
}

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), std::int64_t blocks, int threads, std::size_t shared_bytes,
            Stream stream, const Arguments&... arguments) {
  constexpr std::int64_t kMaxBlocks = 0x7fffffff;
  if (blocks > kMaxBlocks) throw std::length_error(std::string("CUDA: ") + name + ": too many blocks for one launch");
  constexpr std::size_t kWithoutAsking = 48 << 10;
  if (shared_bytes > kWithoutAsking) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
          name);
  }
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), shared_bytes,
           static_cast<cudaStream_t>(stream)>>>(arguments...);
  check(cudaGetLastError(), name);
  wait_if_told(name, stream);
}

inline void fill_zero(void* at, std::size_t bytes, Stream stream) {
  check(cudaMemsetAsync(at, 0, bytes, static_cast<cudaStream_t>(stream)), "memset");
  wait_if_told("memset", stream);
}
#else
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), std::int64_t blocks, int threads, std::size_t shared_bytes,
            Stream, const Arguments&... arguments) {
  host::launch({name, blocks, threads, shared_bytes}, kernel, arguments...);
}

inline void fill_zero(void* at, std::size_t bytes, Stream) { std::memset(at, 0, bytes); }
#endif

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

// ---- values

// widen and narrow of core/types.h, which are host functions.
#ifdef __CUDACC__
inline __device__ float widened(bfloat16 v) { return __uint_as_float(static_cast<unsigned>(v.bits) << 16); }
inline __device__ float widened(float v) { return v; }
inline __device__ double widened(double v) { return v; }

template <typename T>
__device__ __forceinline__ T narrowed(Accumulator<T> v) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    bfloat16 rounded;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(v));
    return rounded;
  } else {
    return v;
  }
}
#else
template <typename T>
Accumulator<T> widened(T v) {
  return widen(v);
}
template <typename T>
T narrowed(Accumulator<T> v) {
  return narrow<T>(v);
}
#endif

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
#ifdef __CUDACC__
  return *reinterpret_cast<const Pack<T, V>*>(at);
#else
  host::check_alignment(at, alignof(Pack<T, V>), std::source_location::current());
  Pack<T, V> pack;
  std::memcpy(&pack, at, sizeof pack);
  return pack;
#endif
}

template <int V, typename T>
__device__ __forceinline__ void store(T* at, const Pack<T, V>& pack) {
#ifdef __CUDACC__
  *reinterpret_cast<Pack<T, V>*>(at) = pack;
#else
  host::check_alignment(at, alignof(Pack<T, V>), std::source_location::current());
  std::memcpy(at, &pack, sizeof pack);
#endif
}

// Whether rows of `dim` values that begin at all of `rows` can be read V at a time.
template <int V, typename... T>
bool fits_packs(std::int64_t dim, const T*... rows) {
  return dim % V == 0 && ((reinterpret_cast<std::uintptr_t>(rows) % (sizeof(T) * V) == 0) && ...);
}

// Copies 16 bytes to shared memory in the background, zeros where not valid (global is not read then, but must be
// aligned). Copies until commit are a group; wait<N> waits for all groups of this thread but its newest N.
#ifdef __CUDACC__
inline __device__ void copy_async16(void* shared, const void* global, bool valid = true) {
  const auto at = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(global), "r"(valid ? 16 : 0) : "memory");
}
inline __device__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
#else
inline void copy_async16(void* shared, const void* global, bool valid = true, GmoePlace place = GmoePlace::current()) {
  host::copy_async16(shared, global, valid, place);
}
inline void copy_async_commit() { host::commit_copies(); }
template <int N>
void copy_async_wait(GmoePlace place = GmoePlace::current()) {
  host::wait_for_copies(N, place);
}
#endif

// ---- matrices

// c += a b, by a whole warp: a [16, 16] row by row, b [16, 8] column by column, both in pairs of bfloat16; c [16, 8].
// With g = lane / 4 and t = 2 (lane % 4): a0 = a[g][t..], a1 = a[g + 8][t..], a2 = a[g][t + 8..], a3 = a[g + 8][t
// + 8..], b0 = b[t..][g], b1 = b[t + 8..][g], c0 and c1 = c[g][t..], c2 and c3 = c[g + 8][t..].
#ifdef __CUDACC__
__device__ __forceinline__ void multiply_m16n8k16(float& c0, float& c1, float& c2, float& c3, unsigned a0, unsigned a1,
                                                  unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#else
inline void multiply_m16n8k16(float& c0, float& c1, float& c2, float& c3, unsigned a0, unsigned a1, unsigned a2,
                              unsigned a3, unsigned b0, unsigned b1, GmoePlace place = GmoePlace::current()) {
  host::MatrixFragments own{{a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}};
  host::multiply_m16n8k16(own, place);
  c0 = own.c[0];
  c1 = own.c[1];
  c2 = own.c[2];
  c3 = own.c[3];
}
#endif

// The bits of the nearest float with 10 bits of fraction, ties away from zero.
inline __device__ unsigned rounded_to_tf32(float value) {
#ifdef __CUDACC__
  unsigned rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
  return rounded;
#else
  return host::rounded_to_tf32(value);
#endif
}

// c += a b, by a whole warp: a [16, 8] row by row, b [8, 8] column by column, of floats with 10 bits of fraction; c
// [16, 8]. With g = lane / 4 and t = lane % 4: a0 = a[g][t], a1 = a[g + 8][t], a2 = a[g][t + 4], a3 = a[g + 8][t + 4],
// b0 = b[t][g], b1 = b[t + 4][g], c as of multiply_m16n8k16.
#ifdef __CUDACC__
__device__ __forceinline__ void multiply_m16n8k8(float& c0, float& c1, float& c2, float& c3, unsigned a0, unsigned a1,
                                                 unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#else
inline void multiply_m16n8k8(float& c0, float& c1, float& c2, float& c3, unsigned a0, unsigned a1, unsigned a2,
                             unsigned a3, unsigned b0, unsigned b1, GmoePlace place = GmoePlace::current()) {
  host::MatrixFragments own{{a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}};
  host::multiply_m16n8k8(own, place);
  c0 = own.c[0];
  c1 = own.c[1];
  c2 = own.c[2];
  c3 = own.c[3];
}
#endif

// Four 8 x 8 matrices of bfloat16 from shared memory, transposed, by a whole warp: lane l says where row l % 8 of
// matrix l / 8 is, 16-byte aligned, and gets of each matrix rows 2 (l % 4) and 2 (l % 4) + 1 of column l / 4 as a pair.
#ifdef __CUDACC__
__device__ __forceinline__ void load_transposed_8x8(const bfloat16* row, unsigned (&fragment)[4]) {
  const auto at = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(at)
               : "memory");
}
#else
inline void load_transposed_8x8(const bfloat16* row, unsigned (&fragment)[4], GmoePlace place = GmoePlace::current()) {
  host::check_alignment(row, 16, place);
  host::MatrixRow own{};
  std::memcpy(own.row, row, sizeof own.row);
  host::transpose_8x8(own, place);
  std::memcpy(fragment, own.fragment, sizeof fragment);
}
#endif

// Carves arrays out of the dynamic shared memory, each 16-byte aligned; shared_bytes counts them for the launch.
class DynamicShared {
 public:
  template <typename T>
  __device__ T* take(std::int64_t n) {
    unsigned char* at = base() + used_;
    const std::int64_t end = used_ + n * static_cast<std::int64_t>(sizeof(T));
    used_ = divide_up(end, 16) * 16;
#ifndef __CUDACC__
    host::end_of_array(base() + end, base() + used_);
#endif
    return reinterpret_cast<T*>(at);
  }

 private:
  static __device__ unsigned char* base() {
#ifdef __CUDACC__
    extern __shared__ __align__(16) unsigned char gmoe_dynamic_shared[];
    return gmoe_dynamic_shared;
#else
    return host::dynamic_shared(std::source_location::current());
#endif
  }
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
