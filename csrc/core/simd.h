// Vectors of one register (64 bytes on AVX-512, 32 on AVX2, 16 on SSE and NEON) through the compiler's vector
// extension, and what kernels do with them: load, store, sum, transpose. Wider vectors would live in memory: GCC
// does not split them over registers. Everything is in the instruction set's namespace, so that the linker cannot pick
// an inline function compiled for a newer processor in place of one for an older. Include only from files under
// core/cpu.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/types.h"

#ifndef GMOE_ISA
#error "compile with -DGMOE_ISA=baseline|avx2|avx512"
#endif

#if defined(__AVX512F__)
#define GMOE_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define GMOE_VECTOR_BYTES 32
#else
#define GMOE_VECTOR_BYTES 16
#endif
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace gmoe::core::GMOE_ISA {

// ---- types

typedef float FloatVector __attribute__((vector_size(GMOE_VECTOR_BYTES)));
typedef double DoubleVector __attribute__((vector_size(GMOE_VECTOR_BYTES)));

typedef std::uint32_t WordVector __attribute__((vector_size(GMOE_VECTOR_BYTES)));
#if !defined(__AVX512F__)
typedef std::uint16_t HalfVector __attribute__((vector_size(GMOE_VECTOR_BYTES / 2)));
#endif

// A is the accumulator type: float or double.
template <typename A>
using Vector = std::conditional_t<sizeof(A) == 4, FloatVector, DoubleVector>;
template <typename A>
inline constexpr std::int64_t kLanes = GMOE_VECTOR_BYTES / sizeof(A);
template <typename A>
using Lane = std::conditional_t<sizeof(A) == 4, std::int32_t, std::int64_t>;
// Integers, or masks of all ones or zeros, one per lane of Vector<A>.
template <typename A>
using Lanes = decltype(Vector<A>{} < Vector<A>{});

// ---- loads and stores, at any address

inline FloatVector load(const float* p) {
  FloatVector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline DoubleVector load(const double* p) {
  DoubleVector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
// The intrinsics are one instruction; GCC's generic conversion takes five. Their zeroing forms avoid false warnings.
inline FloatVector load(const bfloat16* p) {
#if defined(__AVX512F__)
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const WordVector word = std::bit_cast<WordVector>(_mm512_maskz_cvtepu16_epi32(0xffff, half));
#elif defined(__AVX2__)
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const WordVector word = std::bit_cast<WordVector>(_mm256_cvtepu16_epi32(half));
#else
  HalfVector half;
  std::memcpy(&half, p, sizeof half);
  const WordVector word = __builtin_convertvector(half, WordVector);
#endif
  return std::bit_cast<FloatVector>(word << 16);
}

inline FloatVector load(const std::int8_t* p) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, bytes));
#elif defined(__AVX2__)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
#else
  typedef std::int8_t ByteVector __attribute__((vector_size(GMOE_VECTOR_BYTES / 4)));
  ByteVector bytes;
  std::memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(bytes, FloatVector);
#endif
}

inline void store(float* p, FloatVector v) { std::memcpy(p, &v, sizeof v); }
inline void store(double* p, DoubleVector v) { std::memcpy(p, &v, sizeof v); }
// to_bfloat16 on all lanes, in the upper half of each: round to nearest even, NaN stays NaN.
inline WordVector round_to_bfloat16(FloatVector v) {
  const WordVector bits = std::bit_cast<WordVector>(v);
  const WordVector rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return v != v ? bits | 0x400000u : rounded;
}
inline void store(bfloat16* p, FloatVector v) {
  const WordVector word = round_to_bfloat16(v) >> 16;
#if defined(__AVX512F__)
  const __m256i half = _mm512_maskz_cvtepi32_epi16(0xffff, std::bit_cast<__m512i>(word));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half);
#else
  const HalfVector half = __builtin_convertvector(word, HalfVector);
  std::memcpy(p, &half, sizeof half);
#endif
}

// The first n lanes from p, zeros behind; nothing past p[n - 1] is touched.
template <typename T>
inline Vector<Accumulator<T>> load_first(const T* p, std::int64_t n) {
  T lane[kLanes<Accumulator<T>>] = {};
  std::memcpy(lane, p, static_cast<std::size_t>(n) * sizeof(T));
  return load(lane);
}
template <typename T>
inline void store_first(T* p, Vector<Accumulator<T>> v, std::int64_t n) {
  T lane[kLanes<Accumulator<T>>];
  store(lane, v);
  std::memcpy(p, lane, static_cast<std::size_t>(n) * sizeof(T));
}

