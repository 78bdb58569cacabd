// The gradient of max pooling in channels first: grad_output and offsets [N, C, O, P, Q], grad_input
// [N, C, D, H, W], vectors along the rows.
//
// Rows have a stride of one or two. Input positions fall into `stride` phases in each axis
// (grad_input_phase): in one of them, tap after tap reads consecutive outputs for consecutive inputs, and
// adds those gradients whose offset is the tap. Where stride * output >= input in each axis, no bounds are
// needed between rows and planes: a read that leaves its row finds a window of a neighbouring one, whose same
// tap is at least the whole input away and thus outside, where no offset points. Each input is written once.
#pragma once

#include "pool_row.h"

namespace cnnext::cpu::CNNEXT_ISA {

template <class T>
struct MaxPoolGradRows {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>, kUnroll = 4;

  struct Tap {
    int64_t shift;  // from an input's place in its phase to the output that it reads
    int64_t offset;
  };

  MaxPoolGradRows(const PoolProblem& p, const PoolBuffers& b, char* workspace)
      : shape(p.shape),
        d(p.shape.axis[0]),
        h(p.shape.axis[1]),
        w(p.shape.axis[2]),
        outputs(shape.N * shape.C * shape.output_pixels()),
        grad_output(static_cast<const T*>(b.output)),
        offsets(static_cast<const uint8_t*>(b.offsets)),
        grad_input(static_cast<T*>(b.input)) {
    shared.base = workspace;
    begin = shared.take<const Tap*>(d.stride * h.stride * w.stride + 1);
    taps = shared.take<Tap>(shape.taps());
  }

  void run(const Parallel& parallel) {
    fill_taps();
    constexpr int64_t kInputsPerTask = 1 << 14;
    const int64_t inputs = shape.N * shape.C * shape.input_pixels();
    if (d.stride * h.stride * w.stride == 1 && inputs == outputs) {  // all rows are one
      parallel(ceil_div(inputs, kInputsPerTask), [&](int64_t task, int) {
        const int64_t first = task * kInputsPerTask, count = min_of(kInputsPerTask, inputs - first);
        input_row(begin, first, count, grad_input + first, count);
      });
      return;
    }
    // A group of `stride` rows, one of each phase, lies around a row of the output.
    const int64_t groups = ceil_div(h.input, h.stride), all = shape.N * shape.C * d.input * groups;
    const int64_t per_task = max_of(1, kInputsPerTask / (h.stride * w.input));
    parallel(ceil_div(all, per_task), [&](int64_t task, int) {
      RowPosition group(task * per_task, d.input, groups);
      const int64_t end = min_of(all, (task + 1) * per_task);
      T* to = grad_input + first_input(group.number, groups);
      const T* memory_end = grad_input + first_input(end, groups);
      for (; group.number < end; group.next(d.input, groups)) {
        const int64_t o = d.stride == 1 ? group.depth : group.depth / d.stride;
        const int64_t at = ((group.plane * d.output + o) * h.output + group.height) * w.output;
        const Tap* const* phase = begin + (group.depth - o * d.stride) * h.stride * w.stride;
        const int64_t rows = min_of(h.stride, h.input - group.height * h.stride);
        if (halves && at + round_up(w.output, L / 2) + L <= outputs &&
            memory_end - to >= rows * w.input + L) {
          for (int64_t f = 0; f < rows; ++f, to += w.input) half_row(phase[f * 2], at, to);
          continue;
        }
        for (int64_t f = 0; f < rows; ++f, to += w.input, phase += w.stride) {
          input_row(phase, at, w.input, to, memory_end - to);
        }
      }
    });
  }

  ScratchLayout shared;

 private:
  int64_t first_input(int64_t group, int64_t groups) const {
    return (group / groups * h.input + group % groups * h.stride) * w.input;
  }

  // The taps of each phase, in the order of the outputs.
  void fill_taps() {
    Tap* next = taps;
    for (int64_t f = 0; f < d.stride * h.stride * w.stride; ++f) {
      begin[f] = next;
      const PhaseAxis z = grad_input_phase(d, f / w.stride / h.stride),
                      y = grad_input_phase(h, f / w.stride % h.stride), x = grad_input_phase(w, f % w.stride);
      for (int64_t i = 0; i < z.taps; ++i) {
        for (int64_t j = 0; j < y.taps; ++j) {
          for (int64_t k = 0; k < x.taps; ++k) {
            *next = {
                (z.source_index(0, i) * h.output + y.source_index(0, j)) * w.output + x.source_index(0, k),
                ((z.tap + i * z.tap_step) * h.kernel + y.tap + j * y.tap_step) * w.kernel + x.tap +
                    k * x.tap_step};
            lowest = min_of(lowest, next->shift);
            highest = max_of(highest, next->shift);
            ++next;
          }
        }
      }
    }
    begin[d.stride * h.stride * w.stride] = next;
    const bool apart = d.stride == d.kernel && h.stride == h.kernel && w.stride == 2 && w.kernel == 2;
    halves = apart && d.padding == 0 && h.padding == 0 && w.padding == 0 && w.dilation == 1 &&
             h.dilation == 1 && d.dilation == 1;
  }

