// The gradient of average pooling in channels first: grad_output [N, C, O, P, Q], grad_input [N, C, D, H, W],
// vectors along the rows.
//
// Each row of grad_output is divided and spread over the columns of its windows once; an input row is the sum
// of such rows and is written once. Its positions fall into `stride` phases (grad_input_phase): in each of
// them the windows over consecutive positions are consecutive. Windows that are wide apart or do not overlap,
// and adaptive ones, are spread one by one.
#pragma once

#include "pool_rows.h"

namespace cnnext::cpu::CNNEXT_ISA {

template <class T>
struct AvgPoolGradRows {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

  struct Local {  // of one thread
    PhasedRow<T> grad_output, grad_input;
    RowRing ring;
    A* columns;      // a spread row in each slot
    const A** rows;  // those over one input row
  };

  AvgPoolGradRows(const PoolProblem& p, const PoolBuffers& b, char* workspace)
      : problem(p),
        shape(p.shape),
        w(p.shape.axis[2]),
        separate(!shape.adaptive[2] && w.stride > 2 && w.stride >= w.kernel),
        one_by_one(separate || shape.adaptive[2] || are_taken_apart(w, PoolMode::kAverage)),
        strides(one_by_one ? 1 : min_of(w.stride, w.input)),
        grad_output(static_cast<const T*>(b.output)),
        grad_input(static_cast<T*>(b.input)) {
    scratch.base = workspace;
    for (int a = 0; a < kAxes; ++a) axis[a].lay_out(shape, a, a < 2, scratch);
    divisor = scratch.take<A>(round_up(w.output, L));
    if (!one_by_one) phase = scratch.take<PhaseAxis>(strides);
    left = 0;
    right = w.output;
    for (int64_t f = 0; f < strides && !one_by_one; ++f) {
      const PhaseAxis x = grad_input_phase(w, f);
      if (phase) phase[f] = x;
      left = max_of(left, -x.offset);
      right = max_of(right, round_up(x.count, L) + x.offset + x.taps * x.offset_step);
    }
    pitch = PhasedRow<T>(strides, 0, w.input, ceil_div(w.input, strides)).elements();
    locals = scratch.take_layouts(p.threads, [&](ScratchLayout& own) { local(own); });
  }

  int64_t workspace_bytes() const { return scratch.bytes; }

  Local local(ScratchLayout& own) const {
    Local l;
    l.grad_output = PhasedRow<T>(1, left, w.output, left + right);
    l.grad_output.data = own.take<A>(l.grad_output.elements());
    l.grad_input = PhasedRow<T>(strides, 0, w.input, ceil_div(w.input, strides));
    l.grad_input.data = own.take<A>(l.grad_input.elements());
    l.ring = RowRing(shape.windows_over_input(0),
                     shape.window_extent(0) == 1 ? shape.windows_over_input(1) : shape.axis[1].output);
    l.ring.key = own.take<int64_t>(l.ring.slots());
    l.columns = own.take<A>(l.ring.slots() * pitch);
    l.rows = own.take<const A*>(shape.windows_over_input(0) * shape.windows_over_input(1));
    return l;
  }

  void run(const Parallel& parallel) const {
    for (int a = 0; a < kAxes; ++a) axis[a].fill(shape, a);
    for (int64_t q = 0; q < round_up(w.output, L); ++q)
      divisor[q] = q < w.output ? static_cast<A>(problem.divisor(2, q)) : A(1);
    const int64_t per_plane = shape.axis[0].input * shape.axis[1].input;
    const int64_t rows = shape.N * shape.C * per_plane, per_task = rows_per_task(per_plane, w.input * 2);
    parallel(ceil_div(rows, per_task), [&](int64_t task, int thread) {
      ScratchLayout own{locals[thread]};
      Local l = local(own);
      l.grad_output.fill(A(0));
      l.ring.clear();
      const int64_t end = min_of(rows, (task + 1) * per_task);
      RowPosition row(task * per_task, shape.axis[0].input, shape.axis[1].input);
      for (; row.number < end; row.next(shape.axis[0].input, shape.axis[1].input)) {
        input_row(l, row, (end - row.number) * w.input);
      }
    });
  }

