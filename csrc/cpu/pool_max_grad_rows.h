// The gradient of max pooling in channels first, vectors along the rows: grad_output and offsets [N, C, P,
// Q], grad_input [N, C, H, W].
//
// For each column tap, the gradients whose offset names that tap are added up over the rows of windows that
// reach over an input row, output beneath output; an input is then the sum of one such number for each column
// tap, some places to the left or to the right. `stride` input rows share what they read, and each input is
// written once.
//
// With an output for each `stride` x `stride` inputs rows and planes follow each other as one run: what
// stands beyond the end of a row has no tap on its inputs, and no offset leads there. Where the last windows
// are missing, the run is a copy with zeros in their place.
#pragma once

#include "entry.h"
#include "pool_row.h"
#include "pool_tables.h"

namespace cnnext::cpu::CNNEXT_ISA {

// Windows along an axis, known to the compiler: kTaps taps, kStride apart, the first of which lies kPadding
// before the axis. Tap t of output j + shift(t) reads input j * kStride + phase(t).
template <int kTaps_, int kStride_, int kPadding_>
struct FixedWindow {
  static constexpr int kTaps = kTaps_, kStride = kStride_, kPadding = kPadding_;
  static constexpr int phase(int t) { return (t - kPadding + kStride * kPadding) % kStride; }
  static constexpr int shift(int t) { return (phase(t) - (t - kPadding)) / kStride; }
  static int64_t missing(const Window& w) { return ceil_div(w.input, kStride) - w.output; }
  static bool fits(const Window& w) {
    return w.kernel == kTaps && w.stride == kStride && w.padding == kPadding && w.dilation == 1 &&
           (missing(w) == 0 || missing(w) == 1);
  }
};

template <class T, class Rows, class Columns>
struct MaxPoolGradRows {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;
  static constexpr int kFirst = Rows::shift(Rows::kTaps - 1), kLast = Rows::shift(0);  // shifts of rows
  static constexpr int kRows = Rows::kStride, kStride = Columns::kStride;

  struct Sums {  // of gradients, for each of `stride` rows and each column tap
    Vec<A> of[kRows][Columns::kTaps];
  };
  struct Run {  // of outputs, from the first row over the inputs on
    const T* grad;
    const uint8_t* offsets;
  };
  struct Local {  // of one thread
    T* grad;      // copies of outputs
    uint8_t* offsets;
    T* rows[2];  // of inputs
    T* run;      // of inputs in the order of memory, to be streamed from
  };

  MaxPoolGradRows(const PoolProblem& p, const PoolBuffers& b, char* workspace)
      : input(p.shape.axis[2].input),
        input_height(p.shape.axis[1].input),
        width(ceil_div(input, kStride)),
        height(ceil_div(input_height, kRows)),
        outputs(p.shape.axis[2].output),
        outputs_height(p.shape.axis[1].output),
        all_rows(p.shape.N * p.shape.C * p.shape.axis[0].output * height),
        grad_output(static_cast<const T*>(b.output)),
        offsets(static_cast<const uint8_t*>(b.offsets)),
        grad_input(static_cast<T*>(b.input)),
        streamed(beyond_caches<T>(p.shape)),
        run_rows(max_of(1, (streamed ? kOutputs / 2 : kOutputs) / width)) {
    for (int t = 0; t < Rows::kTaps * Columns::kTaps; ++t) keys[t] = OffsetMatch<A>::key(t);
    scratch.base = workspace;
    locals = scratch.take_layouts(p.threads, [&](ScratchLayout& own) { local(own); });
  }

  void run(const Parallel& parallel) const {
    const int64_t runs = ceil_div(all_rows, run_rows);
    const int64_t per_task = max_of(1, (1 << 14) / (kRows * kStride * run_rows * width));
    parallel(ceil_div(runs, per_task), [&](int64_t task, int thread) {
      ScratchLayout own{locals[thread]};
      const Local l = local(own);
      for (int64_t n = task * per_task; n < min_of(runs, (task + 1) * per_task); ++n) {
        input_rows(l, n * run_rows, min_of(run_rows, all_rows - n * run_rows));
      }
      if (streamed) end_streams();
    });
  }

  int64_t workspace_bytes() const { return scratch.bytes; }

 private:
  static constexpr int64_t kOutputs = 1 << 9;  // of a run: what is kept of it stays in the innermost cache