#if defined(__AVX512F__)
template <>
inline FloatVector load_first<float>(const float* p, std::int64_t n) {
  return std::bit_cast<FloatVector>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p));
}
template <>
inline DoubleVector load_first<double>(const double* p, std::int64_t n) {
  return std::bit_cast<DoubleVector>(_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p));
}
template <>
inline FloatVector load_first<bfloat16>(const bfloat16* p, std::int64_t n) {
  const __m256i half = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p);
  const auto word = std::bit_cast<WordVector>(_mm512_maskz_cvtepu16_epi32(0xffff, half));
  return std::bit_cast<FloatVector>(word << 16);
}
template <>
inline void store_first<float>(float* p, FloatVector v, std::int64_t n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), std::bit_cast<__m512>(v));
}
template <>
inline void store_first<double>(double* p, DoubleVector v, std::int64_t n) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), std::bit_cast<__m512d>(v));
}
#endif

// to[0, n) = from[0, n), widened to accumulators or narrowed to the type of an array.
template <typename T>
inline void widen_row(const T* from, std::int64_t n, Accumulator<T>* to) {
  constexpr std::int64_t kStep = kLanes<Accumulator<T>>;
  std::int64_t i = 0;
  for (; i + kStep <= n; i += kStep) store(to + i, load(from + i));
  for (; i < n; ++i) to[i] = widen(from[i]);
}
template <typename T>
inline void narrow_row(const Accumulator<T>* from, std::int64_t n, T* to) {
  constexpr std::int64_t kStep = kLanes<Accumulator<T>>;
  std::int64_t i = 0;
  for (; i + kStep <= n; i += kStep) store(to + i, load(from + i));
  for (; i < n; ++i) to[i] = narrow<T>(from[i]);
}

template <typename T>
inline void prefetch_row(const T* row, std::int64_t count) {
  constexpr std::int64_t kLineBytes = 64;
  const char* byte = reinterpret_cast<const char*>(row);
  for (std::int64_t b = 0; b < count * static_cast<std::int64_t>(sizeof(T)); b += kLineBytes) {
    __builtin_prefetch(byte + b);
  }
}

// Packs the values of from[n] that are not zero (NaN is not zero) or whose `kept` is not zero; `kept` may be null.
// place[j] is the position of value[j]. Returns their number. Up to a vector of values behind them is overwritten.
template <typename T, typename Place>
inline std::int64_t compress(const T* from, std::int64_t n, const Accumulator<T>* kept, Accumulator<T>* value,
                             Place* place) {
  std::int64_t count = 0, i = 0;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<Accumulator<T>, float>) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (; i + kLanes<float> <= n; i += kLanes<float>) {
      const auto v = std::bit_cast<__m512>(load(from + i));
      __mmask16 keep = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
      if (kept != nullptr) keep |= _mm512_cmp_ps_mask(_mm512_loadu_ps(kept + i), _mm512_setzero_ps(), _CMP_NEQ_UQ);
      const __m512i at = _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int>(i)));
      const __m512i packed = _mm512_maskz_compress_epi32(keep, at);
      _mm512_storeu_ps(value + count, _mm512_maskz_compress_ps(keep, v));
      if constexpr (sizeof(Place) == 4) {
        _mm512_storeu_si512(place + count, packed);
      } else {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(place + count), _mm512_maskz_cvtepi32_epi16(0xffff, packed));
      }
      count += __builtin_popcount(_cvtmask16_u32(keep));  // GCC 12 may read a spilled mask as 32 bits
    }
  }
#endif
  for (; i < n; ++i) {
    value[count] = widen(from[i]);
    place[count] = static_cast<Place>(i);
    count += widen(from[i]) != 0 || (kept != nullptr && kept[i] != 0);
  }
  return count;
}

// ---- sums over lanes and products