  void input_row(Local& l, const RowPosition& row, int64_t room) const {
    const Window &d = shape.axis[0], &h = shape.axis[1];
    int64_t count = 0;
    for (int64_t i = axis[0].begin[row.depth]; i < axis[0].begin[row.depth + 1]; ++i) {
      for (int64_t j = axis[1].begin[row.height]; j < axis[1].begin[row.height + 1]; ++j) {
        const Reader o = axis[0].reader[i], p = axis[1].reader[j];
        const int64_t slot = l.ring.slot(o.output, p.output);
        const int64_t key = (row.plane * d.output + o.output) * h.output + p.output;
        A* columns = l.columns + slot * pitch;
        if (l.ring.key[slot] != key) {
          l.ring.key[slot] = key;
          spread_row(l, key, o.output, p.output, columns);
        }
        l.rows[count++] = columns;
      }
    }
    for (int64_t f = 0; f < strides; ++f) {
      const int64_t begin = f * l.grad_input.pitch, end = begin + (one_by_one ? w.input : phase[f].count);
      for (int64_t j = begin; j < end; j += L) {
        Vec<A> sum = {};
        for (int64_t i = 0; i < count; ++i) sum += load(l.rows[i] + j);
        store(l.grad_input.data + j, sum);
      }
    }
    l.grad_input.store_row(grad_input + row.number * w.input, room);
  }

  // Row `key` of grad_output, in phases of the input; zeros stand before and after it.
  void spread_row(Local& l, int64_t key, int64_t o, int64_t p, A* columns) const {
    const int64_t available = shape.N * shape.C * shape.output_pixels() - key * w.output;
    l.grad_output.load_row(grad_output + key * w.output, available, A(0));
    A* grad = l.grad_output.data + left;
    const A over_rows = static_cast<A>(problem.divisor(0, o) * problem.divisor(1, p));
    for (int64_t q = 0; q < w.output; q += L) {  // the zeros after the row stay zeros
      store(grad + q, load(grad + q) / (load(divisor + q) * broadcast<A>(over_rows)));
    }
    if (separate) return spread_separate(grad, columns);
    if (one_by_one) return spread_windows(grad, columns);
    for (int64_t f = 0; f < strides; ++f) {
      const PhaseAxis& x = phase[f];
      for (int64_t j = 0; j < x.count; j += L) {
        Vec<A> sum = {};
        const A* from = grad + j + x.offset;
        for (int64_t m = 0; m < x.taps; ++m, from += x.offset_step) sum += load(from);
        store(columns + f * l.grad_input.pitch + j, sum);
      }
    }
  }

  // What a vector writes beyond its window is written again later.
  void spread_separate(const A* grad, A* columns) const {
    int64_t i = 0;
    for (int64_t q = 0; q <= w.output; ++q) {
      const Span span = q < w.output ? axis[2].span[q] : Span{w.input, 0, 0};
      for (; i < span.index; i += L) store(columns + i, Vec<A>{});
      for (i = span.index; i < span.index + span.count; i += L) {
        store(columns + i, broadcast<A>(grad[q]) + Vec<A>{});  // minus zero is added to zero
      }
      i = span.index + span.count;
    }
  }

  void spread_windows(const A* grad, A* columns) const {
    for (int64_t i = 0; i < w.input; i += L) store(columns + i, Vec<A>{});
    for (int64_t q = 0; q < w.output; ++q) {
      const Span span = axis[2].span[q];
      A* to = columns + span.index;
      int64_t i = 0;
      for (; i + L <= span.count; i += L) store(to + i, load(to + i) + broadcast<A>(grad[q]));
      for (; i < span.count; ++i) to[i] += grad[q];
    }
  }

  const PoolProblem& problem;
  const PoolShape& shape;
  const Window& w;
  bool separate;    // windows along a row that do not overlap
  bool one_by_one;  // windows along a row
  int64_t strides, left, right, pitch;
  const T* grad_output;
  T* grad_input;
  ScratchLayout scratch;
  PerThread<char> locals;
  AxisTable axis[kAxes];
  A* divisor = nullptr;  // [Q], of the last axis
  PhaseAxis* phase = nullptr;
};

inline const char* avg_grad_rows_refuses(const PoolProblem& p) {
  if (const char* reason = layout_refuses<Layout::kChannelsFirst>(p)) return reason;
  return readers_refuse(p.shape, kAxes - 1);
}

constexpr PoolKernel kAvgPoolGradRows =
    entry<ByType<AvgPoolGradRows>>("rows", kRowsSummary, avg_grad_rows_refuses);

}  // namespace cnnext::cpu::CNNEXT_ISA
