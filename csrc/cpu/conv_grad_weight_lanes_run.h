// The innermost sums of the gradient with respect to the weight with a lane for each group:
//   sum[row of taps][tap] += over pixels of grad_output[pixel] * input[pixel + tap]
//
// A few rows of taps stay in registers over some rows of pixels and are then added to memory: chains are
// short, for accuracy, and independent, for speed. Taps in the padding are left out.
#pragma once

#include "range.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int kGradTaps = 7;         // at most, of a row
constexpr int kGradTapRows = 3;      // at most
constexpr int kGradRunChannels = 2;  // of grad_output, which share what is loaded of the input
constexpr int kGradSums = CNNEXT_VECTOR_BYTES == 64 ? 28 : 12;  // vectors in registers

// Rows of taps that are summed together.
constexpr int grad_tap_rows(int taps, int channels) {
  return taps * channels * kGradTapRows <= kGradSums ? kGradTapRows
         : taps * channels * 2 <= kGradSums          ? 2
                                                     : 1;
}

template <class A>
struct LanesGradRun {
  const A *grad, *source;  // pixel 0 of the first row; the first tap of pixel 0 in a row at offset zero
  const int64_t* offsets;  // [row of pixels][row of taps] from source; negative in the padding
  int64_t rows;            // of pixels
  Range pixels;
  const Range* inside;  // for each tap, the pixels for which it lies inside of the input
  A* sums;
};

struct LanesGradSteps {  // in elements, from one to the next
  int64_t grad_pixel, grad_row, grad_channel, source_pixel, source_tap, sum_tap, sum_row, sum_channel;
  int64_t offset_row;
};

template <class A, int Channels, int Rows, int Taps>
CNNEXT_INLINE void add_grad_row(Vec<A> (*sum)[Taps][Channels], const A* grad, const A* source,
                                const int64_t* offsets, Range common, const LanesGradRun<A>& run,
                                const LanesGradSteps& s) {
  const A* x[Rows];
  for (int r = 0; r < Rows; ++r) x[r] = source + offsets[r] + run.pixels.begin * s.source_pixel;
  grad += run.pixels.begin * s.grad_pixel;
  for (int64_t j = run.pixels.begin; j < run.pixels.end; ++j, grad += s.grad_pixel) {
    Vec<A> g[Channels];
#pragma GCC unroll 2
    for (int k = 0; k < Channels; ++k) g[k] = load(grad + k * s.grad_channel);
    const bool all = j >= common.begin && j < common.end;
    if (all) {
#pragma GCC unroll 3
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 7
        for (int t = 0; t < Taps; ++t) {
          const Vec<A> value = load(x[r] + t * s.source_tap);
#pragma GCC unroll 2
          for (int k = 0; k < Channels; ++k) sum[r][t][k] += g[k] * value;
        }
      }
    } else {
#pragma GCC unroll 7
      for (int t = 0; t < Taps; ++t) {
        if (j < run.inside[t].begin || j >= run.inside[t].end) continue;
#pragma GCC unroll 3
        for (int r = 0; r < Rows; ++r) {
          const Vec<A> value = load(x[r] + t * s.source_tap);
#pragma GCC unroll 2
          for (int k = 0; k < Channels; ++k) sum[r][t][k] += g[k] * value;
        }
      }
    }
#pragma GCC unroll 3
    for (int r = 0; r < Rows; ++r) x[r] += s.source_pixel;
  }
}

template <class A, int Channels, int Rows, int Taps>
void lanes_grad(const LanesGradRun<A>& run, const LanesGradSteps& steps) {
  const LanesGradSteps s = steps;
  Range common = run.pixels;  // pixels all of whose taps lie inside
  for (int t = 0; t < Taps; ++t) {
    common = {max_of(common.begin, run.inside[t].begin), min_of(common.end, run.inside[t].end)};
  }
  Vec<A> sum[Rows][Taps][Channels] = {};
  const A* grad = run.grad;
  const int64_t* offsets = run.offsets;
  for (int64_t y = 0; y < run.rows; ++y, grad += s.grad_row, offsets += s.offset_row) {
    bool all = true;
    for (int r = 0; r < Rows; ++r) all = all && offsets[r] >= 0;
    if (all) {
      add_grad_row<A, Channels, Rows, Taps>(sum, grad, run.source, offsets, common, run, s);
    } else {
#pragma GCC unroll 3
      for (int r = 0; r < Rows; ++r) {
        if (offsets[r] < 0) continue;
        add_grad_row<A, Channels, 1, Taps>(sum + r, grad, run.source, offsets + r, common, run, s);
      }
    }
  }
#pragma GCC unroll 3
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 7
    for (int t = 0; t < Taps; ++t) {
#pragma GCC unroll 2
      for (int k = 0; k < Channels; ++k) {
        A* to = run.sums + r * s.sum_row + t * s.sum_tap + k * s.sum_channel;
        store(to, load(to) + sum[r][t][k]);
      }
    }
  }
}

template <class A, int Channels, int Taps = kGradTaps, int Rows = grad_tap_rows(Taps, Channels)>
void lanes_grad_of(int64_t rows, int64_t taps, const LanesGradRun<A>& run, const LanesGradSteps& steps) {
  if (taps == Taps && rows == Rows) return lanes_grad<A, Channels, Rows, Taps>(run, steps);
  if constexpr (Rows > 1) {
    if (taps == Taps) return lanes_grad_of<A, Channels, Taps, Rows - 1>(rows, taps, run, steps);
  }
  if constexpr (Taps > 1) return lanes_grad_of<A, Channels, Taps - 1>(rows, taps, run, steps);
}

}  // namespace cnnext::cpu::CNNEXT_ISA
