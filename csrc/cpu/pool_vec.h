// What pooling adds to the vector type: the lanes that hold a window offset, their storage as bytes, shuffles
// of strided rows, and reductions over the lanes.
#pragma once

#include "stream.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace cnnext::cpu::CNNEXT_ISA {

// Offsets are computed in lanes as wide as those of the values and stored as uint8_t or int32_t.
template <class A>
struct OffsetOf {
  using type = int32_t;
};
template <>
struct OffsetOf<double> {
  using type = int64_t;
};
template <class A>
using Offset = typename OffsetOf<A>::type;
template <class A>
using OffsetVec = typename VecOf<Offset<A>, kLanes<A>>::type;

template <class A>
CNNEXT_INLINE OffsetVec<A> broadcast_offset(int64_t x) {
  return static_cast<Offset<A>>(x) - OffsetVec<A>{};
}

CNNEXT_INLINE float lowest(float) { return -__builtin_inff(); }
CNNEXT_INLINE double lowest(double) { return -__builtin_inf(); }

// torch's order: a value takes over if it is greater or NaN, so the first of equals and the last NaN stay.
// Asked the other way round, the second comparison is made under the mask of the first.
template <class V>
CNNEXT_INLINE auto stays(V best, V value) {
  return ~(value > best) & (value == value);
}
template <class V>
CNNEXT_INLINE V larger(V best, V value) {
  return stays(best, value) ? best : value;
}
#if CNNEXT_VECTOR_BYTES == 64
CNNEXT_INLINE Vec<float> larger(Vec<float> best, Vec<float> value) {
  // The machine's maximum is the second operand where that is NaN or both are zeros.
  const __mmask16 number = _mm512_cmp_ps_mask((__m512)value, (__m512)value, _CMP_ORD_Q);
  return (Vec<float>)_mm512_mask_max_ps((__m512)value, number, (__m512)value, (__m512)best);
}
#endif

// Compilers widen bytes in several steps or even one by one, where the machine has one instruction for it.
CNNEXT_INLINE IntVec widen_offsets(const uint8_t* p, float) {
#if CNNEXT_VECTOR_BYTES == 64
  return (IntVec)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif CNNEXT_VECTOR_BYTES == 32
  return (IntVec)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  constexpr int64_t L = kLanes<float>;
  return __builtin_convertvector(
      __builtin_convertvector(load_unaligned<typename VecOf<uint8_t, L>::type>(p), ShortVec), IntVec);
#endif
}
CNNEXT_INLINE OffsetVec<double> widen_offsets(const uint8_t* p, double) {
  constexpr int64_t L = kLanes<double>;
  const auto shorts = __builtin_convertvector(load_unaligned<typename VecOf<uint8_t, L>::type>(p),
                                              typename VecOf<uint16_t, L>::type);
  return __builtin_convertvector(__builtin_convertvector(shorts, typename VecOf<int32_t, L>::type),
                                 OffsetVec<double>);
}
CNNEXT_INLINE IntVec widen_offsets(const int32_t* p, float) { return load_unaligned<IntVec>(p); }
CNNEXT_INLINE OffsetVec<double> widen_offsets(const int32_t* p, double) {
  return __builtin_convertvector(load_unaligned<typename VecOf<int32_t, kLanes<double>>::type>(p),
                                 OffsetVec<double>);
}

CNNEXT_INLINE void narrow_offsets(uint8_t* p, IntVec v) {
  constexpr int64_t L = kLanes<float>;
#if CNNEXT_VECTOR_BYTES == 64
  store_unaligned(p, __builtin_convertvector(v, typename VecOf<uint8_t, L>::type));
#else
  store_unaligned(
      p, __builtin_convertvector(__builtin_convertvector(v, ShortVec), typename VecOf<uint8_t, L>::type));
#endif
}
CNNEXT_INLINE void narrow_offsets(uint8_t* p, OffsetVec<double> v) {
  constexpr int64_t L = kLanes<double>;
#if CNNEXT_VECTOR_BYTES == 64
  store_unaligned(p, __builtin_convertvector(v, typename VecOf<uint8_t, L>::type));
#else
  const auto ints = __builtin_convertvector(v, typename VecOf<int32_t, L>::type);
  const auto shorts = __builtin_convertvector(ints, typename VecOf<uint16_t, L>::type);
  store_unaligned(p, __builtin_convertvector(shorts, typename VecOf<uint8_t, L>::type));
#endif
}
CNNEXT_INLINE void narrow_offsets(int32_t* p, IntVec v) { store_unaligned(p, v); }
CNNEXT_INLINE void narrow_offsets(int32_t* p, OffsetVec<double> v) {
  store_unaligned(p, __builtin_convertvector(v, typename VecOf<int32_t, kLanes<double>>::type));
}

