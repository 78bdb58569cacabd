// Pooling in channels last: input [N, D, H, W, C], output [N, O, P, Q, C], vectors over the channels.
//
// Forward: each output is computed from the taps of its window. Backward: each input gathers from the windows
// over it, in their order, and is written once. An average sums rows of taps first and then the rows, for
// accuracy. A task is a block of channels of some rows of the result.
#pragma once

#include "pool_tables.h"
#include "pool_vec.h"

namespace cnnext::cpu::CNNEXT_ISA {

enum class PoolMode { kMax, kMaxOffsets, kAverage };

// What the two directions share: the result is [images, rows, width, C], cut into tasks.
struct ChannelsLastTasks {
  int64_t rows, rows_per_task, channels, channels_per_task;

  ChannelsLastTasks(int64_t rows, int64_t width, int64_t channels, int64_t taps)
      : rows(rows), channels(channels) {
    constexpr int64_t kReadsPerTask = 1 << 15, kFewRows = 64, kChannels = 64;
    channels_per_task =
        rows >= kFewRows ? channels : round_up(max_of(1, channels * rows / kFewRows), kChannels);
    rows_per_task = max_of(1, kReadsPerTask / max_of(1, width * channels_per_task * taps));
  }
  int64_t channel_blocks() const { return ceil_div(channels, channels_per_task); }
  int64_t count() const { return ceil_div(rows, rows_per_task) * channel_blocks(); }
};

template <class T, PoolMode mode>
struct PoolChannelsLast {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

  PoolChannelsLast(const PoolProblem& p, const PoolBuffers& b, char* workspace)
      : problem(p),
        shape(p.shape),
        C(p.shape.C),
        input(static_cast<const T*>(b.input)),
        output(static_cast<T*>(b.output)),
        offsets(b.offsets),
        wide(p.wide_offsets()) {
    scratch.base = workspace;
    for (int a = 0; a < kAxes; ++a) axis[a].lay_out(shape, a, false, scratch);
  }

  void run(const Parallel& parallel) const {
    for (int a = 0; a < kAxes; ++a) axis[a].fill(shape, a);
    const Window &d = shape.axis[0], &h = shape.axis[1], &w = shape.axis[2];
    const ChannelsLastTasks tasks(shape.N * d.output * h.output, w.output, C, shape.taps());
    parallel(tasks.count(), [&](int64_t task, int) {
      const int64_t c_begin = task % tasks.channel_blocks() * tasks.channels_per_task;
      const int64_t c_end = min_of(C, c_begin + tasks.channels_per_task);
      const int64_t first = task / tasks.channel_blocks() * tasks.rows_per_task;
      for (int64_t row = first; row < min_of(first + tasks.rows_per_task, tasks.rows); ++row) {
        const int64_t p = row % h.output, o = row / h.output % d.output, n = row / h.output / d.output;
        for (int64_t q = 0; q < w.output; ++q) pixel(n, o, p, q, c_begin, c_end);
      }
    });
  }

  CNNEXT_INLINE int64_t divisor(const PoolProblem& p, int64_t o, int64_t h, int64_t w) {
    if (p.divisor_override) return p.divisor_override;
    return p.shape.counted_taps(0, o, p.count_padding) * p.shape.counted_taps(1, h, p.count_padding) *
           p.shape.counted_taps(2, w, p.count_padding);
  }

  void pixel(int64_t n, int64_t o, int64_t p, int64_t q, int64_t c_begin, int64_t c_end) const {
    const Span span[kAxes] = {axis[0].span[o], axis[1].span[p], axis[2].span[q]};
    const int64_t at =
        (((n * shape.axis[0].output + o) * shape.axis[1].output + p) * shape.axis[2].output + q) * C;
    const A divide_by = mode == PoolMode::kAverage ? static_cast<A>(divisor(problem, o, p, q)) : A(1);
    int64_t c = c_begin;
    for (; c + 4 * L <= c_end; c += 4 * L) block<4, false>(n, span, at, c, L, divide_by);
    for (; c + L <= c_end; c += L) block<1, false>(n, span, at, c, L, divide_by);
    if (c == c_end) return;
    if (c_end - c_begin >= L)
      return block<1, false>(n, span, at, c_end - L, L, divide_by);  // overlaps the last one
    block<1, true>(n, span, at, c, c_end - c, divide_by);
  }