  Local local(ScratchLayout& own) const {
    const int64_t copied = (run_rows + kLast - kFirst) * width + L, stored = kStride * (run_rows * width + L);
    Local l;
    l.grad = own.take<T>(copied);
    l.offsets = own.take<uint8_t>(copied);
    for (int f = 0; f < kRows; ++f) l.rows[f] = own.take<T>(stored);
    l.run = own.take<T>(streamed ? run_rows * kRows * input + L : 0);
    return l;
  }

  // The inputs beneath `count` rows of outputs, which are numbered through all planes.
  void input_rows(const Local& l, int64_t first, int64_t count) const {
    const Run from = find(l, first + kFirst, first + count + kLast);
    T* const result = grad_input + (first / height * input_height + first % height * kRows) * input;
    T* to = streamed ? l.run : result;
    if (kStride == 1) {
      store_run(from, count * width, to, nullptr);
      to += count * width;
    } else {
      store_run(from, count * width, l.rows[0], l.rows[kRows - 1]);
      to = copy_rows(l, first, count, to);
    }
    if (streamed) stream_copy(result, l.run, to - l.run);
  }

  // To their places one after the other, the end of which is returned.
  T* copy_rows(const Local& l, int64_t first, int64_t count, T* to) const {
    for (int64_t r = 0, y = first % height; r < count; ++r, y = y + 1 < height ? y + 1 : 0) {
      for (int f = 0; f < kRows && y * kRows + f < input_height; ++f, to += input) {
        const T* row = l.rows[f] + r * kStride * width;
        if (r + 1 < count && input >= L / 2) {  // what is written beyond the row is written again later
          for (int64_t x = 0; x < input; x += L) store_unaligned(to + x, load_unaligned<Stored<T>>(row + x));
        } else {
          copy_row(to, row, input);
        }
      }
    }
    return to;
  }

  // Rows of outputs [begin, end) and a vector more, where they are or in a copy with zeros for what is
  // missing.
  Run find(const Local& l, int64_t begin, int64_t end) const {
    const bool complete = outputs == width && outputs_height == height;
    if (complete && begin >= 0 && end * width + L <= all_rows * width) {
      return {grad_output + begin * width, offsets + begin * width};
    }
    T* to = l.grad;
    uint8_t* offsets_to = l.offsets;
    int64_t plane = max_of(begin, 0) / height, y = begin - plane * height;
    for (int64_t row = begin; row < end; ++row, ++y, to += width, offsets_to += width) {
      if (y == height) {
        ++plane;
        y = 0;
      }
      if (y >= 0 && y < outputs_height && row < all_rows) {
        const int64_t from = (plane * outputs_height + y) * outputs;
        copy_row(to, grad_output + from, outputs);
        copy_row(offsets_to, offsets + from, outputs);
        if (outputs < width) to[outputs] = T{};
      } else {
        __builtin_memset(to, 0, width * sizeof(T));
      }
    }
    __builtin_memset(to, 0, L * sizeof(T));
    return {l.grad, l.offsets};
  }

  // The inputs beneath a run of `count` outputs, in one or two rows without end. With a stride whole vectors
  // are stored.
  void store_run(Run from, int64_t count, T* to, T* to2) const {
    constexpr auto kTaps = std::make_integer_sequence<int, Columns::kTaps>();
    Sums before = {}, here = sum_outputs(from), after;
    for (int64_t q = 0; q < count; q += L, to += kStride * L, to2 += kStride * L) {
      from = {from.grad + L, from.offsets + L};
      after = q + L < count ? sum_outputs(from) : Sums{};
      const int64_t room = kStride == 1 ? count - q : L;
      store_inputs(before.of[0], here.of[0], after.of[0], to, room, kTaps);
      if constexpr (kRows == 2) store_inputs(before.of[1], here.of[1], after.of[1], to2, room, kTaps);
      before = here;
      here = after;
    }
  }

  // Of L outputs, sums over the rows.
  __attribute__((always_inline)) Sums sum_outputs(Run from) const {
    Sums sums;
#pragma GCC unroll 8
    for (int s = kFirst; s <= kLast; ++s, from.grad += width, from.offsets += width) {
      const OffsetMatch<A> match(from.offsets);
      const Vec<A> value = load(from.grad);
#pragma GCC unroll 8
      for (int y = 0; y < Rows::kTaps; ++y) {
        if (Rows::shift(y) != s) continue;
        const bool first = y + kRows >= Rows::kTaps;  // of the taps that read the row
#pragma GCC unroll 8
        for (int x = 0; x < Columns::kTaps; ++x) {
          Vec<A>& sum = sums.of[Rows::phase(y)][x];
          const auto& key = keys[y * Columns::kTaps + x];
          sum = first ? match.pick(key, value) : match.add(sum, key, value);
        }
      }
    }
    return sums;
  }