// Lane numbers 0, 1, 2, ... times `step`.
template <class A>
CNNEXT_INLINE OffsetVec<A> lane_numbers(Offset<A> step) {
  OffsetVec<A> v = {};
  for (int64_t i = 0; i < kLanes<A>; ++i) v[i] = static_cast<Offset<A>>(i) * step;
  return v;
}

// Window offsets to be compared with one number in all lanes, its key.
template <class A>
struct OffsetMatch {
  using Key = OffsetVec<A>;
  static Key key(int64_t offset) { return broadcast_offset<A>(offset); }

  explicit OffsetMatch(const uint8_t* offsets) : lanes(widen_offsets(offsets, A{})) {}
  // The value, or zero, where the offset is another.
  Vec<A> pick(const Key& key, Vec<A> value) const { return lanes == key ? value : Vec<A>{}; }
  Vec<A> add(Vec<A> sum, const Key& key, Vec<A> value) const { return sum + pick(key, value); }

  OffsetVec<A> lanes;
};
#if CNNEXT_VECTOR_BYTES == 64
template <>
struct OffsetMatch<float> {  // bytes are compared as they are
  using Key = __m128i;
  static Key key(int64_t offset) { return _mm_set1_epi8(static_cast<char>(offset)); }

  explicit OffsetMatch(const uint8_t* offsets)
      : bytes(_mm_loadu_si128(reinterpret_cast<const __m128i*>(offsets))) {}
  Vec<float> pick(const Key& key, Vec<float> value) const {
    return (Vec<float>)_mm512_maskz_mov_ps(_mm_cmpeq_epi8_mask(bytes, key), (__m512)value);
  }
  Vec<float> add(Vec<float> sum, const Key& key, Vec<float> value) const {
    return (Vec<float>)_mm512_mask_add_ps((__m512)sum, _mm_cmpeq_epi8_mask(bytes, key), (__m512)sum,
                                          (__m512)value);
  }

  __m128i bytes;
};
#endif

// The first `count` lanes only, as load_part and store_part do.
template <class A, class O>
CNNEXT_INLINE OffsetVec<A> load_offsets_part(const O* p, int64_t count) {
  if (count >= kLanes<A>) return widen_offsets(p, A{});
#if CNNEXT_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<A, float> && sizeof(O) == 4) {
    return (IntVec)_mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << max_of(0, count)) - 1), p);
  }
#endif
  O part[kLanes<A>] = {};
  for (int64_t i = 0; i < count; ++i) part[i] = p[i];
  return widen_offsets(part, A{});
}
template <class A, class O>
CNNEXT_INLINE void store_offsets_part(O* p, OffsetVec<A> v, int64_t count) {
  if (count >= kLanes<A>) return narrow_offsets(p, v);
  O part[kLanes<A>];
  narrow_offsets(part, v);
  copy_few(p, part, count);
}
// The same, of offsets as the problem stores them, from element `at` on.
template <class A>
CNNEXT_INLINE void store_offsets(const PoolProblem& p, void* offsets, int64_t at, OffsetVec<A> v,
                                 int64_t count) {
  if (p.wide_offsets()) {
    store_offsets_part<A>(static_cast<int32_t*>(offsets) + at, v, count);
  } else {
    store_offsets_part<A>(static_cast<uint8_t*>(offsets) + at, v, count);
  }
}