  template <int V, bool kPart>
  CNNEXT_INLINE Vec<A> load_lanes(const T* p, int64_t count) {
    if constexpr (kPart) return load_part(p, count);
    return load(p);
  }

  template <int V, bool kPart>
  __attribute__((always_inline)) void block(int64_t n, const Span* span, int64_t at, int64_t c, int64_t count,
                                            A divide_by) const {
    const Window &d = shape.axis[0], &h = shape.axis[1], &w = shape.axis[2];
    Vec<A> value[V];
    OffsetVec<A> offset[V];
    const int64_t first_tap = (span[0].tap * h.kernel + span[1].tap) * w.kernel + span[2].tap;
    for (int v = 0; v < V; ++v) {
      value[v] = broadcast<A>(mode == PoolMode::kAverage ? A(0) : lowest(A{}));
      offset[v] = broadcast_offset<A>(first_tap);
    }
    for (int64_t z = 0; z < span[0].count; ++z) {
      for (int64_t y = 0; y < span[1].count; ++y) {
        const int64_t depth = n * d.input + span[0].index + z * d.dilation;
        const T* from =
            input + ((depth * h.input + span[1].index + y * h.dilation) * w.input + span[2].index) * C + c;
        Offset<A> tap =
            static_cast<Offset<A>>(((span[0].tap + z) * h.kernel + span[1].tap + y) * w.kernel + span[2].tap);
        Vec<A> row[V] = {};
        for (int64_t x = 0; x < span[2].count; ++x, ++tap, from += w.dilation * C) {
          for (int v = 0; v < V; ++v) {
            const Vec<A> next = load_lanes<V, kPart>(from + v * L, count);
            if constexpr (mode == PoolMode::kAverage) {
              row[v] += next;
            } else {
              const auto take = takes_over(next, value[v]);
              value[v] = take ? next : value[v];
              if constexpr (mode == PoolMode::kMaxOffsets)
                offset[v] = take ? tap - OffsetVec<A>{} : offset[v];
            }
          }
        }
        if constexpr (mode == PoolMode::kAverage) {
          for (int v = 0; v < V; ++v) value[v] += row[v];
        }
      }
    }
    for (int v = 0; v < V; ++v) {
      if constexpr (mode == PoolMode::kAverage) value[v] /= broadcast<A>(divide_by);
      store_part(output + at + c + v * L, value[v], kPart ? count : L);
      if constexpr (mode == PoolMode::kMaxOffsets) {
        if (wide) {
          store_offsets_part<A>(static_cast<int32_t*>(offsets) + at + c + v * L, offset[v],
                                kPart ? count : L);
        } else {
          store_offsets_part<A>(static_cast<uint8_t*>(offsets) + at + c + v * L, offset[v],
                                kPart ? count : L);
        }
      }
    }
  }

  const PoolProblem& problem;
  const PoolShape& shape;
  int64_t C;
  const T* input;
  T* output;
  void* offsets;
  bool wide;
  ScratchLayout scratch;
  AxisTable axis[kAxes];
};

// O is the type of the stored offsets, or void for an average.
template <class T, class O>
struct PoolGradChannelsLast {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;
  static constexpr bool kAverage = std::is_void_v<O>;

  PoolGradChannelsLast(const PoolProblem& p, const PoolBuffers& b, char* workspace)
      : problem(p),
        shape(p.shape),
        C(p.shape.C),
        grad_output(static_cast<const T*>(b.output)),
        grad_input(static_cast<T*>(b.input)),
        offsets(static_cast<const O*>(b.offsets)) {
    scratch.base = workspace;
    for (int a = 0; a < kAxes; ++a) {
      axis[a].lay_out(shape, a, true, scratch);
      if (kAverage) divisor[a] = scratch.take<int64_t>(shape.axis[a].output);
    }
  }

