// Pooling in channels first: input [N, C, D, H, W], output [N, C, O, P, Q], vectors along the rows.
//
// A window is separable: each input row is reduced horizontally once, for all windows that share it, and an
// output row is the reduction of such rows. Rows first keeps torch's order of comparison (row by row, the
// first of equals stays). Reduced rows live in a ring in the cache. A task is a run of consecutive output
// rows, over planes too. Windows wide apart, and adaptive ones, are reduced one by one along the row.
#pragma once

#include "entry.h"
#include "pool_row.h"
#include "pool_run.h"
#include "pool_tables.h"

namespace cnnext::cpu::CNNEXT_ISA {

// Cuts rows into tasks by the shape alone: whole planes where they are small, so that rings are not filled
// twice.
CNNEXT_INLINE int64_t rows_per_task(int64_t rows_per_plane, int64_t elements_per_row) {
  constexpr int64_t kElementsPerTask = 1 << 14;
  const int64_t rows = max_of(1, kElementsPerTask / max_of(1, elements_per_row));
  return rows < rows_per_plane ? max_of(rows, min_of(rows_per_plane, 8))
                               : rows / max_of(1, rows_per_plane) * rows_per_plane;
}

// Whether windows along a row are taken one by one: so wide apart that splitting it into a phase for each
// element of the stride takes longer than they do, or so wide that nearly all of their taps lie outside.
CNNEXT_INLINE bool are_taken_apart(const Window& w, PoolMode mode) {
  return w.stride >= (mode == PoolMode::kMaxOffsets ? 64 : 32) || w.kernel > 64 * w.input;
}

template <class T, PoolMode mode>
struct PoolRows {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;
  static constexpr bool kOffsets = mode == PoolMode::kMaxOffsets;
  static constexpr bool kInPlace = std::is_same_v<T, A>;  // a row need not be converted

  // A horizontally reduced row of the window, and the number of its first tap.
  struct Row {
    const A* value;
    const Offset<A>* offset;
    Offset<A> tap;
  };
  struct Local {  // of one thread
    PhasedRow<T> phases;
    RowRing ring;
    A* value;
    Offset<A>* offset;
    Row* rows;
  };

  PoolRows(const PoolProblem& p, const PoolBuffers& b, char* workspace)
      : problem(p),
        shape(p.shape),
        w(p.shape.axis[2]),
        one_by_one(shape.adaptive[2] || are_taken_apart(w, mode)),
        pitch(round_up(p.shape.axis[2].output, L)),
        input(static_cast<const T*>(b.input)),
        output(static_cast<T*>(b.output)),
        offsets(b.offsets) {
    scratch.base = workspace;
    for (int a = 0; a < kAxes; ++a) axis[a].lay_out(shape, a, false, scratch);
    if (mode == PoolMode::kAverage) divisor = scratch.take<A>(pitch);
    if (kOffsets) first_tap = scratch.take<Offset<A>>(pitch);
    if (!one_by_one) tap_at = scratch.take<int64_t>(w.kernel);
    locals = scratch.take_layouts(p.threads, [&](ScratchLayout& own) { local(own); });
  }

  int64_t workspace_bytes() const { return scratch.bytes; }

  Local local(ScratchLayout& own) const {
    Local l;
    l.phases = one_by_one ? PhasedRow<T>(1, 0, kInPlace ? 0 : w.input, 0)
                          : PhasedRow<T>(w.stride, w.padding, w.input,
                                         pitch + (w.kernel - 1) * w.dilation / w.stride);
    l.phases.data = own.take<A>(l.phases.elements());
    const int64_t depths = shape.window_extent(0);
    l.ring = RowRing(depths, depths == 1 ? shape.window_extent(1) : shape.axis[1].input);
    l.ring.key = own.take<int64_t>(l.ring.slots());
    l.value = own.take<A>(l.ring.slots() * pitch);
    l.offset = kOffsets ? own.take<Offset<A>>(l.ring.slots() * pitch) : nullptr;
    l.rows = own.take<Row>(most_taps(shape.axis[0]) * most_taps(shape.axis[1]));
    return l;
  }

  void run(const Parallel& parallel) const {
    if constexpr (mode == PoolMode::kMax) {
      const bool one_row = shape.input_pixels() == w.input && shape.taps() == w.kernel;
      if (one_row && with_row_windows(problem, [&](auto windows) { run_single_rows(parallel, windows); }))
        return;
    }
    for (int a = 0; a < kAxes; ++a) axis[a].fill(shape, a);
    for (int64_t q = 0; q < pitch; ++q) {
      if (divisor) divisor[q] = q < w.output ? static_cast<A>(problem.divisor(2, q)) : A(1);
      if (first_tap) first_tap[q] = q < w.output ? static_cast<Offset<A>>(axis[2].span[q].tap) : 0;
    }
    ScratchLayout nothing;
    const PhasedRow<T> phases = local(nothing).phases;
    for (int64_t t = 0; tap_at && t < w.kernel; ++t) tap_at[t] = phases.tap(t * w.dilation);
    const int64_t per_plane = shape.axis[0].output * shape.axis[1].output;
    const int64_t rows = shape.N * shape.C * per_plane, per_task = rows_per_task(per_plane, w.output * 2);
    parallel(ceil_div(rows, per_task), [&](int64_t task, int thread) {
      ScratchLayout own{locals[thread]};
      Local l = local(own);
      l.phases.fill(neutral());
      l.ring.clear();
      const int64_t end = min_of(rows, (task + 1) * per_task);
      RowPosition row(task * per_task, shape.axis[0].output, shape.axis[1].output);
      for (; row.number < end; row.next(shape.axis[0].output, shape.axis[1].output)) {
        output_row(l, row, (end - row.number) * w.output);
      }
    });
  }

