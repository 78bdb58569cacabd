// The innermost sums of the gradient with respect to the weight with a lane for each group:
//   sum[row of taps][tap] += over pixels of grad_output[pixel] * input[pixel + tap]
//
// A few rows of taps stay in registers over some rows of pixels and are then added to memory: chains are
// short, for accuracy, and independent, for speed. Taps in the padding are left out.
#pragma once

#include "conv_gather.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int kGradTaps = 7;     // at most, of a row
constexpr int kGradTapRows = 3;  // at most
constexpr int kGradLaneSums = CNNEXT_VECTOR_BYTES == 64 ? 14 : 10;

// Rows of taps that are summed together, in [1, kGradTapRows].
constexpr int grad_tap_rows(int taps) {
  return taps * kGradTapRows <= kGradLaneSums ? kGradTapRows : taps * 2 <= kGradLaneSums ? 2 : 1;
}

template <class A>
struct LanesGradRun {
  const A* grad;           // pixel 0 of the first row
  const A* const* source;  // [row of pixels][row of taps]: its first tap at pixel 0; null in the padding
  int64_t rows;            // of pixels
  Range pixels;
  const Range* inside;  // for each tap, the pixels for which it lies inside of the input
  A* sums;
};

struct LanesGradSteps {  // in elements, from one to the next
  int64_t grad_pixel, grad_row, source_pixel, source_tap, sum_tap, sum_row;
};

template <class A, int Rows, int Taps>
CNNEXT_INLINE void add_grad_row(Vec<A> (*sum)[Taps], const A* grad, const A* const* source, Range pixels,
                                Range common, const Range* inside, const LanesGradSteps& s) {
  const A* x[Rows];
  for (int r = 0; r < Rows; ++r) x[r] = source[r] + pixels.begin * s.source_pixel;
  grad += pixels.begin * s.grad_pixel;
  for (int64_t j = pixels.begin; j < pixels.end; ++j, grad += s.grad_pixel) {
    const Vec<A> g = load(grad);
    if (j >= common.begin && j < common.end) {
#pragma GCC unroll 3
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 7
        for (int t = 0; t < Taps; ++t) sum[r][t] += g * load(x[r] + t * s.source_tap);
      }
    } else {
#pragma GCC unroll 7
      for (int t = 0; t < Taps; ++t) {
        if (j < inside[t].begin || j >= inside[t].end) continue;
#pragma GCC unroll 3
        for (int r = 0; r < Rows; ++r) sum[r][t] += g * load(x[r] + t * s.source_tap);
      }
    }
#pragma GCC unroll 3
    for (int r = 0; r < Rows; ++r) x[r] += s.source_pixel;
  }
}

template <class A, int Rows, int Taps>
void lanes_grad(const LanesGradRun<A>& run, const LanesGradSteps& steps) {
  const LanesGradSteps s = steps;
  Range common = run.pixels;  // pixels all of whose taps lie inside
  for (int t = 0; t < Taps; ++t) {
    common = {max_of(common.begin, run.inside[t].begin), min_of(common.end, run.inside[t].end)};
  }
  Vec<A> sum[Rows][Taps] = {};
  const A* grad = run.grad;
  const A* const* source = run.source;
  for (int64_t y = 0; y < run.rows; ++y, grad += s.grad_row, source += Rows) {
    bool all = true;
    for (int r = 0; r < Rows; ++r) all = all && source[r];
    if (all) {
      add_grad_row<A, Rows, Taps>(sum, grad, source, run.pixels, common, run.inside, s);
    } else {
#pragma GCC unroll 3
      for (int r = 0; r < Rows; ++r) {
        if (source[r]) {
          add_grad_row<A, 1, Taps>(sum + r, grad, source + r, run.pixels, common, run.inside, s);
        }
      }
    }
  }
#pragma GCC unroll 3
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 7
    for (int t = 0; t < Taps; ++t) {
      A* to = run.sums + r * s.sum_row + t * s.sum_tap;
      store(to, load(to) + sum[r][t]);
    }
  }
}

template <class A, int Taps = kGradTaps, int Rows = grad_tap_rows(Taps)>
void lanes_grad_of(int64_t rows, int64_t taps, const LanesGradRun<A>& run, const LanesGradSteps& steps) {
  if (taps == Taps && rows == Rows) return lanes_grad<A, Rows, Taps>(run, steps);
  if constexpr (Rows > 1) {
    if (taps == Taps) return lanes_grad_of<A, Taps, Rows - 1>(rows, taps, run, steps);
  }
  if constexpr (Taps > 1) return lanes_grad_of<A, Taps - 1>(rows, taps, run, steps);
}

}  // namespace cnnext::cpu::CNNEXT_ISA