  void run(const Parallel& parallel) const {
    int64_t readers = 1;
    for (int a = 0; a < kAxes; ++a) {
      axis[a].fill(shape, a);
      readers *= shape.windows_over_input(a);
      for (int64_t o = 0; kAverage && o < shape.axis[a].output; ++o) {
        divisor[a][o] = problem.divisor_override ? (a == 0 ? problem.divisor_override : 1)
                                                 : shape.counted_taps(a, o, problem.count_padding);
      }
    }
    const Window &d = shape.axis[0], &h = shape.axis[1], &w = shape.axis[2];
    const ChannelsLastTasks tasks(shape.N * d.input * h.input, w.input, C, readers);
    parallel(tasks.count(), [&](int64_t task, int) {
      const int64_t c_begin = task % tasks.channel_blocks() * tasks.channels_per_task;
      const int64_t c_end = min_of(C, c_begin + tasks.channels_per_task);
      const int64_t first = task / tasks.channel_blocks() * tasks.rows_per_task;
      for (int64_t row = first; row < min_of(first + tasks.rows_per_task, tasks.rows); ++row) {
        const int64_t y = row % h.input, z = row / h.input % d.input, n = row / h.input / d.input;
        for (int64_t x = 0; x < w.input; ++x) pixel(n, z, y, x, c_begin, c_end);
      }
    });
  }

  struct Readers {
    const Reader *first, *end;
  };
  Readers readers(int a, int64_t i) const {
    return {axis[a].reader + axis[a].begin[i], axis[a].reader + axis[a].begin[i + 1]};
  }

  void pixel(int64_t n, int64_t z, int64_t y, int64_t x, int64_t c_begin, int64_t c_end) const {
    const Readers over[kAxes] = {readers(0, z), readers(1, y), readers(2, x)};
    const int64_t at =
        (((n * shape.axis[0].input + z) * shape.axis[1].input + y) * shape.axis[2].input + x) * C;
    // Where all windows divide by the same number, the sum is divided once.
    A divide_by = 0;
    if constexpr (kAverage) {
      int64_t common = 1;
      for (int a = 0; a < kAxes && common; ++a) {
        for (const Reader* r = over[a].first; r != over[a].end && common; ++r) {
          if (divisor[a][r->output] != divisor[a][over[a].first->output]) common = 0;
        }
        if (common && over[a].first != over[a].end) common *= divisor[a][over[a].first->output];
      }
      divide_by = static_cast<A>(common);
    }
    int64_t c = c_begin;
    for (; c + 4 * L <= c_end; c += 4 * L) block<4, false>(n, over, at, c, L, divide_by);
    for (; c + L <= c_end; c += L) block<1, false>(n, over, at, c, L, divide_by);
    if (c == c_end) return;
    if (c_end - c_begin >= L) return block<1, false>(n, over, at, c_end - L, L, divide_by);
    block<1, true>(n, over, at, c, c_end - c, divide_by);
  }

  template <int V, bool kPart>
  __attribute__((always_inline)) void block(int64_t n, const Readers* over, int64_t at, int64_t c,
                                            int64_t count, A divide_by) const {
    const Window &d = shape.axis[0], &h = shape.axis[1], &w = shape.axis[2];
    Vec<A> sum[V] = {};
    for (const Reader* ro = over[0].first; ro != over[0].end; ++ro) {
      for (const Reader* rp = over[1].first; rp != over[1].end; ++rp) {
        const int64_t row = ((n * d.output + ro->output) * h.output + rp->output) * w.output;
        for (const Reader* rq = over[2].first; rq != over[2].end; ++rq) {
          const int64_t from = (row + rq->output) * C + c;
          const auto tap = static_cast<Offset<A>>((ro->tap * h.kernel + rp->tap) * w.kernel + rq->tap);
          for (int v = 0; v < V; ++v) {
            Vec<A> grad = kPart ? load_part(grad_output + from, count) : load(grad_output + from + v * L);
            if constexpr (!kAverage) {
              const OffsetVec<A> offset = kPart ? load_offsets_part<A>(offsets + from, count)
                                                : widen_offsets(offsets + from + v * L, A{});
              grad = offset == tap ? grad : Vec<A>{};
            } else if (divide_by == A(0)) {
              grad /= broadcast<A>(
                  static_cast<A>(divisor[0][ro->output] * divisor[1][rp->output] * divisor[2][rq->output]));
            }
            sum[v] += grad;
          }
        }
      }
    }
    for (int v = 0; v < V; ++v) {
      if (kAverage && divide_by != A(0)) sum[v] /= broadcast<A>(divide_by);
      store_part(grad_input + at + c + v * L, sum[v], kPart ? count : L);
    }
  }

