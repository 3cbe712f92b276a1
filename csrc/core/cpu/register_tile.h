// A register-blocked matrix product: C[rows, columns] = A[rows, depth] B[depth, columns] for a tile of C that stays in
// registers. B comes in panels of kTileColumns (two registers wide); an element of A is broadcast against both.
// With 14 x 2 accumulators on AVX-512 a step of the depth loop does 28 multiply-adds for 16 loads, so the multiply-add
// units are the limit. Every element is bias, then one multiply-add per depth in ascending order, whatever the number
// of rows in its tile: the result does not depend on how rows are cut into tiles.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "core/types.h"

#ifndef GMOE_ISA
#error "compile with -DGMOE_ISA=baseline|avx2|avx512"
#endif

namespace gmoe::core::GMOE_ISA {

#if defined(__AVX512F__)
inline constexpr int kRegisterBytes = 64;
inline constexpr int kTileRows = 14;  // 28 accumulators + 2 of B + 1 of A of 32 registers
#elif defined(__AVX2__)
inline constexpr int kRegisterBytes = 32;
inline constexpr int kTileRows = 6;  // 12 + 2 + 1 of 16
#elif defined(__aarch64__)
inline constexpr int kRegisterBytes = 16;
inline constexpr int kTileRows = 12;  // 24 + 2 + 1 of 32
#else
inline constexpr int kRegisterBytes = 16;
inline constexpr int kTileRows = 6;
#endif

typedef float FloatRegister __attribute__((vector_size(kRegisterBytes), aligned(4), may_alias));
typedef double DoubleRegister __attribute__((vector_size(kRegisterBytes), aligned(8), may_alias));

template <typename A>
struct RegisterOf;
template <>
struct RegisterOf<float> {
  using type = FloatRegister;
};
template <>
struct RegisterOf<double> {
  using type = DoubleRegister;
};
// A is the accumulator type: float or double. Registers may be read and written at any address of an A.
template <typename A>
using Register = typename RegisterOf<A>::type;
template <typename A>
inline constexpr int kRegisterLanes = kRegisterBytes / static_cast<int>(sizeof(A));
template <typename A>
inline constexpr int kTileColumns = 2 * kRegisterLanes<A>;

template <typename A>
inline Register<A>& at(A* p) {
  return *reinterpret_cast<Register<A>*>(p);
}
template <typename A>
inline const Register<A>& at(const A* p) {
  return *reinterpret_cast<const Register<A>*>(p);
}

// c[m] += sum_d a[m * RowStride + d * DepthStride] * b[d * kTileColumns ...], m < Rows. The strides are constants so
// that no register is spent on row pointers.
template <int Rows, int RowStride, int DepthStride, typename A>
[[gnu::always_inline]] inline void multiply_tile(const A* __restrict a, const A* __restrict b, std::int64_t depth,
                                                 Register<A> (&c)[Rows][2]) {
  for (std::int64_t d = 0; d < depth; ++d) {
    const Register<A> b0 = at(b), b1 = at(b + kRegisterLanes<A>);
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
      const A value = a[m * RowStride];
      c[m][0] += value * b0;
      c[m][1] += value * b1;
    }
    a += DepthStride;
    b += kTileColumns<A>;
  }
}

inline constexpr std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Uninitialised memory at a cache line's start.
template <typename A>
class Workspace {
 public:
  explicit Workspace(std::int64_t size)
      : memory_(
            static_cast<A*>(std::aligned_alloc(64, static_cast<std::size_t>(round_up((size + 1) * sizeof(A), 64))))) {
    if (!memory_) throw std::bad_alloc();
  }
  A* data() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(A* p) const { std::free(p); }
  };
  std::unique_ptr<A, Free> memory_;
};

}  // namespace gmoe::core::GMOE_ISA