  // Planes of one row: windows straight from memory, but for those at the ends.
  template <class Windows>
  void run_single_rows(const Parallel& parallel, Windows windows) const {
    // No less than L windows read.
    constexpr int64_t kReach = round_up(Windows::kStride * L + max_of(L, Windows::kTaps - 1), L);
    const int64_t rows = shape.N * shape.C, per_task = rows_per_task(1, w.output * 2);
    parallel(ceil_div(rows, per_task), [&](int64_t task, int) {
      alignas(kAlignment) A padded[kReach + L];
      const int64_t end = min_of(rows, (task + 1) * per_task);
      for (int64_t n = task * per_task; n < end; ++n) {
        const T* row = input + n * w.input;
        T* to = output + n * w.output;
        for (int64_t q = 0; q < w.output; q += L) {
          const int64_t x = q * w.stride - w.padding, first = max_of(x, 0);
          Vec<A> value;
          if (x >= 0 && x + kReach <= w.input) {
            value = maxima(row + x, windows);
          } else {
            for (int64_t i = 0; i < kReach; i += L) store(padded + i, broadcast<A>(neutral()));
            for (int64_t i = first; i < min_of(w.input, x + kReach); i += L) {
              store_part(padded + i - x, load_part(row + i, (rows - n) * w.input - i), w.input - i);
            }
            value = maxima(padded, windows);
          }
          store_part(to + q, value, (end - n) * w.output - q);
        }
      }
    });
  }
  // Of L windows, the first of which begins here.
  template <class E, class Windows>
  __attribute__((always_inline)) static Vec<A> maxima(const E* from, Windows) {
    Vec<A> best = load(from);
    if constexpr (Windows::kStride == 1) {
      for (int t = 1; t < Windows::kTaps; ++t) best = larger(best, load(from + t));
    } else {
      Vec<A> odd, even;
      deinterleave<A>(best, load(from + L), even, odd);
      best = larger(even, odd);
      if constexpr (Windows::kTaps == 3) best = larger(best, slide_lanes<A, 1>(even, load(from + 2 * L)));
    }
    return best;
  }

  static A neutral() { return mode == PoolMode::kAverage ? A(0) : lowest(A{}); }

  // `room`: elements of the output from this row on that are the task's own.
  void output_row(Local& l, const RowPosition& row, int64_t room) const {
    const Window &d = shape.axis[0], &h = shape.axis[1];
    const Span sd = axis[0].span[row.depth], sh = axis[1].span[row.height];
    int64_t count = 0;
    for (int64_t z = 0; z < sd.count; ++z) {
      for (int64_t y = 0; y < sh.count; ++y) {
        const int64_t depth = sd.index + z * d.dilation, height = sh.index + y * h.dilation;
        const int64_t slot = l.ring.slot(depth, height),
                      key = (row.plane * d.input + depth) * h.input + height;
        if (l.ring.key[slot] != key) {
          l.ring.key[slot] = key;
          const int64_t total = shape.N * shape.C * shape.input_pixels();
          reduce_row(l, input + key * w.input, total - key * w.input, l.value + slot * pitch,
                     l.offset + slot * pitch);
        }
        l.rows[count++] = {l.value + slot * pitch, l.offset + slot * pitch,
                           static_cast<Offset<A>>(((sd.tap + z) * h.kernel + sh.tap + y) * w.kernel)};
      }
    }
    A over_rows = 1;
    if (mode == PoolMode::kAverage)
      over_rows = static_cast<A>(problem.divisor(0, row.depth) * problem.divisor(1, row.height));
    const int64_t no_row_tap = (sd.tap * h.kernel + sh.tap) * w.kernel;
    for (int64_t q = 0; q < w.output; q += L) {
      Vec<A> value = broadcast<A>(neutral());
      if constexpr (mode == PoolMode::kAverage) {
        for (int64_t i = 0; i < count; ++i) value += load(l.rows[i].value + q);
        value /= load(divisor + q) * broadcast<A>(over_rows);
      } else if constexpr (mode == PoolMode::kMax) {
        if (count > 0) value = load(l.rows[0].value + q);
        for (int64_t i = 1; i < count; ++i) value = larger(value, load(l.rows[i].value + q));
      } else {
        OffsetVec<A> offset;
        if (count == 0) {
          offset = load_unaligned<OffsetVec<A>>(first_tap + q) + static_cast<Offset<A>>(no_row_tap);
        } else {
          value = load(l.rows[0].value + q);
          offset = load_unaligned<OffsetVec<A>>(l.rows[0].offset + q) + l.rows[0].tap;
        }
        for (int64_t i = 1; i < count; ++i) {
          const Vec<A> next = load(l.rows[i].value + q);
          const OffsetVec<A> next_offset = load_unaligned<OffsetVec<A>>(l.rows[i].offset + q) + l.rows[i].tap;
          const auto stay = stays(value, next);
          value = stay ? value : next;
          offset = stay ? offset : next_offset;
        }
        store_offsets<A>(problem, offsets, row.number * w.output + q, offset, room - q);
      }
      store_part(output + row.number * w.output + q, value, room - q);
    }
  }