  const PoolProblem& problem;
  const PoolShape& shape;
  int64_t C;
  const T* grad_output;
  T* grad_input;
  const O* offsets;
  ScratchLayout scratch;
  AxisTable axis[kAxes];
  int64_t* divisor[kAxes] = {};
};

CNNEXT_INLINE const char* needs_channels_last(const PoolProblem& p) {
  return p.layout == Layout::kChannelsLast ? nullptr : "channels first";
}

template <PoolMode mode>
void run_channels_last(const PoolProblem& p, const PoolBuffers& b, const Parallel& parallel,
                       char* workspace) {
  with_type(p.dtype, [&](auto* tag) {
    PoolChannelsLast<Pointee<decltype(tag)>, mode>(p, b, workspace).run(parallel);
  });
}

template <bool kAverage>
void run_grad_channels_last(const PoolProblem& p, const PoolBuffers& b, const Parallel& parallel,
                            char* workspace) {
  with_type(p.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    if constexpr (kAverage) {
      PoolGradChannelsLast<T, void>(p, b, workspace).run(parallel);
    } else if (p.wide_offsets()) {
      PoolGradChannelsLast<T, int32_t>(p, b, workspace).run(parallel);
    } else {
      PoolGradChannelsLast<T, uint8_t>(p, b, workspace).run(parallel);
    }
  });
}

CNNEXT_INLINE int64_t channels_last_workspace(const PoolProblem& p) {
  return PoolChannelsLast<float, PoolMode::kMax>(p, {}, nullptr).scratch.bytes;
}
CNNEXT_INLINE int64_t grad_channels_last_workspace(const PoolProblem& p) {
  return PoolGradChannelsLast<float, void>(p, {}, nullptr)
      .scratch.bytes;  // the tables do not depend on the type
}

// Gathering reads each output once for each tap.
CNNEXT_INLINE const char* refuses_max_grad_channels_last(const PoolProblem& p) {
  constexpr int64_t kMostTaps = kLanes<float> * 3 / 2;
  if (p.layout != Layout::kChannelsLast) return "channels first";
  return p.shape.taps() > kMostTaps ? "many taps" : nullptr;
}

constexpr const char* kChannelsLastSummary = "vectors over the channels";
constexpr PoolKernel kMaxPoolChannelsLast = {"channels_last", kChannelsLastSummary, needs_channels_last,
                                             channels_last_workspace, run_channels_last<PoolMode::kMax>};
constexpr PoolKernel kMaxPoolOffsetsChannelsLast = {"channels_last", kChannelsLastSummary,
                                                    needs_channels_last, channels_last_workspace,
                                                    run_channels_last<PoolMode::kMaxOffsets>};
constexpr PoolKernel kAvgPoolChannelsLast = {"channels_last", kChannelsLastSummary, needs_channels_last,
                                             channels_last_workspace, run_channels_last<PoolMode::kAverage>};
constexpr PoolKernel kMaxPoolGradChannelsLast = {"channels_last", kChannelsLastSummary,
                                                 refuses_max_grad_channels_last, grad_channels_last_workspace,
                                                 run_grad_channels_last<false>};
constexpr PoolKernel kAvgPoolGradChannelsLast = {"channels_last", kChannelsLastSummary, needs_channels_last,
                                                 grad_channels_last_workspace, run_grad_channels_last<true>};

}  // namespace cnnext::cpu::CNNEXT_ISA