  template <int... kTap>
  __attribute__((always_inline)) static void store_inputs(const Vec<A>* before, const Vec<A>* here,
                                                          const Vec<A>* after, T* to, int64_t room,
                                                          std::integer_sequence<int, kTap...>) {
    Vec<A> phase[kStride] = {};
    ((phase[Columns::phase(kTap)] += shifted<Columns::shift(kTap)>(before[kTap], here[kTap], after[kTap])),
     ...);
    if constexpr (kStride == 2) interleave<A>(phase[0], phase[1], phase[0], phase[1]);
    store_part(to, phase[0], room);
    if constexpr (kStride == 2) store(to + L, phase[1]);
  }

  // The lanes `kBy` places after those of `here`.
  template <int kBy>
  __attribute__((always_inline)) static Vec<A> shifted(Vec<A> before, Vec<A> here, Vec<A> after) {
    if constexpr (kBy == 0) {
      return here;
    } else if constexpr (kBy > 0) {
      return slide_lanes<A, kBy>(here, after);
    } else {
      return slide_lanes<A, int(L) + kBy>(before, here);
    }
  }

  int64_t input, input_height;  // extents
  int64_t width, height;        // of the outputs, those included that are missing
  int64_t outputs, outputs_height;
  int64_t all_rows;  // of outputs
  const T* grad_output;
  const uint8_t* offsets;
  T* grad_input;
  bool streamed;     // stores pass the caches
  int64_t run_rows;  // rows of outputs that are worked on at once, less where streams run beside
  ScratchLayout scratch;
  PerThread<char> locals;
  typename OffsetMatch<A>::Key keys[Rows::kTaps * Columns::kTaps];
};

// run(rows, columns) if there is a kernel for these windows.
template <class Run>
bool with_fixed_windows(const PoolShape& shape, const Run& run) {
  const auto is = [&](auto columns) {
    const FixedWindow<1, 1, 0> one;
    if (shape.adaptive[1] || shape.adaptive[2] || !one.fits(shape.axis[0]) || !columns.fits(shape.axis[2])) {
      return false;
    }
    if (columns.fits(shape.axis[1])) {
      run(columns, columns);
    } else if (one.fits(shape.axis[1])) {
      run(one, columns);
    } else {
      return false;
    }
    return true;
  };
  return is(FixedWindow<2, 2, 0>()) || is(FixedWindow<3, 2, 0>()) || is(FixedWindow<3, 2, 1>()) ||
         is(FixedWindow<3, 1, 1>()) || is(FixedWindow<5, 1, 2>());
}

inline const char* max_grad_rows_refuses(const PoolProblem& p) {
  constexpr int64_t kShort = 32;
  if (const char* reason = layout_refuses<Layout::kChannelsFirst>(p)) return reason;
  bool copies = false;
  const bool fits = with_fixed_windows(p.shape, [&](auto rows, auto columns) {
    copies = rows.missing(p.shape.axis[1]) + columns.missing(p.shape.axis[2]) > 0;
  });
  if (!fits) return "takes windows of usual sizes";
  return copies && p.shape.axis[2].output < kShort ? "takes short rows only where no window is missing"
                                                   : nullptr;
}

struct MaxPoolGradRowsClasses {
  template <class Visit>
  static void with(const PoolProblem& p, const PoolBuffers& b, char* workspace, Visit&& visit) {
    with_type(p.dtype, [&](auto* tag) {
      with_fixed_windows(p.shape, [&](auto rows, auto columns) {
        visit(MaxPoolGradRows<Pointee<decltype(tag)>, decltype(rows), decltype(columns)>(p, b, workspace));
      });
    });
  }
};

constexpr PoolKernel kMaxPoolGradRows = entry<MaxPoolGradRowsClasses>(
    "rows", "column taps in turn, vectors along the rows", max_grad_rows_refuses);

}  // namespace cnnext::cpu::CNNEXT_ISA