// The first `count` lanes are wanted of memory that ends at `end`; but there, the others hold what follows.
template <class T>
CNNEXT_INLINE Vec<Acc<T>> load_some(const T* p, int64_t count, const T* end) {
  return p + kLanes<Acc<T>> <= end ? load(p) : load_part(p, count);
}
template <class A, class O>
CNNEXT_INLINE OffsetVec<A> load_some_offsets(const O* p, int64_t count, const O* end) {
  return load_offsets_part<A>(p, p + kLanes<A> <= end ? kLanes<A> : count);
}
template <class A>
CNNEXT_INLINE OffsetMatch<A> match_some(const uint8_t* p, int64_t count, const uint8_t* end) {
  if (p + kLanes<A> <= end) return OffsetMatch<A>(p);
  uint8_t part[kLanes<A>] = {};
  for (int64_t i = 0; i < count; ++i) part[i] = p[i];
  return OffsetMatch<A>(part);
}

// Lanes of the pair (a, b), 2 L lanes long, chosen by number.
template <class A>
CNNEXT_INLINE Vec<A> choose_lanes(Vec<A> a, Vec<A> b, OffsetVec<A> lanes) {
#if defined(__clang__)
  Vec<A> v;
  for (int64_t i = 0; i < kLanes<A>; ++i) v[i] = lanes[i] < kLanes<A> ? a[lanes[i]] : b[lanes[i] - kLanes<A>];
  return v;
#else
  return __builtin_shuffle(a, b, lanes);
#endif
}

template <class A>
CNNEXT_INLINE void deinterleave(Vec<A> a, Vec<A> b, Vec<A>& even, Vec<A>& odd) {
  const OffsetVec<A> lanes = lane_numbers<A>(2);
  const Vec<A> first = choose_lanes<A>(a, b, lanes);
  odd = choose_lanes<A>(a, b, lanes + 1);
  even = first;
}
template <class A>
CNNEXT_INLINE void interleave(Vec<A> even, Vec<A> odd, Vec<A>& a, Vec<A>& b) {
  const OffsetVec<A> number = lane_numbers<A>(1);
  const OffsetVec<A> lanes = (number >> 1) + (number & 1) * kLanes<A>;
  a = choose_lanes<A>(even, odd, lanes);
  b = choose_lanes<A>(even, odd, lanes + kLanes<A> / 2);
}

// The lanes, `by` places further down, in a circle.
template <class A>
CNNEXT_INLINE Vec<A> rotate_lanes(Vec<A> v, Offset<A> by) {
  return choose_lanes<A>(v, v, (lane_numbers<A>(1) + by) & static_cast<Offset<A>>(kLanes<A> - 1));
}

template <class A, int kBy, int... Lane>
CNNEXT_INLINE Vec<A> slide_lanes(Vec<A> a, Vec<A> b, std::integer_sequence<int, Lane...>) {
  return shuffle<(Lane + kBy)...>(a, b);
}
// Of the pair (a, b) the L lanes from kBy on.
template <class A, int kBy>
CNNEXT_INLINE Vec<A> slide_lanes(Vec<A> a, Vec<A> b) {
  return slide_lanes<A, kBy>(a, b, std::make_integer_sequence<int, kLanes<A>>());
}

// Lanes under a mask, of two vectors, put side by side; how many. Room is needed for whole vectors. Without
// instructions for it all lanes are taken.
#if CNNEXT_VECTOR_BYTES == 64
constexpr bool kPacksLanes = true;
CNNEXT_INLINE int64_t pack_lanes(IntVec mask, IntVec x, Vec<float> y, int32_t* to_x, float* to_y) {
  const __mmask16 lanes = _mm512_movepi32_mask((__m512i)mask);
  store_unaligned(to_x, _mm512_maskz_compress_epi32(lanes, (__m512i)x));
  store_unaligned(to_y, _mm512_maskz_compress_ps(lanes, (__m512)y));
  return __builtin_popcount(lanes);
}
CNNEXT_INLINE int64_t pack_lanes(OffsetVec<double> mask, OffsetVec<double> x, Vec<double> y, int64_t* to_x,
                                 double* to_y) {
  const __mmask8 lanes = _mm512_movepi64_mask((__m512i)mask);
  store_unaligned(to_x, _mm512_maskz_compress_epi64(lanes, (__m512i)x));
  store_unaligned(to_y, _mm512_maskz_compress_pd(lanes, (__m512d)y));
  return __builtin_popcount(lanes);
}
#elif CNNEXT_VECTOR_BYTES == 32
constexpr bool kPacksLanes = true;
struct SetBits {
  uint8_t of[256][8] = {};  // a byte's set bits, from the lowest

