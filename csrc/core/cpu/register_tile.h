// A register-blocked matrix product: C[rows, columns] = A[rows, depth] B[depth, columns] for a tile of C that stays in
// registers. B comes in panels of kTileColumns (two registers wide); an element of A is broadcast against both.
// With 14 x 2 accumulators on AVX-512 a step of the depth loop does 28 multiply-adds for 16 loads, so the multiply-add
// units are the limit. Every element is bias, then one multiply-add per depth in ascending order, whatever the number
// of rows in its tile: the result does not depend on how rows are cut into tiles.
#pragma once

#include <bit>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#include "core/types.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

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

inline Register<float> load_register(const float* p) { return at(p); }
inline Register<double> load_register(const double* p) { return at(p); }
inline Register<float> load_register(const bfloat16* p) {
  typedef std::uint32_t Word __attribute__((vector_size(kRegisterBytes)));
#if defined(__AVX512F__)  // one instruction, where GCC's conversion takes five; this form avoids a false warning
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const Word word = std::bit_cast<Word>(_mm512_maskz_cvtepu16_epi32(0xffff, half));
#elif defined(__AVX2__)
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const Word word = std::bit_cast<Word>(_mm256_cvtepu16_epi32(half));
#else
  typedef std::uint16_t Half __attribute__((vector_size(kRegisterBytes / 2), aligned(2), may_alias));
  const Word word = __builtin_convertvector(*reinterpret_cast<const Half*>(p), Word);
#endif
  return std::bit_cast<FloatRegister>(word << 16);
}

// to[0, n) = from[0, n), widened.
template <typename T, typename A>
inline void widen_row(const T* from, std::int64_t n, A* to) {
  std::int64_t i = 0;
  for (; i + kRegisterLanes<A> <= n; i += kRegisterLanes<A>) at(to + i) = load_register(from + i);
  for (; i < n; ++i) to[i] = widen(from[i]);
}

// Blocks of Step lanes change places: a gets its own even blocks and b's, b gets the odd ones.
template <int Step, typename A, int... Lane>
[[gnu::always_inline]] inline void exchange_blocks(Register<A>& a, Register<A>& b,
                                                   std::integer_sequence<int, Lane...>) {
  constexpr int kLanes = kRegisterLanes<A>;
  const Register<A> x = a, y = b;
#if defined(__clang__)
  a = __builtin_shufflevector(x, y, (Lane & Step ? kLanes + Lane - Step : Lane)...);
  b = __builtin_shufflevector(x, y, (Lane & Step ? kLanes + Lane : Lane + Step)...);
#else
  typedef std::conditional_t<sizeof(A) == 4, std::int32_t, std::int64_t> Index
      __attribute__((vector_size(kRegisterBytes)));
  a = __builtin_shuffle(x, y, Index{(Lane & Step ? kLanes + Lane - Step : Lane)...});
  b = __builtin_shuffle(x, y, Index{(Lane & Step ? kLanes + Lane : Lane + Step)...});
#endif
}

// A square of kRegisterLanes registers, in place.
template <int Step, typename A>
[[gnu::always_inline]] inline void transpose(Register<A>* r) {
  constexpr int kLanes = kRegisterLanes<A>;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if ((i & Step) == 0) exchange_blocks<Step, A>(r[i], r[i + Step], std::make_integer_sequence<int, kLanes>{});
  }
  if constexpr (Step > 1) transpose<Step / 2, A>(r);
}

// c[m] += sum_d a[m * RowStride + d * DepthStride] * b[d * PanelStride ...], m < Rows. The strides are constants so
// that no register is spent on row pointers.
template <int Rows, int RowStride, int DepthStride, int PanelStride, typename A>
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
    b += PanelStride;
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