// A fixed tree: halves are added, so the order does not depend on the instruction set.
template <typename A>
inline A horizontal_sum(Vector<A> v) {
  A lane[kLanes<A>];
  std::memcpy(lane, &v, sizeof v);
  for (std::int64_t width = kLanes<A> / 2; width > 0; width /= 2) {
    for (std::int64_t i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

// out[b] = x . rows[b] for B rows: independent sums, which hide the latency of the multiply-add.
template <int B, typename T, typename U, typename A>
inline void dot(const T* x, const U* const* rows, std::int64_t dim, A* out) {
  Vector<A> sum[B] = {};
  std::int64_t d = 0;
  for (; d + kLanes<A> <= dim; d += kLanes<A>) {
    const Vector<A> value = load(x + d);
    for (int b = 0; b < B; ++b) sum[b] += value * load(rows[b] + d);
  }
  for (int b = 0; b < B; ++b) out[b] = horizontal_sum<A>(sum[b]);
  for (; d < dim; ++d) {
    for (int b = 0; b < B; ++b) out[b] += widen(x[d]) * widen(rows[b][d]);
  }
}
template <typename T, typename A = Accumulator<T>>
inline A squared_norm(const T* x, std::int64_t dim) {
  Vector<A> sum = {};
  std::int64_t d = 0;
  for (; d + kLanes<A> <= dim; d += kLanes<A>) {
    const Vector<A> value = load(x + d);
    sum += value * value;
  }
  A total = horizontal_sum<A>(sum);
  for (; d < dim; ++d) total += widen(x[d]) * widen(x[d]);
  return total;
}

// NaN stays NaN, as in torch.relu and its gradient: neither comparison holds for it.
template <typename V>
inline V relu(V v) {
  return v < V{} ? V{} : v;
}
template <typename V>
inline V relu_grad(V input, V grad) {
  return input <= V{} ? V{} : grad;
}

// ---- lanes of several vectors

// Lane i of the result is lane lane_of(i) of a and b together; the lanes of b follow those of a.
template <typename A, typename LaneOf, int... I>
[[gnu::always_inline]] inline Vector<A> shuffle(Vector<A> a, Vector<A> b, LaneOf, std::integer_sequence<int, I...>) {
  constexpr LaneOf lane_of{};
#if defined(__clang__)
  return __builtin_shufflevector(a, b, lane_of(I)...);
#else
  return __builtin_shuffle(a, b, Lanes<A>{lane_of(I)...});
#endif
}
template <typename A, typename LaneOf>
[[gnu::always_inline]] inline Vector<A> shuffle(Vector<A> a, Vector<A> b, LaneOf lane_of) {
  return shuffle<A>(a, b, lane_of, std::make_integer_sequence<int, kLanes<A>>{});
}

// Lane j of the result is the sum of the lanes of sum[j], for as many sums as there are lanes: log2(lanes) rounds in
// which neighbouring groups of Step lanes of a, then of b, are added.
template <typename A, int Step = kLanes<A> / 2>
[[gnu::always_inline]] inline Vector<A> sum_lanes(const Vector<A>* sum) {
  Vector<A> a = sum[0], b = sum[1];
  if constexpr (Step > 1) a = sum_lanes<A, Step / 2>(sum), b = sum_lanes<A, Step / 2>(sum + Step);
  // Group g of the result comes from group g (even: of a; odd: of b, one back), added to that group's right neighbour.
  constexpr auto left = [](int lane) { return lane / Step % 2 == 0 ? lane : kLanes<A> + lane - Step; };
  constexpr auto right = [](int lane) { return (lane / Step % 2 == 0 ? lane : kLanes<A> + lane - Step) + Step; };
  return shuffle<A>(a, b, left) + shuffle<A>(a, b, right);
}

// Transposes a square of kLanes vectors in place.
template <typename A, int Step = kLanes<A> / 2>
[[gnu::always_inline]] inline void transpose(Vector<A>* r) {
  // Blocks of Step lanes are exchanged: the upper vector gets the even blocks of both, the lower one the odd blocks.
  constexpr auto even = [](int lane) { return lane & Step ? kLanes<A> + lane - Step : lane; };
  constexpr auto odd = [](int lane) { return lane & Step ? kLanes<A> + lane : lane + Step; };
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<A>; ++i) {
    if ((i & Step) != 0) continue;
    const Vector<A> upper = r[i], lower = r[i + Step];
    r[i] = shuffle<A>(upper, lower, even);
    r[i + Step] = shuffle<A>(upper, lower, odd);
  }
  if constexpr (Step > 1) transpose<A, Step / 2>(r);
}

}  // namespace gmoe::core::GMOE_ISA