  constexpr SetBits() {
    for (int byte = 0; byte < 256; ++byte) {
      for (int bit = 0, count = 0; bit < 8; ++bit) {
        if (byte >> bit & 1) of[byte][count++] = uint8_t(bit);
      }
    }
  }
};
constexpr SetBits kSetBits;
template <class Mask, class I, class V, class O, class A>
CNNEXT_INLINE int64_t pack_lanes(Mask mask, I x, V y, O* to_x, A* to_y) {
  const int halves = _mm256_movemask_ps((__m256)mask);  // of doubles; floats are such halves
  const __m256i order =
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kSetBits.of[halves])));
  store_unaligned(to_x, (I)_mm256_permutevar8x32_epi32((__m256i)x, order));
  store_unaligned(to_y, (V)_mm256_permutevar8x32_epi32((__m256i)y, order));
  return __builtin_popcount(halves) * 4 / int64_t(sizeof(A));
}
#else
constexpr bool kPacksLanes = false;
template <class Mask, class I, class V, class O, class A>
CNNEXT_INLINE int64_t pack_lanes(Mask, I x, V y, O* to_x, A* to_y) {
  store_unaligned(to_x, x);
  store_unaligned(to_y, y);
  return kLanes<A>;
}
#endif

// Where input and output do not stay in the caches.
template <class T>
CNNEXT_INLINE bool beyond_caches(const PoolShape& shape) {
  const int64_t pixels = shape.input_pixels() + shape.output_pixels();
  return shape.N * shape.C * pixels * static_cast<int64_t>(sizeof(T)) > kCachedBytes;
}
// Stores of a result in rows of shape.C elements.
struct ResultStores {
  template <class T>
  ResultStores(const PoolShape& shape, const T* result)
      : streamed(beyond_caches<T>(shape) && shape.C * sizeof(T) % kAlignment == 0 &&
                 reinterpret_cast<uintptr_t>(result) % kAlignment == 0) {}

  // The first `count` lanes.
  template <class T>
  __attribute__((always_inline)) void operator()(T* p, Vec<Acc<T>> v, int64_t count) const {
    streamed ? stream(p, v) : store_part(p, v, count);
  }

  bool streamed;
};

template <class T>
CNNEXT_INLINE void copy_row(T* to, const T* from, int64_t count) {
  constexpr int64_t L = kLanes<Acc<T>>;
  if (count < L) return copy_few(to, from, count);
  int64_t i = 0;
  for (; i + L <= count; i += L) store_unaligned(to + i, load_unaligned<Stored<T>>(from + i));
  store_unaligned(to + count - L, load_unaligned<Stored<T>>(from + count - L));
}

template <class T>
void stream_copy(T* to, const T* from, int64_t count) {
  constexpr int64_t kLine = kAlignment / sizeof(T), L = kLanes<Acc<T>>;
  const int64_t past_line = reinterpret_cast<uintptr_t>(to) / sizeof(T) % kLine;
  int64_t i = min_of(count, past_line > 0 ? kLine - past_line : 0);
  for (int64_t k = 0; k < i; ++k) to[k] = from[k];
  for (; i + kLine <= count; i += kLine) {
#pragma GCC unroll 16
    for (int64_t k = 0; k < kLine; k += L) stream_stored(to + i + k, load_unaligned<Stored<T>>(from + i + k));
  }
  for (; i < count; ++i) to[i] = from[i];
}

template <class A, int64_t L>
CNNEXT_INLINE A sum_lanes(typename VecOf<A, L>::type v) {
  if constexpr (L == 2) {
    return v[0] + v[1];
  } else {
    typename VecOf<A, L / 2>::type half[2];
    __builtin_memcpy(half, &v, sizeof(v));
    return sum_lanes<A, L / 2>(half[0] + half[1]);
  }
}

}  // namespace cnnext::cpu::CNNEXT_ISA
