// What kernels of pooling share: their modes, why some refuse, and windows and their inverse, tabulated for
// each axis.
#pragma once

#include "scratch.h"

namespace cnnext::cpu::CNNEXT_ISA {

enum class PoolMode { kMax, kMaxOffsets, kAverage };

// The classes of one mode, of a template for all modes.
template <template <class, PoolMode> class Class, PoolMode mode>
struct InMode {
  template <class T>
  using Of = Class<T, mode>;
};

// An output whose window reaches over some input, and the tap that reads it.
struct Reader {
  int64_t output, tap;
};

// Taps of one window of an axis that fall inside the input, at most.
inline int64_t most_taps(const Window& w) { return min_of(w.kernel, w.input); }

struct AxisTable {
  Span* span = nullptr;  // [output]
  // The readers of input i are reader[begin[i]] to reader[begin[i + 1] - 1], in the order of the outputs.
  int64_t* begin = nullptr;  // [input + 2]: the last is for `fill`, which counts in it
  Reader* reader = nullptr;

  void lay_out(const PoolShape& shape, int a, bool inverse, ScratchLayout& scratch) {
    const Window& w = shape.axis[a];
    span = scratch.take<Span>(w.output);
    if (!inverse) return;
    begin = scratch.take<int64_t>(w.input + 2);
    reader = scratch.take<Reader>(w.output * most_taps(w));
  }

  void fill(const PoolShape& shape, int a) const {
    const Window& w = shape.axis[a];
    for (int64_t o = 0; o < w.output; ++o) span[o] = shape.span(a, o);
    if (!begin) return;
    // Readers are counted two places up, so that placing them turns counts into beginnings.
    for (int64_t i = 0; i < w.input + 2; ++i) begin[i] = 0;
    for (int64_t o = 0; o < w.output; ++o) {
      for (int64_t j = 0; j < span[o].count; ++j) ++begin[span[o].index + j * w.dilation + 2];
    }
    for (int64_t i = 2; i < w.input + 2; ++i) begin[i] += begin[i - 1];
    for (int64_t o = 0; o < w.output; ++o) {
      for (int64_t j = 0; j < span[o].count; ++j) {
        reader[begin[span[o].index + j * w.dilation + 1]++] = {o, span[o].tap + j};
      }
    }
  }
};

// Why a kernel of one layout refuses a problem, or null.
template <Layout taken>
const char* layout_refuses(const PoolProblem& p) {
  if (p.layout == taken) return nullptr;
  return taken == Layout::kChannelsLast ? "takes channels last" : "takes channels first";
}

// Why a kernel does without the readers along the first `axes` axes, or null: of wide windows close to each
// other they are too many.
inline const char* readers_refuse(const PoolShape& shape, int axes) {
  constexpr double kMostBytes = 64 << 20;
  double readers = 0;
  for (int a = 0; a < axes; ++a) readers += double(shape.axis[a].output) * double(most_taps(shape.axis[a]));
  return readers * sizeof(Reader) > kMostBytes ? "its tables of windows would be large" : nullptr;
}
inline const char* readers_refuse(const PoolProblem& p) { return readers_refuse(p.shape, kAxes); }

// Why the first of two predicates refuses, or else the second, or null.
template <const char* (*first)(const PoolProblem&), const char* (*second)(const PoolProblem&)>
const char* first_refusal(const PoolProblem& p) {
  const char* reason = first(p);
  return reason ? reason : second(p);
}

// Windows along a row that the compiler knows, kTaps taps each, kStride apart; 0 where it does not.
template <int kTaps_, int kStride_>
struct RowWindows {
  static constexpr int kTaps = kTaps_, kStride = kStride_;
};

// run(windows) where they are such windows.
template <class Run>
bool with_row_windows(const PoolProblem& p, const Run& run) {
  const Window& w = p.shape.axis[2];
  const auto is = [&](auto windows) {
    if (w.kernel != windows.kTaps || w.stride != windows.kStride) return false;
    run(windows);
    return true;
  };
  if (p.shape.adaptive[2] || w.dilation != 1 || p.wide_offsets()) return false;
  return is(RowWindows<2, 2>()) || is(RowWindows<3, 2>()) || is(RowWindows<3, 1>()) || is(RowWindows<5, 1>());
}

}  // namespace cnnext::cpu::CNNEXT_ISA
