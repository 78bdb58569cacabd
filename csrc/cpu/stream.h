// Stores past the caches, for results that would not stay there: an ordinary store reads the line first, and
// two of three bytes that pass to memory are spared. Whole lines only, each at once: what is left of a line
// costs more than it spares.
#pragma once

#include "vec.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kStreamedBytes = 4 * kCachedBytes;  // results of convolutions beyond pass the caches

// A vector of elements as they are in memory.
template <class T>
struct StoredOf {
  using type = typename VecOf<T, kLanes<Acc<T>>>::type;
};
template <>
struct StoredOf<BFloat16> {
  using type = ShortVec;
};
template <>
struct StoredOf<Float16> {
  using type = ShortVec;
};
template <class T>
using Stored = typename StoredOf<T>::type;

template <class T>
CNNEXT_INLINE void stream_stored(T* p, Stored<T> bits) {
#if defined(__x86_64__)
#if CNNEXT_VECTOR_BYTES == 64
  if constexpr (sizeof(bits) == 64) return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)bits);
#endif
#if CNNEXT_VECTOR_BYTES >= 32
  if constexpr (sizeof(bits) == 32) return _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)bits);
#endif
  if constexpr (sizeof(bits) == 16) return _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)bits);
#endif
  store_unaligned(p, bits);
}
template <class T>
CNNEXT_INLINE void stream(T* p, Vec<Acc<T>> v) {
  T as_stored[kLanes<Acc<T>>];
  store(as_stored, v);
  stream_stored(p, load_unaligned<Stored<T>>(as_stored));
}
template <class T>
CNNEXT_INLINE void put(bool streamed, T* to, Vec<Acc<T>> v, int64_t count) {
  streamed ? stream(to, v) : store_part(to, v, count);
}
// After the last of them, before another thread may read.
CNNEXT_INLINE void end_streams() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace cnnext::cpu::CNNEXT_ISA
