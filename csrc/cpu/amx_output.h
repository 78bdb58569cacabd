// The sums of strips of pixels to the destination, while the next ones are computed.
#pragma once

#include "amx_blocks.h"

#if CNNEXT_VECTOR_BYTES == 64

#include <immintrin.h>

namespace cnnext::cpu::CNNEXT_ISA {

// Pixels of a strip that lie one behind the other in the destination, `step` apart: one or two.
struct PixelRun {
  int64_t first;  // where the strip's first one would be
  uint32_t mask;  // of elements from there on
};
// All of a strip, in the order of its pixels.
struct PixelRuns {
  int64_t step, count = 0;
  uint16_t lanes = 0;
  PixelRun run[kAmxRows];

  PixelRuns(const int64_t* to, int64_t pixel_step) : step(pixel_step == 2 ? 2 : 1) {
    for (int64_t r = 0; r < kAmxRows; ++r) {
      if (to[r] < 0) continue;
      if (r == 0 || to[r - 1] < 0 || to[r] != to[r - 1] + step) run[count++] = {to[r] - r * step, 0};
      run[count - 1].mask |= 1u << r * step;
      lanes |= uint16_t(1 << r);
    }
  }
};

// Sums[strip][16 rows][kAmxCols] of some channels, and where their pixels go: negative for gaps, and behind a
// strip of fewer rows than 16.
struct StripSums {
  const Strip* strip;
  const int64_t *to, *end;
  const PixelRuns* runs;  // if channels are planes
  const float* sums;
  int64_t channel, channels;

  int64_t strips() const { return (end - to) / kAmxRows; }
};

// Some lanes to neighbours, or every other element.
CNNEXT_INLINE void store_masked(float* to, uint32_t mask, Vec<float> x) {
  _mm512_mask_storeu_ps(to, uint16_t(mask), (__m512)x);
}
CNNEXT_INLINE void store_apart(float* to, uint32_t mask, Vec<float> x) {
  const auto lower = shuffle<0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7>(x, x),
             upper = shuffle<8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15>(x, x);
  store_masked(to, mask, lower);
  store_masked(to + kLanes<float>, mask >> 16, upper);
}
CNNEXT_INLINE ShortVec rounded(Vec<float> x) {
  BFloat16 numbers[kLanes<float>];
  store_rounded(numbers, x);
  return load_unaligned<ShortVec>(numbers);
}
CNNEXT_INLINE void store_masked(BFloat16* to, uint32_t mask, Vec<float> x) {
  _mm256_mask_storeu_epi16(to, uint16_t(mask), (__m256i)rounded(x));
}
CNNEXT_INLINE void store_apart(BFloat16* to, uint32_t mask, Vec<float> x) {
  _mm512_mask_storeu_epi16(to, mask, (__m512i) __builtin_convertvector(rounded(x), UintVec));
}

// Stores sums and makes `not_finite` NaN in a lane where one is infinite or NaN.
CNNEXT_INLINE void put_vector(Vec<float> sums, float* to, Vec<float>& not_finite) {
  not_finite += sums * 0.0f;
  store(to, sums);
}
CNNEXT_INLINE void put_vector(Vec<float> sums, BFloat16* to, Vec<float>&) { store_rounded(to, sums); }
// Out of line: beside the products it costs registers, and a shallow 1x1 layer a third of its time.
template <class T>
__attribute__((noinline)) void put_some(T* to, Vec<float> x, int64_t count) {
  store_part(to, x, count);
}
template <class T>
CNNEXT_INLINE void put_row(const float* sums, const float* add, int64_t count, T* to,
                           Vec<float>& not_finite) {
  for (int64_t k = 0; k < count; k += kAmxPairs) {
    const Vec<float> x = load(sums + k) + load(add + k);
    if (count >= k + kAmxPairs) {
      put_vector(x, to + k, not_finite);
    } else {
      if (kParts<T> > 1) not_finite += x * 0.0f;
      put_some(to + k, x, count - k);
    }
  }
}

// Channels are neighbours or planes. `again` is called for strips of which some sums are not finite.
template <class T, bool Planes, class Again>
class AmxOutput {
 public:
  static constexpr int kP = kParts<T>;
  static constexpr int64_t kWide = kAmxCols;

  AmxOutput(T* destination, int64_t plane, const T* bias, Again again)
      : destination(destination), plane(plane), bias(bias), again(again) {}

