// The vector type that kernels are written against. Included once in each instruction set's file, which
// defines CNNEXT_ISA (a namespace) and CNNEXT_VECTOR_BYTES. Built on the compilers' vector extension: but for
// loads and stores under a mask, no intrinsics.
#pragma once

#include "kernel.h"

#include <utility>

#if CNNEXT_VECTOR_BYTES == 64
#include <immintrin.h>
#endif

#define CNNEXT_INLINE static inline __attribute__((always_inline))

namespace cnnext::cpu::CNNEXT_ISA {

template <class T, int64_t Lanes>
struct VecOf {
  typedef T type __attribute__((vector_size(sizeof(T) * Lanes)));
};

// Arithmetic is done in Acc<T>: 16-bit types compute and accumulate in float.
template <class T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <class T>
using Acc = typename AccOf<T>::type;

template <class A>
constexpr int64_t kLanes = CNNEXT_VECTOR_BYTES / sizeof(A);

template <class A>
using Vec = typename VecOf<A, kLanes<A>>::type;

CNNEXT_INLINE int64_t lanes_of(DType dtype) {
  return dtype == DType::kFloat64 ? kLanes<double> : kLanes<float>;
}

using IntVec = VecOf<int32_t, kLanes<float>>::type;  // also what comparing two Vec<float> yields
using UintVec = VecOf<uint32_t, kLanes<float>>::type;
using ShortVec = VecOf<uint16_t, kLanes<float>>::type;
using WideShortVec = VecOf<uint16_t, 2 * kLanes<float>>::type;

template <class V, class T>
CNNEXT_INLINE V load_unaligned(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}
template <class V, class T>
CNNEXT_INLINE void store_unaligned(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}
template <class To, class From>
CNNEXT_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

// Elements of x and, behind them, y by their numbers.
#if __has_builtin(__builtin_shufflevector)
template <int... Lane, class V>
CNNEXT_INLINE auto shuffle(V x, V y) {
  return __builtin_shufflevector(x, y, Lane...);
}
#else  // GCC 11: as many as x has
template <int... Lane, class V>
CNNEXT_INLINE V shuffle(V x, V y) {
  using Number =
      std::conditional_t<sizeof(x[0]) == 8, int64_t, std::conditional_t<sizeof(x[0]) == 4, int32_t, int16_t>>;
  return __builtin_shuffle(x, y, typename VecOf<Number, sizeof...(Lane)>::type{Lane...});
}
#endif

template <class A>
CNNEXT_INLINE Vec<A> broadcast(A x) {
  return x - Vec<A>{};
}

// `Few` neighbours again and again, by one load.
template <int Few, class A>
CNNEXT_INLINE Vec<A> repeat(const A* p) {
  constexpr int kBytes = Few * sizeof(A);
  if constexpr (Few == 1) {
    return broadcast(*p);
  } else if constexpr (kBytes == CNNEXT_VECTOR_BYTES) {
    return load_unaligned<Vec<A>>(p);
  } else if constexpr (kBytes == 8) {
    using Bits = typename VecOf<int64_t, kLanes<double>>::type;
    return bit_cast<Vec<A>>(load_unaligned<int64_t>(p) - Bits{});
  } else {  // in assembly, as compilers go through memory
    typedef A Block __attribute__((vector_size(kBytes), aligned(sizeof(A))));
    const auto& block = *reinterpret_cast<const Block*>(p);
    Vec<A> v = {};
#if CNNEXT_VECTOR_BYTES == 64
    if constexpr (kBytes == 16) {
      asm("vbroadcastf32x4 %1, %0" : "=v"(v) : "m"(block));
    } else {
      asm("vbroadcastf64x4 %1, %0" : "=v"(v) : "m"(block));
    }
#elif CNNEXT_VECTOR_BYTES == 32
    asm("vbroadcastf128 %1, %0" : "=x"(v) : "m"(block));
#endif
    return v;
  }
}

// The lanes [Rows][columns] as [columns][Rows].
template <int Rows, class V, int... Lane>
CNNEXT_INLINE V turn_lanes(V x, std::integer_sequence<int, Lane...>) {
  constexpr int kColumns = sizeof...(Lane) / Rows;
  return shuffle<(Lane % Rows * kColumns + Lane / Rows)...>(x, x);
}
template <int Rows, class V>
CNNEXT_INLINE V turn_lanes(V x) {
  if constexpr (Rows == 1) {
    return x;
  } else {
    return turn_lanes<Rows>(x, std::make_integer_sequence<int, sizeof(V) / sizeof(x[0])>());
  }
}

// 16-bit floats as 32-bit lanes. U is a vector of uint32_t, F of float, I of int32_t, all of the same length
// (or the scalars themselves): one body serves vectors and tails.
template <class F, class U>
CNNEXT_INLINE F bfloat16_to_float(U bits) {
  return bit_cast<F>(bits << 16);
}
template <class U, class F>
CNNEXT_INLINE U round_to_bfloat16(F f) {  // to nearest even, in the upper half
  const U bits = bit_cast<U>(f);
  // NaN stays NaN: it comes from bfloat16, so its low bits are zero.
  return bits + 0x7fffu + ((bits >> 16) & 1u);
}
template <class F, class U>
CNNEXT_INLINE F float16_to_float(U bits) {
  const U magnitude = (bits & 0x7fffu) << 13;
  const U scaled = bit_cast<U>(bit_cast<F>(magnitude) * 0x1p112f);  // moves the exponent, also of subnormals
  const U special = magnitude | 0x7f800000u;                        // infinity and NaN
  return bit_cast<F>(((magnitude >= 0x0f800000u ? special : scaled) | ((bits & 0x8000u) << 16)));
}
template <class U, class F>
CNNEXT_INLINE U float_to_float16(F f) {  // to nearest even
  const U bits = bit_cast<U>(f);
  const U magnitude = bits & 0x7fffffffu;
  const U normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const U subnormal = bit_cast<U>(bit_cast<F>(magnitude) + 0.5f) - 0x3f000000u;  // the addition rounds
  const U finite = magnitude < 0x38800000u ? subnormal : normal;
  const U special =
      magnitude > 0x7f800000u ? (U)(0x7e00u | ((magnitude >> 13) & 0x3ffu)) : (U)(0x7c00u + (magnitude & 0u));
  return (magnitude >= 0x47800000u ? special : finite) | ((bits >> 16) & 0x8000u);
}

// load and store convert between the element type in memory and Acc<T>, for whole vectors and single
// elements.
CNNEXT_INLINE Vec<float> load(const float* p) { return load_unaligned<Vec<float>>(p); }
CNNEXT_INLINE Vec<double> load(const double* p) { return load_unaligned<Vec<double>>(p); }
CNNEXT_INLINE UintVec load_bits(const void* p) {
  return __builtin_convertvector(load_unaligned<ShortVec>(static_cast<const uint16_t*>(p)), UintVec);
}
CNNEXT_INLINE void store(float* p, Vec<float> v) { store_unaligned(p, v); }
CNNEXT_INLINE void store(double* p, Vec<double> v) { store_unaligned(p, v); }
CNNEXT_INLINE void store_bits(void* p, UintVec bits) {
  store_unaligned(static_cast<uint16_t*>(p), __builtin_convertvector(bits, ShortVec));
}

// By F16C, which AVX2 and AVX-512 are compiled with; in assembly, as the vector extension has no such
// conversion.
#if CNNEXT_VECTOR_BYTES >= 32
CNNEXT_INLINE Vec<float> load(const Float16* p) {
  const auto bits = load_unaligned<ShortVec>(&p->bits);
  Vec<float> v;
  asm("vcvtph2ps %1, %0" : "=v"(v) : "v"(bits));
  return v;
}
CNNEXT_INLINE void store(Float16* p, Vec<float> v) {
  ShortVec bits;
  asm("vcvtps2ph $0, %1, %0" : "=v"(bits) : "v"(v));  // to nearest even
  store_unaligned(&p->bits, bits);
}
#else
CNNEXT_INLINE Vec<float> load(const Float16* p) { return float16_to_float<Vec<float>>(load_bits(p)); }
CNNEXT_INLINE void store(Float16* p, Vec<float> v) { store_bits(p, float_to_float16<UintVec>(v)); }
#endif

// Lanes of which these are the lower and the upper halves, and their upper halves.
#if __has_builtin(__builtin_shufflevector)
// With AVX-512 each takes one permutation of words.
template <int... Lane>
CNNEXT_INLINE Vec<float> interleave(ShortVec lower, ShortVec upper, std::integer_sequence<int, Lane...>) {
  constexpr int L = kLanes<float>;
  return bit_cast<Vec<float>>(shuffle<(Lane % 2 * L + Lane / 2)...>(lower, upper));
}
CNNEXT_INLINE Vec<float> interleave(ShortVec lower, ShortVec upper) {
  return interleave(lower, upper, std::make_integer_sequence<int, 2 * kLanes<float>>());
}
template <int... Lane>
CNNEXT_INLINE ShortVec upper_halves(UintVec bits, std::integer_sequence<int, Lane...>) {
  const auto words = bit_cast<WideShortVec>(bits);
  return shuffle<(2 * Lane + 1)...>(words, words);
}
CNNEXT_INLINE ShortVec upper_halves(UintVec bits) {
  return upper_halves(bits, std::make_integer_sequence<int, kLanes<float>>());
}
#else
CNNEXT_INLINE Vec<float> interleave(ShortVec lower, ShortVec upper) {
  return bit_cast<Vec<float>>(__builtin_convertvector(lower, UintVec) |
                              __builtin_convertvector(upper, UintVec) << 16);
}
CNNEXT_INLINE ShortVec upper_halves(UintVec bits) { return __builtin_convertvector(bits >> 16, ShortVec); }
#endif

#if CNNEXT_VECTOR_BYTES == 64
CNNEXT_INLINE Vec<float> load(const BFloat16* p) {
  return interleave(ShortVec{}, load_unaligned<ShortVec>(&p->bits));
}
CNNEXT_INLINE void store(BFloat16* p, Vec<float> v) {
  store_unaligned(&p->bits, upper_halves(round_to_bfloat16<UintVec>(v)));
}
#else
CNNEXT_INLINE Vec<float> load(const BFloat16* p) { return bfloat16_to_float<Vec<float>>(load_bits(p)); }
CNNEXT_INLINE void store(BFloat16* p, Vec<float> v) { store_bits(p, round_to_bfloat16<UintVec>(v) >> 16); }
#endif

CNNEXT_INLINE float load_one(const float* p) { return *p; }
CNNEXT_INLINE double load_one(const double* p) { return *p; }
CNNEXT_INLINE float load_one(const BFloat16* p) { return bfloat16_to_float<float>(uint32_t{p->bits}); }
CNNEXT_INLINE float load_one(const Float16* p) { return float16_to_float<float>(uint32_t{p->bits}); }
CNNEXT_INLINE void store_one(float* p, float x) { *p = x; }
CNNEXT_INLINE void store_one(double* p, double x) { *p = x; }
CNNEXT_INLINE void store_one(BFloat16* p, float x) {
  p->bits = static_cast<uint16_t>(round_to_bfloat16<uint32_t>(x) >> 16);
}
CNNEXT_INLINE void store_one(Float16* p, float x) {
  p->bits = static_cast<uint16_t>(float_to_float16<uint32_t>(x));
}

// Two bfloat16 as one element, carried in the bits of a float: neighbours in memory,
struct BFloat16Pair {
  BFloat16 first, second;
};
CNNEXT_INLINE Vec<float> load(const BFloat16Pair* p) { return load_unaligned<Vec<float>>(p); }
CNNEXT_INLINE float load_one(const BFloat16Pair* p) { return bit_cast<float>(*p); }

// or at a distance.
struct BFloat16Pairs {
  const BFloat16* first;
  int64_t distance;
  BFloat16Pairs operator+(int64_t n) const { return {first + n, distance}; }
};
CNNEXT_INLINE Vec<float> load(BFloat16Pairs p) {
  return interleave(load_unaligned<ShortVec>(&p.first->bits),
                    load_unaligned<ShortVec>(&p.first[p.distance].bits));
}
CNNEXT_INLINE float load_one(BFloat16Pairs p) {
  return bit_cast<float>(uint32_t(p.first->bits) | uint32_t(p.first[p.distance].bits) << 16);
}

// The first `count` lanes only, of memory that ends there; loaded, the others are zero. They are rare: the
// end of a tensor or very few channels.
template <class T>
CNNEXT_INLINE Vec<Acc<T>> load_part(const T* p, int64_t count) {
  if (count >= kLanes<Acc<T>>) return load(p);
#if CNNEXT_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<T, float>) {
    return (Vec<float>)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << max_of(0, count)) - 1), p);
  }
