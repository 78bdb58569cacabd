// The operands of AMX and their products: numbers in parts of bfloat16, windows of pixels, panels of weights.
//
// Neighbouring pixels are the rows of a register, and a tap is a distance in memory (see amx_blocks.h). A
// float32 is the sum of three bfloat16: a high part, a middle and a low one. Of the nine products of two such
// numbers the six largest are summed; what is left out is below 2^-25 of the product.
#pragma once

#include "amx_tile.h"
#include "range.h"

#if CNNEXT_VECTOR_BYTES == 64

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kAmxDepth = 2 * kAmxPairs;  // of the numbers in a register's row: a chunk of the depth

template <class T>
constexpr int kParts = std::is_same_v<T, float> ? 3 : 1;

// Which parts the n-th product of two numbers multiplies, small products first; none before the first.
template <int Parts>
constexpr int kPartsProducts = Parts == 3 ? 6 : 1;
template <int Parts>
constexpr int part_of_a(int n) {
  constexpr int kPart[] = {0, 0, 1, 1, 2, 0};
  return n < 0 ? -1 : Parts == 1 ? 0 : kPart[n];
}
template <int Parts>
constexpr int part_of_b(int n) {
  constexpr int kPart[] = {2, 1, 1, 0, 0, 0};
  return n < 0 ? -1 : Parts == 1 ? 0 : kPart[n];
}

// Where windows are in the copy, and their weights in a panel: distances of the taps, in bytes.
struct Tap {
  int64_t copy, panel;
};
struct Windows {
  const Tap* tap;
  int64_t taps, chunks, pitch;
  int64_t chain;  // chunks that are summed before they are added to the sums
};
constexpr int64_t kChunkBytes = kAmxPairs * kAmxCols * sizeof(float);  // of a part of a panel

// Products after which a register is stored for nothing. A processor that has stored none for some 750 ns
// (Granite Rapids) takes 250 ns for the next one, as if it had to wake up.
constexpr int64_t kAmxBusy = 48;

// sums[strip][16 rows][kAmxCols] = or += the products of strips of pixels and a panel of weights. `meanwhile`
// is called for each chunk of each tap.
template <int Parts, int Strips, int Vectors, class Meanwhile>
void multiply_windows(const Windows& w, const char* const* strip, const char* panel, float* sums, bool add,
                      Meanwhile& meanwhile) {
  constexpr int64_t kRow = kAmxCols * sizeof(float);
  const char* a[Strips];
  for (int s = 0; s < Strips; ++s) a[s] = strip[s];
  alignas(64) float chain[Strips * kAmxRows * kAmxCols], line[kAmxPairs];
  constexpr int64_t kBusy = ceil_div(kAmxBusy, kPartsProducts<Parts> * Strips * Vectors);
  int64_t busy = kBusy;
  for (int64_t c = 0; c < w.chunks;) {
    unroll<Strips * Vectors>([&](auto i) { tile_zero<i>(); });
    for (const int64_t end = min_of(c + w.chain, w.chunks); c < end; ++c) {
      for (int64_t t = 0; t < w.taps; ++t) {
        meanwhile();
        const int64_t at = w.tap[t].copy + c * Parts * 64;
        const char* b = panel + w.tap[t].panel + c * Parts * kChunkBytes;
        unroll<kPartsProducts<Parts>>([&](auto n) {
          constexpr int kA = part_of_a<Parts>(n), kB = part_of_b<Parts>(n);
          constexpr bool kLoadA = Strips > 2 || kA != part_of_a<Parts>(n - 1);
          if constexpr (kB != part_of_b<Parts>(n - 1))
            unroll<Vectors>([&](auto v) { tile_load<6 + v>(b + kB * kChunkBytes + v * 64, kRow); });
          unroll<Strips>([&](auto s) {
            if constexpr (kLoadA) tile_load<4 + s % 2>(a[s] + at + kA * 64, w.pitch);
            unroll<Vectors>([&](auto v) { tile_multiply<s * Vectors + v, 4 + s % 2, 6 + v>(); });
          });
        });
        if (--busy == 0) {
          tile_store<4>(line, 0);
          busy = kBusy;
        }
      }
    }
    float* to = add ? chain : sums;
    unroll<Strips * Vectors>([&](auto i) {
      tile_store<i>(to + i / Vectors * kAmxRows * kAmxCols + i % Vectors * kAmxPairs, kRow);
    });
    for (int64_t i = 0; add && i < Strips * kAmxRows * kAmxCols; i += kAmxPairs)
      store(sums + i, load(sums + i) + load(chain + i));
    add = true;
  }
}

