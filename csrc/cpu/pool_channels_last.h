// Pooling in channels last: input [N, D, H, W, C], output [N, O, P, Q, C], vectors over the channels.
//
// Forward: each output is computed from the taps of its window. Backward: each input gathers from the windows
// over it, in their order, and is written once. An average sums rows of taps first and then the rows, for
// accuracy. A task is a block of channels of some rows of the result.
#pragma once

#include "pool_row.h"
#include "pool_tables.h"

namespace cnnext::cpu::CNNEXT_ISA {

enum class PoolMode { kMax, kMaxOffsets, kAverage };

// What the two directions share: the result is [images, rows, width, C], cut into tasks.
struct ChannelsLastTasks {
  int64_t rows, rows_per_task, channels, channels_per_task;

  ChannelsLastTasks(int64_t rows, int64_t width, int64_t channels, int64_t taps)
      : rows(rows), channels(channels) {
    constexpr int64_t kReadsPerTask = 1 << 17, kFewRows = 64, kChannels = 64;
    // Few rows are cut along the channels as well, into tasks that are still worth a thread.
    const int64_t share = max_of(channels * rows / kFewRows, kReadsPerTask / max_of(1, width * taps));
    channels_per_task = rows >= kFewRows ? channels : round_up(max_of(1, share), kChannels);
    rows_per_task = max_of(1, kReadsPerTask / max_of(1, width * channels_per_task * taps));
  }
  int64_t channel_blocks() const { return ceil_div(channels, channels_per_task); }
  int64_t count() const { return ceil_div(rows, rows_per_task) * channel_blocks(); }
};

// Calls block<V, part>(channel, count) for blocks of V vectors, widest first: `kWide` vectors, then single
// ones, the last of which overlaps the one before; with fewer channels than lanes a part of a vector.
template <class A, int kWide, class Block>
CNNEXT_INLINE void each_channel_block(int64_t begin, int64_t end, const Block& block) {
  constexpr int64_t L = kLanes<A>;
  int64_t c = begin;
  for (; c + kWide * L <= end; c += kWide * L) block.template run<kWide, false>(c, L);
  for (; c + L <= end; c += L) block.template run<1, false>(c, L);
  if (c == end) return;
  if (end - begin >= L) return block.template run<1, false>(end - L, L);
  block.template run<1, true>(c, end - c);
}

template <class T, PoolMode mode>
struct PoolChannelsLast {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

  struct Row {  // of taps of the windows of an output row
    const T* input;
    Offset<A> tap;
  };

  PoolChannelsLast(const PoolProblem& p, const PoolBuffers& b, char* workspace)
      : problem(p),
        shape(p.shape),
        C(p.shape.C),
        input(static_cast<const T*>(b.input)),
        output(static_cast<T*>(b.output)),
        offsets(b.offsets) {
    scratch.base = workspace;
    for (int a = 0; a < kAxes; ++a) axis[a].lay_out(shape, a, false, scratch);
    most_rows = round_up(shape.axis[0].kernel * shape.axis[1].kernel, kAlignment);
    rows = scratch.take<Row>(p.threads * most_rows);
  }

  void run(const Parallel& parallel) const {
    for (int a = 0; a < kAxes; ++a) axis[a].fill(shape, a);
    const Window &d = shape.axis[0], &h = shape.axis[1], &w = shape.axis[2];
    const ChannelsLastTasks tasks(shape.N * d.output * h.output, w.output, C, shape.taps());
    parallel(tasks.count(), [&](int64_t task, int thread) {
      const int64_t c_begin = task % tasks.channel_blocks() * tasks.channels_per_task;
      const int64_t c_end = min_of(C, c_begin + tasks.channels_per_task);
      const int64_t first = task / tasks.channel_blocks() * tasks.rows_per_task;
      const int64_t end = min_of(first + tasks.rows_per_task, tasks.rows);
      for (RowPosition row(first, d.output, h.output); row.number < end; row.next(d.output, h.output)) {
        output_row(row, rows + thread * most_rows, c_begin, c_end);
      }
    });
  }

  // One output pixel.
  struct Pixel {
    const PoolChannelsLast& pool;
    const Row* rows;
    int64_t row_count, row_offset, taps,
        step;                        // taps of a row are `step` elements apart, from `row_offset` on
    int64_t at, first_tap, row_tap;  // output element; number of the window's first tap; its place in a row
    A divide_by;

