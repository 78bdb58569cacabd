// The innermost sums of convolution with a lane for each group: a run of destination pixels in registers,
//   sum[pixel][c] = bias[c] + sum over (row of taps, tap) of source[pixel + tap] * weight[c][tap]
//
// Each product is one load of a source vector, shared by a few channels: loads keep up with the multipliers
// where a run is long, so taps take no registers and there may be any number. Taps in the padding are left
// out.
#pragma once

#include "epilogue.h"
#include "range.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int kRunPixels = CNNEXT_VECTOR_BYTES == 64 ? 14 : 10;  // of one channel
constexpr int kRunChannels = CNNEXT_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int kSharedRunPixels = 6;                           // of kRunChannels, which share what is loaded
constexpr int kTileRows = CNNEXT_VECTOR_BYTES == 64 ? 2 : 1;  // of conv_lanes_tile.h

template <class T>
struct TapRow {  // of taps that are a constant distance apart
  const T* source;
  const Acc<T>* weight[kTileRows];  // for each row of a tile; null where it does not read this source row
};

struct RunSteps {  // in elements, from one to the next
  int64_t source_pixel, source_tap, weight_tap, weight_channel, to_pixel, to_channel;
};

template <class A>
struct LanesRun {
  const TapRow<A>* rows;
  int64_t row_count;
  int64_t source_at, weight_at;  // of the first pixel and tap, from the rows' pointers
  const Range* inside;           // for each tap, the pixels for which it lies inside of the source,
  int64_t taps, first;           // counted from another pixel than the run's first
  const A* bias;
  A* to;
  const EpilogueOf<A>* epilogue;  // or null
};

template <class A, int Pixels, int Channels>
void lanes_run(const LanesRun<A>& run, const RunSteps& steps) {
  constexpr int64_t L = kLanes<A>;
  const RunSteps s = steps;
  Vec<A> sum[Pixels][Channels];
#pragma GCC unroll 14
  for (int j = 0; j < Pixels; ++j) {
#pragma GCC unroll 4
    for (int k = 0; k < Channels; ++k) sum[j][k] = load(run.bias + k * L);
  }
  for (int64_t row = 0; row < run.row_count; ++row) {
    const A* x = run.rows[row].source + run.source_at;
    const A* w = run.rows[row].weight[0] + run.weight_at;
    for (int64_t tap = 0; tap < run.taps; ++tap, x += s.source_tap, w += s.weight_tap) {
      Vec<A> factor[Channels];
#pragma GCC unroll 4
      for (int k = 0; k < Channels; ++k) factor[k] = load(w + k * s.weight_channel);
      const int64_t begin = run.inside[tap].begin - run.first, end = run.inside[tap].end - run.first;
      if (begin <= 0 && end >= Pixels) {
#pragma GCC unroll 14
        for (int j = 0; j < Pixels; ++j) {
          const Vec<A> value = load(x + j * s.source_pixel);
#pragma GCC unroll 4
          for (int k = 0; k < Channels; ++k) sum[j][k] += value * factor[k];
        }
      } else {
#pragma GCC unroll 14
        for (int j = 0; j < Pixels; ++j) {
          if (j < begin || j >= end) continue;
          const Vec<A> value = load(x + j * s.source_pixel);
#pragma GCC unroll 4
          for (int k = 0; k < Channels; ++k) sum[j][k] += value * factor[k];
        }
      }
    }
  }
  if (run.epilogue) {
    Vec<A> results[Pixels][Channels];  // a copy: the sums stay in registers
#pragma GCC unroll 14
    for (int j = 0; j < Pixels; ++j) {
#pragma GCC unroll 4
      for (int k = 0; k < Channels; ++k) results[j][k] = sum[j][k];
    }
    return put_finished(*run.epilogue, results[0], Pixels, Channels, run.to, s.to_pixel, s.to_channel);
  }
#pragma GCC unroll 14
  for (int j = 0; j < Pixels; ++j) {
#pragma GCC unroll 4
    for (int k = 0; k < Channels; ++k) store(run.to + j * s.to_pixel + k * s.to_channel, sum[j][k]);
  }
}

// The run of a number of pixels; Number: 0 up to the most, excluded.
template <class A, int Channels, int... Number>
CNNEXT_INLINE auto lanes_run_of(int64_t pixels, std::integer_sequence<int, Number...>) {
  static constexpr void (*runs[])(const LanesRun<A>&,
                                  const RunSteps&) = {&lanes_run<A, Number + 1, Channels>...};
  return runs[pixels - 1];
}

}  // namespace cnnext::cpu::CNNEXT_ISA