  void reduce_row(const Local& l, const T* row, int64_t available, A* value, Offset<A>* offset) const {
    if constexpr (kInPlace) {
      if (one_by_one) return reduce_windows(row, available, value, offset);
    }
    l.phases.load_row(row, available, neutral());
    if (one_by_one) return reduce_windows(l.phases.data, l.phases.elements(), value, offset);
    if (w.kernel == 2) return reduce_taps<2>(l, value, offset);
    if (w.kernel == 3) return reduce_taps<3>(l, value, offset);
    reduce_taps<0>(l, value, offset);
  }

  template <int kTaps>  // 0: any number of them
  void reduce_taps(const Local& l, A* value, Offset<A>* offset) const {
    const int64_t taps = kTaps ? kTaps : w.kernel;
    for (int64_t q = 0; q < w.output; q += L) {
      const A* from = l.phases.data + q;
      Vec<A> best = load(from);  // tap 0, or its padding, which no other value fails to take over
      OffsetVec<A> best_tap = {};
      if constexpr (kOffsets) best_tap = load_unaligned<OffsetVec<A>>(first_tap + q);
      for (int64_t t = 1; t < taps; ++t) {
        const Vec<A> next = load(from + tap_at[t]);
        if constexpr (mode == PoolMode::kAverage) {
          best += next;
        } else if constexpr (mode == PoolMode::kMax) {
          best = larger(best, next);
        } else {
          const auto stay = stays(best, next);
          best = stay ? best : next;
          best_tap = stay ? best_tap : static_cast<Offset<A>>(t) - OffsetVec<A>{};
        }
      }
      store(value + q, best);
      if constexpr (kOffsets) store_unaligned(offset + q, best_tap);
    }
  }

  void reduce_windows(const A* row, int64_t available, A* value, Offset<A>* offset) const {
    for (int64_t q = 0; q < w.output; ++q) {
      const Span span = axis[2].span[q];
      const A* from = row + span.index;
      A best = neutral();
      Offset<A> best_tap = 0;
      if (w.dilation == 1 && span.count >= L) {
        if constexpr (mode == PoolMode::kAverage) {
          best = sum_run(from, span.count, available - span.index);
        } else {
          best = maximum_run<kOffsets>(from, span.count, available - span.index, &best_tap);
        }
      } else {
        for (int64_t t = 0; t < span.count; ++t, from += w.dilation) {
          if constexpr (mode == PoolMode::kAverage) {
            best += *from;
          } else if (*from > best || *from != *from) {
            best = *from;
            best_tap = static_cast<Offset<A>>(t);
          }
        }
      }
      value[q] = best;
      if constexpr (kOffsets) offset[q] = first_tap[q] + best_tap;
    }
  }

  const PoolProblem& problem;
  const PoolShape& shape;
  const Window& w;
  bool one_by_one;  // along a row
  int64_t pitch;    // of a reduced row, in elements
  const T* input;
  T* output;
  void* offsets;
  ScratchLayout scratch;
  PerThread<char> locals;
  AxisTable axis[kAxes];
  A* divisor = nullptr;            // [pitch], of the last axis
  Offset<A>* first_tap = nullptr;  // [pitch], of the last axis
  int64_t* tap_at = nullptr;       // [S], where the taps of the first window are in a phased row
};

constexpr const char* kRowsSummary = "separable, vectors along the rows";
constexpr PoolKernel kMaxPoolRows = entry<ByType<InMode<PoolRows, PoolMode::kMax>::Of>>(
    "rows", kRowsSummary, layout_refuses<Layout::kChannelsFirst>);
constexpr PoolKernel kMaxPoolOffsetsRows = entry<ByType<InMode<PoolRows, PoolMode::kMaxOffsets>::Of>>(
    "rows", kRowsSummary, layout_refuses<Layout::kChannelsFirst>);
constexpr PoolKernel kAvgPoolRows = entry<ByType<InMode<PoolRows, PoolMode::kAverage>::Of>>(
    "rows", kRowsSummary, layout_refuses<Layout::kChannelsFirst>);

}  // namespace cnnext::cpu::CNNEXT_ISA