    template <int V, bool kPart>
    __attribute__((always_inline)) void run(int64_t c, int64_t count) const {
      Vec<A> value[V];
      OffsetVec<A> offset[V];
      for (int v = 0; v < V; ++v) {
        value[v] = broadcast<A>(mode == PoolMode::kAverage ? A(0) : lowest(A{}));
        offset[v] = broadcast_offset<A>(first_tap);
      }
      for (int64_t i = 0; i < row_count; ++i) {
        const T* from = rows[i].input + row_offset + c;
        auto tap = static_cast<Offset<A>>(rows[i].tap + row_tap);
        Vec<A> row[V] = {};
        for (int64_t x = 0; x < taps; ++x, ++tap, from += step) {
          for (int v = 0; v < V; ++v) {
            const Vec<A> next = kPart ? load_part(from, count) : load(from + v * L);
            if constexpr (mode == PoolMode::kAverage) {
              row[v] += next;
            } else {
              const auto take = takes_over(next, value[v]);
              value[v] = take ? next : value[v];
              if constexpr (mode == PoolMode::kMaxOffsets) {
                offset[v] = take ? tap - OffsetVec<A>{} : offset[v];
              }
            }
          }
        }
        if constexpr (mode == PoolMode::kAverage) {
          for (int v = 0; v < V; ++v) value[v] += row[v];
        }
      }
      for (int v = 0; v < V; ++v) {
        if constexpr (mode == PoolMode::kAverage) value[v] /= broadcast<A>(divide_by);
        const int64_t to = at + c + v * L;
        store_part(pool.output + to, value[v], kPart ? count : L);
        if constexpr (mode == PoolMode::kMaxOffsets) {
          if (pool.problem.wide_offsets()) {
            store_offsets_part<A>(static_cast<int32_t*>(pool.offsets) + to, offset[v], kPart ? count : L);
          } else {
            store_offsets_part<A>(static_cast<uint8_t*>(pool.offsets) + to, offset[v], kPart ? count : L);
          }
        }
      }
    }
  };

  void output_row(const RowPosition& at, Row* rows, int64_t c_begin, int64_t c_end) const {
    const Window &d = shape.axis[0], &h = shape.axis[1], &w = shape.axis[2];
    const Span sd = axis[0].span[at.depth], sh = axis[1].span[at.height];
    int64_t count = 0;
    for (int64_t z = 0; z < sd.count; ++z) {
      for (int64_t y = 0; y < sh.count; ++y) {
        const int64_t row =
            (at.plane * d.input + sd.index + z * d.dilation) * h.input + sh.index + y * h.dilation;
        rows[count++] = {input + row * w.input * C,
                         static_cast<Offset<A>>(((sd.tap + z) * h.kernel + sh.tap + y) * w.kernel)};
      }
    }
    const bool average = mode == PoolMode::kAverage && !problem.divisor_override;
    const int64_t over_rows = !average ? problem.divisor_override
                                       : shape.counted_taps(0, at.depth, problem.count_padding) *
                                             shape.counted_taps(1, at.height, problem.count_padding);
    for (int64_t q = 0; q < w.output; ++q) {
      const Span span = axis[2].span[q];
      const int64_t divisor =
          average ? over_rows * shape.counted_taps(2, q, problem.count_padding) : over_rows;
      const Pixel pixel = {*this,
                           rows,
                           count,
                           span.index * C,
                           span.count,
                           w.dilation * C,
                           (at.number * w.output + q) * C,
                           (sd.tap * h.kernel + sh.tap) * w.kernel + span.tap,
                           span.tap,
                           static_cast<A>(divisor)};
      each_channel_block<A, kWideBlock>(c_begin, c_end, pixel);
    }
  }

  // Vectors that are computed side by side; a vector of an average needs two registers, of a maximum two or
  // more.
  static constexpr int kWideBlock = CNNEXT_VECTOR_BYTES == 64 && mode != PoolMode::kMaxOffsets ? 8 : 4;

  const PoolProblem& problem;
  const PoolShape& shape;
  int64_t C;
  const T* input;
  T* output;
  void* offsets;
  ScratchLayout scratch;
  AxisTable axis[kAxes];
  int64_t most_rows;  // room for each thread
  Row* rows;
};

// O is the type of the stored offsets, or void for an average.
template <class T, class O>
struct PoolGradChannelsLast {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;
  static constexpr bool kAverage = std::is_void_v<O>;