  // Strips whose sums are going to be computed in so many steps.
  void begin(const StripSums& strips, int64_t steps) {
    StripSums& next = batch[number];
    next = strips;
    if (bias) copy_run(bias + next.channel, add[number], next.channels);
    each = ceil_div(max_of(units(next), units(left)), max_of(1, steps));
    fetched = next.to;
  }
  // A step: some of the strips before are put, and memory for these is fetched, and weights that come next.
  __attribute__((always_inline)) void operator()() {
    weights.fetch();
    if constexpr (Planes) return step_planes();
    const StripSums& next = batch[number];
    for (const int64_t* end = fetched + min_of(each, next.end - fetched); fetched < end; ++fetched) {
      const T* to = destination + (*fetched + next.channel);
      __builtin_prefetch(to, 1);
      if (sizeof(T) > 2) __builtin_prefetch(to + kAmxPairs, 1);
    }
    put_pixels(left.to + min_of(each, left.end - left.to));
  }
  // These have been computed.
  void end() {
    Planes ? put_planes(units(left)) : put_pixels(left.end);
    if constexpr (kP > 1) {
      if (any_nan(not_finite)) again(batch[1 - number], add[1 - number]);
    }
    not_finite = Vec<float>{};
    left = batch[number];
    fetched = nullptr;
    number = 1 - number;
    batch[number] = StripSums{};
    put = begun = 0;
  }

  FetchedRows weights;

 private:
  // What is put at a time: a pixel, or 16 channels of a strip.
  int64_t units(const StripSums& s) const {
    return Planes ? s.strips() * ceil_div(s.channels, kAmxPairs) : s.end - s.to;
  }

  __attribute__((always_inline)) void put_pixels(const int64_t* end) {
    const int64_t* row = left.to;
    const float* sums = left.sums;
    const float* const offset = add[1 - number];
    T* const to = destination + left.channel;
    Vec<float> flags = not_finite;
    if (left.channels == kWide) {
      const Vec<float> first = load(offset), second = load(offset + kAmxPairs);
      for (; row < end; ++row, sums += kWide) {
        if (*row < 0) continue;
        put_vector(load(sums) + first, to + *row, flags);
        put_vector(load(sums + kAmxPairs) + second, to + *row + kAmxPairs, flags);
      }
    } else {
      for (; row < end; ++row, sums += kWide) {
        if (*row >= 0) put_row(sums, offset, left.channels, to + *row, flags);
      }
    }
    not_finite = flags;
    left.to = row;
    left.sums = sums;
  }

  // Channels that are planes: out of line, as the registers are wanted for the products.
  __attribute__((noinline)) void step_planes() {
    const StripSums& next = batch[number];
    const int64_t halves = ceil_div(next.channels, kAmxPairs);
    for (const int64_t end = min_of(begun + each, units(next)); begun < end; ++begun) {
      const PixelRuns& runs = next.runs[begun / halves];
      if (runs.count == 0) continue;
      const int64_t first = begun % halves * kAmxPairs;
      const T* to = destination + (next.channel + first) * plane + runs.run[0].first + kAmxRows - 1;
      for (int64_t k = first; k < min_of(first + kAmxPairs, next.channels); ++k, to += plane)
        __builtin_prefetch(to, 1);
    }
    put_planes(put + each);
  }
  void put_planes(int64_t until) {
    if (left.to == left.end) return;
    left.runs->step == 1 ? put_planes<false>(left, until) : put_planes<true>(left, until);
  }
  template <bool Apart>
  __attribute__((noinline)) void put_planes(const StripSums& s, int64_t until) {
    const int64_t halves = ceil_div(s.channels, kAmxPairs);
    for (until = min_of(until, units(s)); put < until; ++put) {
      const int64_t strip = put / halves, first = put % halves * kAmxPairs;
      const int64_t count = min_of(kAmxPairs, s.channels - first);
      const PixelRuns& runs = s.runs[strip];
      const float* sums = s.sums + strip * kAmxRows * kWide + first;
      const float* const offset = add[1 - number] + first;
      T* to = destination + (s.channel + first) * plane;
      Vec<float> x[kAmxRows];
#pragma GCC unroll 16
      for (int64_t r = 0; r < kAmxRows; ++r) x[r] = load(sums + r * kWide);
      transpose<float>(x);
#pragma GCC unroll 16
      for (int64_t k = 0; k < kAmxPairs; ++k, to += plane) {
        if (k == count) break;
        const Vec<float> y = x[k] + broadcast(offset[k]);
        if constexpr (kP > 1) not_finite += (Vec<float>)_mm512_maskz_mul_ps(runs.lanes, (__m512)y, __m512{});
        for (int64_t i = 0; i < runs.count; ++i) {
          const PixelRun& run = runs.run[i];
          Apart ? store_apart(to + run.first, run.mask, y) : store_masked(to + run.first, run.mask, y);
        }
      }
    }
  }

  T* destination;
  int64_t plane;  // of a channel
  const T* bias;
  Again again;
  int64_t number = 0;                  // of the batch that is computed; the other one has been
  StripSums batch[2] = {}, left = {};  // what is left of the latter
  alignas(64) float add[2][kWide] = {};
  const int64_t* fetched = nullptr;
  int64_t each = 0, put = 0, begun = 0;  // units: of a step; of planes put and fetched
  Vec<float> not_finite = {};            // zero, or NaN in some lane
};

}  // namespace cnnext::cpu::CNNEXT_ISA

#endif  // AVX-512