  // `width` inputs, of which the first reads around output `at`. `phase` has the taps of the column phases.
  // Whole vectors may be written up to `room` elements.
  void input_row(const Tap* const* phase, int64_t at, int64_t width, T* to, int64_t room) const {
    if (w.stride == 1) {
      for (int64_t x = 0; x < width; x += kUnroll * L) {
        Vec<A> sum[kUnroll] = {};
        gather<kUnroll>(phase, at + x, sum);
        for (int64_t u = 0; u < kUnroll && x + u * L < width; ++u) {
          store_part(to + x + u * L, sum[u], room - x - u * L);
        }
      }
    } else {
      for (int64_t x = 0; x < width; x += 2 * L) {
        Vec<A> even[1] = {}, odd[1] = {}, low, high;
        gather<1>(phase, at + x / 2, even);
        gather<1>(phase + 1, at + x / 2, odd);
        interleave<A>(even[0], odd[0], low, high);
        store_part(to + x, low, room - x);
        if (x + L < width) store_part(to + x + L, high, room - x - L);
      }
    }
  }

  // A row of inputs, in pairs of which each belongs to one window alone: half a vector of outputs, each in
  // two lanes. Writes up to a vector beyond the row.
  __attribute__((always_inline)) void half_row(const Tap* tap, int64_t at, T* to) const {
    const OffsetVec<A> lane = lane_numbers<A>(1);
    const OffsetVec<A> key = (lane & 1) + broadcast_offset<A>(tap->offset);
    for (int64_t q = 0; q < w.output; q += L / 2, at += L / 2, to += L) {
      const Vec<A> grad = load(grad_output + at), offset = bit_cast<Vec<A>>(widen_offsets(offsets + at, A{}));
      const auto match = bit_cast<OffsetVec<A>>(choose_lanes<A>(offset, offset, lane >> 1)) == key;
      store(to, match ? choose_lanes<A>(grad, grad, lane >> 1) : Vec<A>{});
    }
  }

  template <int kVectors>
  void gather(const Tap* const* phase, int64_t at, Vec<A>* sum) const {
    if (at + lowest < 0 || at + highest + kVectors * L > outputs)
      return gather_at_end<kVectors>(phase, at, sum);
    for (const Tap* t = phase[0]; t != phase[1]; ++t) {
      const OffsetKey<A> key(t->offset);
      const int64_t from = at + t->shift;
#pragma GCC unroll 4
      for (int u = 0; u < kVectors; ++u) {
        sum[u] = key.add_where_equal(sum[u], offsets + from + u * L, grad_output + from + u * L);
      }
    }
  }

  // Near the first or the last element of the tensor.
  template <int kVectors>
  void gather_at_end(const Tap* const* phase, int64_t at, Vec<A>* sum) const {
    for (const Tap* t = phase[0]; t != phase[1]; ++t) {
      for (int64_t i = 0; i < kVectors * L; ++i) {
        const int64_t from = at + t->shift + i;
        if (from >= 0 && from < outputs && offsets[from] == t->offset) {
          sum[i / L][i % L] += load_one(grad_output + from);
        }
      }
    }
  }

  const PoolShape& shape;
  const Window &d, &h, &w;
  int64_t outputs;
  const T* grad_output;
  const uint8_t* offsets;
  T* grad_input;
  const Tap** begin;  // [phases + 1]
  Tap* taps;
  int64_t lowest = 0, highest = 0;  // shift
  bool halves = false;              // two inputs of a row for each output, and no other's
};

CNNEXT_INLINE const char* refuses_max_grad_rows(const PoolProblem& p) {
  constexpr int64_t kMostReaders = kLanes<float> * 3 / 2;
  if (p.layout != Layout::kChannelsFirst) return "channels last";
  if (p.wide_offsets()) return "more than 256 taps";
  if (p.shape.axis[2].stride > 2) return "few inputs of a row belong to one phase";
  int64_t readers = 1;
  for (int a = 0; a < kAxes; ++a) {
    const Window& w = p.shape.axis[a];
    if (p.shape.adaptive[a]) return "windows of several sizes";
    if (w.stride * w.output < w.input) return "inputs after the last window";
    for (int64_t o = 0; o < w.output; ++o) {
      if (p.shape.span(a, o).count == 0) return "windows in the padding";
    }
    readers *= p.shape.windows_over_input(a);
  }
  return readers > kMostReaders ? "many windows over an input" : nullptr;
}

CNNEXT_INLINE int64_t max_grad_rows_workspace(const PoolProblem& p) {
  return MaxPoolGradRows<float>(p, {}, nullptr).shared.bytes;
}
CNNEXT_INLINE void run_max_grad_rows(const PoolProblem& p, const PoolBuffers& b, const Parallel& parallel,
                                     char* workspace) {
  with_type(p.dtype,
            [&](auto* tag) { MaxPoolGradRows<Pointee<decltype(tag)>>(p, b, workspace).run(parallel); });
}

constexpr PoolKernel kMaxPoolGradRows = {"rows", "tap after tap, vectors along the rows",
                                         refuses_max_grad_rows, max_grad_rows_workspace, run_max_grad_rows};

}  // namespace cnnext::cpu::CNNEXT_ISA