  struct Row {        // of windows over an input row
    int64_t output;   // number of its first output
    Offset<A> tap;    // the number of the first tap that reads the input row
    int64_t divisor;  // its part in that of an average
  };

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
      if (kAverage) common[a] = scratch.take<int64_t>(shape.axis[a].input);
    }
    most_rows = round_up(shape.windows_over_input(0) * shape.windows_over_input(1), kAlignment);
    rows = scratch.take<Row>(p.threads * most_rows);
  }

  void run(const Parallel& parallel) const {
    int64_t readers = 1;
    for (int a = 0; a < kAxes; ++a) {
      axis[a].fill(shape, a);
      readers *= shape.windows_over_input(a);
      if (kAverage) fill_divisors(a);
    }
    const Window &d = shape.axis[0], &h = shape.axis[1], &w = shape.axis[2];
    const ChannelsLastTasks tasks(shape.N * d.input * h.input, w.input, C, readers);
    parallel(tasks.count(), [&](int64_t task, int thread) {
      const int64_t c_begin = task % tasks.channel_blocks() * tasks.channels_per_task;
      const int64_t c_end = min_of(C, c_begin + tasks.channels_per_task);
      const int64_t first = task / tasks.channel_blocks() * tasks.rows_per_task;
      const int64_t end = min_of(first + tasks.rows_per_task, tasks.rows);
      for (RowPosition row(first, d.input, h.input); row.number < end; row.next(d.input, h.input)) {
        input_row(row, rows + thread * most_rows, c_begin, c_end);
      }
    });
  }

  // The divisors of windows along an axis, and for each input the one that all windows over it have, or else
  // 0.
  void fill_divisors(int a) const {
    const Window& w = shape.axis[a];
    for (int64_t o = 0; o < w.output; ++o) {
      divisor[a][o] = !problem.divisor_override ? shape.counted_taps(a, o, problem.count_padding)
                      : a == 0                  ? problem.divisor_override
                                                : 1;
    }
    for (int64_t i = 0; i < w.input; ++i) {
      common[a][i] =
          axis[a].begin[i] == axis[a].begin[i + 1] ? 1 : divisor[a][axis[a].reader[axis[a].begin[i]].output];
      for (int64_t r = axis[a].begin[i]; r < axis[a].begin[i + 1]; ++r) {
        if (divisor[a][axis[a].reader[r].output] != common[a][i]) common[a][i] = 0;
      }
    }
  }

  // One input pixel.
  struct Pixel {
    const PoolGradChannelsLast& pool;
    const Row *rows, *rows_end;
    const Reader *readers, *readers_end;  // along the last axis
    int64_t at;                           // input element
    A divide_by;                          // common to all windows, or 0

    template <int V, bool kPart>
    __attribute__((always_inline)) void run(int64_t c, int64_t count) const {
      Vec<A> sum[V] = {};
      for (const Row* row = rows; row != rows_end; ++row) {
        for (const Reader* reader = readers; reader != readers_end; ++reader) {
          const int64_t from = (row->output + reader->output) * pool.C + c;
          const auto tap = static_cast<Offset<A>>(row->tap + reader->tap);
          for (int v = 0; v < V; ++v) {
            const T* source = pool.grad_output + from + v * L;
            Vec<A> grad = kPart ? load_part(source, count) : load(source);
            if constexpr (!kAverage) {
              const OffsetVec<A> offset = kPart ? load_offsets_part<A>(pool.offsets + from, count)
                                                : widen_offsets(pool.offsets + from + v * L, A{});
              sum[v] = offset == tap ? sum[v] + grad : sum[v];
            } else {
              if (divide_by == A(0)) {
                grad /= broadcast<A>(static_cast<A>(row->divisor * pool.divisor[2][reader->output]));
              }
              sum[v] += grad;
            }
          }
        }
      }
      for (int v = 0; v < V; ++v) {
        if (kAverage && divide_by != A(0)) sum[v] /= broadcast<A>(divide_by);
        store_part(pool.grad_input + at + c + v * L, sum[v], kPart ? count : L);
      }
    }
  };

  void input_row(const RowPosition& at, Row* rows, int64_t c_begin, int64_t c_end) const {
    const Window &d = shape.axis[0], &h = shape.axis[1], &w = shape.axis[2];
    Row* end = rows;
    for (int64_t i = axis[0].begin[at.depth]; i < axis[0].begin[at.depth + 1]; ++i) {
      for (int64_t j = axis[1].begin[at.height]; j < axis[1].begin[at.height + 1]; ++j) {
        const Reader o = axis[0].reader[i], p = axis[1].reader[j];
        *end++ = {((at.plane * d.output + o.output) * h.output + p.output) * w.output,
                  static_cast<Offset<A>>((o.tap * h.kernel + p.tap) * w.kernel),
                  kAverage ? divisor[0][o.output] * divisor[1][p.output] : 1};
      }
    }
    const int64_t over_rows = kAverage ? common[0][at.depth] * common[1][at.height] : 1;
    for (int64_t x = 0; x < w.input; ++x) {
      // Where all windows divide by the same number, the sum is divided once.
      const Pixel pixel = {*this,
                           rows,
                           end,
                           axis[2].reader + axis[2].begin[x],
                           axis[2].reader + axis[2].begin[x + 1],
                           (at.number * w.input + x) * C,
                           static_cast<A>(kAverage ? over_rows * common[2][x] : 1)};
      each_channel_block<A, 4>(c_begin, c_end, pixel);
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
  int64_t *divisor[kAxes] = {}, *common[kAxes] = {};
  int64_t most_rows;  // room for each thread
  Row* rows;
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

template <bool kAverage, class Run>
void with_grad_channels_last(const PoolProblem& p, const PoolBuffers& b, char* workspace, const Run& run) {
  with_type(p.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    if constexpr (kAverage) {
      run(PoolGradChannelsLast<T, void>(p, b, workspace));
    } else if (p.wide_offsets()) {
      run(PoolGradChannelsLast<T, int32_t>(p, b, workspace));
    } else {
      run(PoolGradChannelsLast<T, uint8_t>(p, b, workspace));
    }
  });
}
template <bool kAverage>
void run_grad_channels_last(const PoolProblem& p, const PoolBuffers& b, const Parallel& parallel,
                            char* workspace) {
  with_grad_channels_last<kAverage>(p, b, workspace, [&](const auto& kernel) { kernel.run(parallel); });
}

template <PoolMode mode>
int64_t channels_last_workspace(const PoolProblem& p) {
  int64_t bytes = 0;
  with_type(p.dtype, [&](auto* tag) {
    bytes = PoolChannelsLast<Pointee<decltype(tag)>, mode>(p, {}, nullptr).scratch.bytes;
  });
  return bytes;
}
template <bool kAverage>
int64_t grad_channels_last_workspace(const PoolProblem& p) {
  int64_t bytes = 0;
  with_grad_channels_last<kAverage>(p, {}, nullptr,
                                    [&](const auto& kernel) { bytes = kernel.scratch.bytes; });
  return bytes;
}

// Gathering reads an output for each input under its window: with large, dense windows scattering reads less.
CNNEXT_INLINE const char* refuses_max_grad_channels_last(const PoolProblem& p) {
  constexpr int64_t kMostReaders = CNNEXT_VECTOR_BYTES > 16 ? kLanes<float> * 5 / 2 : 1;
  if (p.layout != Layout::kChannelsLast) return "channels first";
  int64_t readers = 1;
  for (int a = 0; a < kAxes; ++a) readers *= p.shape.windows_over_input(a);
  return readers > kMostReaders ? "many windows over an input" : nullptr;
}

constexpr const char* kChannelsLastSummary = "vectors over the channels";
constexpr PoolKernel kMaxPoolChannelsLast = {"channels_last", kChannelsLastSummary, needs_channels_last,
                                             channels_last_workspace<PoolMode::kMax>,
                                             run_channels_last<PoolMode::kMax>};
constexpr PoolKernel kMaxPoolOffsetsChannelsLast = {
    "channels_last", kChannelsLastSummary, needs_channels_last,
    channels_last_workspace<PoolMode::kMaxOffsets>, run_channels_last<PoolMode::kMaxOffsets>};
constexpr PoolKernel kAvgPoolChannelsLast = {"channels_last", kChannelsLastSummary, needs_channels_last,
                                             channels_last_workspace<PoolMode::kAverage>,
                                             run_channels_last<PoolMode::kAverage>};
constexpr PoolKernel kMaxPoolGradChannelsLast = {
    "channels_last", kChannelsLastSummary, refuses_max_grad_channels_last,
    grad_channels_last_workspace<false>, run_grad_channels_last<false>};
constexpr PoolKernel kAvgPoolGradChannelsLast = {"channels_last", kChannelsLastSummary, needs_channels_last,
                                                 grad_channels_last_workspace<true>,
                                                 run_grad_channels_last<true>};

}  // namespace cnnext::cpu::CNNEXT_ISA