// The first `count` lanes of a vector.
template <class V>
CNNEXT_INLINE V first_lanes(V x, int64_t count) {
  constexpr int64_t kBytes = sizeof(V), kLane = sizeof(x[0]);
  alignas(64) static constexpr struct Mask {
    constexpr Mask() : bytes() {
      for (int i = 0; i < 64; ++i) bytes[i] = 0xff;
    }
    uint8_t bytes[128];
  } mask;
  return x & load_unaligned<V>(mask.bytes + kBytes - clamp(count * kLane, 0, kBytes));
}

// Sums of x * 0 are NaN in a lane where some x is infinite or NaN.
CNNEXT_INLINE bool any_nan(Vec<float> lanes) {
  bool some = false;
  for (int64_t i = 0; i < kLanes<float>; ++i) some |= lanes[i] != 0;
  return some;
}

// Pairs of a number of x and one of y in their parts, `step` bytes apart. A part is what is nearest to what
// is left; the last one is all of it.
template <int Parts>
CNNEXT_INLINE void put_pairs(Vec<float> x, Vec<float> y, char* to, int64_t step) {
  constexpr uint32_t kUpper = 0xffff0000u, kHalf = 0x8000u;
#pragma GCC unroll 3
  for (int part = 0; part < Parts; ++part) {
    const uint32_t half = part + 1 < Parts ? kHalf : 0;
    const UintVec first = bit_cast<UintVec>(x) + half, second = bit_cast<UintVec>(y) + half;
    store_unaligned(to + part * step, first >> 16 | (second & kUpper));
    x -= bit_cast<Vec<float>>(first & kUpper);
    y -= bit_cast<Vec<float>>(second & kUpper);
  }
}

// A chunk of numbers, the first `count` of which are there, in parts of 64 bytes. Pairs are neighbours in
// bfloat16, half a chunk apart in float32.
CNNEXT_INLINE void put_chunk(const BFloat16* from, char* to) {
  store_unaligned(to, load_unaligned<WideShortVec>(from));
}
CNNEXT_INLINE void put_chunk(const BFloat16* from, int64_t count, char* to) {
  store_unaligned(to, first_lanes(load_unaligned<WideShortVec>(from), count));
}
CNNEXT_INLINE void put_chunk(const float* from, char* to) {
  put_pairs<3>(load(from), load(from + kAmxPairs), to, 64);
}
CNNEXT_INLINE void put_chunk(const float* from, int64_t count, char* to) {
  const auto some = [&](int64_t first) {
    return bit_cast<Vec<float>>(first_lanes(load_unaligned<UintVec>(from + first), count - first));
  };
  put_pairs<3>(some(0), some(kAmxPairs), to, 64);
}
// The same of kAmxCols columns in rows `stride` apart, of which `count` are there; parts are kChunkBytes
// apart.
template <class T>
CNNEXT_INLINE void put_columns(const float* from, int64_t stride, int64_t count, float* to) {
  constexpr int64_t kNext = kParts<T> > 1 ? kAmxPairs : 1, kStep = kParts<T> > 1 ? 1 : 2;
  for (int64_t pair = 0; pair < kAmxPairs; ++pair, from += kStep * stride) {
#pragma GCC unroll 2
    for (int64_t k = 0; k < kAmxCols; k += kAmxPairs, to += kAmxPairs) {
      const auto x = kStep * pair < count ? load(from + k) : Vec<float>{};
      const auto y = kStep * pair + kNext < count ? load(from + kNext * stride + k) : Vec<float>{};
      put_pairs<kParts<T>>(x, y, reinterpret_cast<char*>(to), kChunkBytes);
    }
  }
}

// Numbers in whole chunks, filled up with zeros. Memory is readable up to `end`.
template <class T>
CNNEXT_INLINE void put_numbers(const T* from, int64_t count, const T* end, char* to) {
  constexpr int64_t kBytes = kParts<T> * 64;
  for (; count >= kAmxDepth; count -= kAmxDepth, from += kAmxDepth, to += kBytes) put_chunk(from, to);
  if (count == 0) return;
  if (end - from >= kAmxDepth) return put_chunk(from, count, to);
  alignas(64) T last[kAmxDepth] = {};
  __builtin_memcpy(last, from, count * sizeof(T));
  put_chunk(last, to);
}

}  // namespace cnnext::cpu::CNNEXT_ISA

#endif  // AVX-512