#endif
  T part[kLanes<Acc<T>>] = {};
  for (int64_t i = 0; i < count; ++i) part[i] = p[i];
  return load(part);
}
CNNEXT_INLINE Vec<float> load_part(BFloat16Pairs p, int64_t count) {
  if (count >= kLanes<float>) return load(p);
  Vec<float> v = {};
  for (int64_t i = 0; i < count; ++i) v[i] = load_one(p + i);
  return v;
}
// Fewer elements than a vector has.
template <class T>
CNNEXT_INLINE void copy_few(T* to, const T* from, int64_t count) {
#pragma GCC unroll 4
  for (int64_t n = kLanes<Acc<T>> / 2; n > 0; n /= 2) {
    if (!(count & n)) continue;
    __builtin_memcpy(to, from, n * sizeof(T));
    to += n;
    from += n;
  }
}
template <class T>
CNNEXT_INLINE void store_part(T* p, Vec<Acc<T>> v, int64_t count) {
  if (count >= kLanes<Acc<T>>) return store(p, v);
#if CNNEXT_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<T, float>) {
    return _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
  }
#endif
  T part[kLanes<Acc<T>>];
  store(part, v);
  copy_few(p, part, count);
}

#if CNNEXT_VECTOR_BYTES == 64
// sum + the first of x times the first of y + the second of x times the second of y. In assembly, because not
// every processor with AVX-512 has the instruction (AVX512_BF16): ask has_pair_products().
CNNEXT_INLINE Vec<float> add_pair_products(Vec<float> sum, Vec<float> x, Vec<float> y) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(y));
  return sum;
}
// Rounds to nearest even, by the same processors.
CNNEXT_INLINE void store_rounded(BFloat16* p, Vec<float> v) {
  VecOf<uint16_t, kLanes<float>>::type bits;
  asm("vcvtneps2bf16 %1, %0" : "=v"(bits) : "v"(v));
  store_unaligned(p, bits);
}
CNNEXT_INLINE bool has_pair_products() { return __builtin_cpu_supports("avx512bf16"); }

