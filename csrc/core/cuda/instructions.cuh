// What nvcc alone compiles: qualifiers, launches and assembly behind functions. The kernels use these through
// primitives.cuh and nothing else of CUDA's beside its threads, shuffles and atomics; so tests can compile them as C++
// against another file of this name, which lies in csrc/tests/emulator and comes first on their include path.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "core/cuda/launch.h"
#include "core/types.h"

#define GMOE_SHARED_ARRAY(T, name, n) __shared__ T name[n]

namespace gmoe::core::cuda {

// ---- launch

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error));
  }
}

// For tests on a device, which look at the results at once.
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

// ---- values: widen and narrow of core/types.h, which are host functions

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

// The bits of the nearest float with 10 bits of fraction, ties away from zero.
inline __device__ unsigned rounded_to_tf32(float value) {
  unsigned rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
  return rounded;
}

// ---- memory

// A value of another type of that size, to which its place must be aligned.
template <typename Whole, typename T>
__device__ __forceinline__ Whole load_whole(const T* at) {
  return *reinterpret_cast<const Whole*>(at);
}
template <typename Whole, typename T>
__device__ __forceinline__ void store_whole(T* at, const Whole& value) {
  *reinterpret_cast<Whole*>(at) = value;
}

// Bytes [begin, end) of the dynamic shared memory; the next array begins at the next multiple of 16.
inline __device__ unsigned char* dynamic_shared(std::int64_t begin, std::int64_t /*end*/) {
  extern __shared__ __align__(16) unsigned char gmoe_dynamic_shared[];
  return gmoe_dynamic_shared + begin;
}

// Copies 16 bytes to shared memory in the background, zeros where not valid (global is not read then, but must be
// aligned). Copies until commit are a group; wait<N> waits for all groups of this thread but its newest N.
inline __device__ void copy_async16(void* shared, const void* global, bool valid = true) {
  const auto at = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(global), "r"(valid ? 16 : 0) : "memory");
}
inline __device__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- matrices

// c += a b, by a whole warp: a [16, 16] row by row, b [16, 8] column by column, both in pairs of bfloat16; c [16, 8].
// With g = lane / 4 and t = 2 (lane % 4): a0 = a[g][t..], a1 = a[g + 8][t..], a2 = a[g][t + 8..], a3 = a[g + 8][t
// + 8..], b0 = b[t..][g], b1 = b[t + 8..][g], c0 and c1 = c[g][t..], c2 and c3 = c[g + 8][t..].
__device__ __forceinline__ void multiply_m16n8k16(float& c0, float& c1, float& c2, float& c3, unsigned a0, unsigned a1,
                                                  unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// c += a b, by a whole warp: a [16, 8] row by row, b [8, 8] column by column, of floats with 10 bits of fraction; c
// [16, 8]. With g = lane / 4 and t = lane % 4: a0 = a[g][t], a1 = a[g + 8][t], a2 = a[g][t + 4], a3 = a[g + 8][t + 4],
// b0 = b[t][g], b1 = b[t + 4][g], c as of multiply_m16n8k16.
__device__ __forceinline__ void multiply_m16n8k8(float& c0, float& c1, float& c2, float& c3, unsigned a0, unsigned a1,
                                                 unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices of bfloat16 from shared memory, transposed, by a whole warp: lane l says where row l % 8 of
// matrix l / 8 is, 16-byte aligned, and gets of each matrix rows 2 (l % 4) and 2 (l % 4) + 1 of column l / 4 as a pair.
__device__ __forceinline__ void load_transposed_8x8(const bfloat16* row, unsigned (&fragment)[4]) {
  const auto at = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(at)
               : "memory");
}

}  // namespace gmoe::core::cuda