// Half a vector: two of its products take the time of one of a whole.
using HalfVec = VecOf<float, kLanes<float> / 2>::type;
CNNEXT_INLINE HalfVec add_pair_products(HalfVec sum, HalfVec x, HalfVec y) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(y));
  return sum;
}
CNNEXT_INLINE void store_rounded(BFloat16* p, HalfVec v) {
  VecOf<uint16_t, kLanes<float> / 2>::type bits;
  asm("vcvtneps2bf16 %1, %0" : "=v"(bits) : "v"(v));
  store_unaligned(p, bits);
}
#else
using HalfVec = Vec<float>;
CNNEXT_INLINE void store_rounded(BFloat16* p, Vec<float> v) { store(p, v); }
CNNEXT_INLINE Vec<float> add_pair_products(Vec<float> sum, Vec<float>, Vec<float>) { return sum; }
CNNEXT_INLINE bool has_pair_products() { return false; }
#endif

template <class A, int Distance, bool High, int... Lane>
CNNEXT_INLINE Vec<A> exchange(Vec<A> x, Vec<A> y, std::integer_sequence<int, Lane...>) {
  constexpr int L = kLanes<A>;
  if constexpr (High) {
    return shuffle<((Lane & Distance) ? Lane + L : Lane + Distance)...>(x, y);
  } else {
    return shuffle<((Lane & Distance) ? Lane - Distance + L : Lane)...>(x, y);
  }
}

// x[i][j] and x[j][i] change places.
template <class A, int Distance = kLanes<A> / 2>
CNNEXT_INLINE void transpose(Vec<A>* x) {
  constexpr int L = kLanes<A>;
  using Lanes = std::make_integer_sequence<int, L>;
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    if (i & Distance) continue;
    const Vec<A> low = exchange<A, Distance, false>(x[i], x[i + Distance], Lanes());
    x[i + Distance] = exchange<A, Distance, true>(x[i], x[i + Distance], Lanes());
    x[i] = low;
  }
  if constexpr (Distance > 1) transpose<A, Distance / 2>(x);
}

}  // namespace cnnext::cpu::CNNEXT_ISA
