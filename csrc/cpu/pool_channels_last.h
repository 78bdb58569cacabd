// Pooling in channels last: input [N, D, H, W, C], output [N, O, P, Q, C], vectors over the channels.
//
// Each output is computed from the taps of its window. An average sums rows of taps first and then the rows,
// for accuracy. A task is a block of channels of some rows of the result.
#pragma once

#include "entry.h"
#include "pool_row.h"
#include "pool_tables.h"
#include "range.h"

namespace cnnext::cpu::CNNEXT_ISA {

// What forward and backward share: the result is [images, rows, width, C], cut into tasks.
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

  // body(row, its channels, thread) for all of `heights` rows in `depths` planes of an image each.
  template <class Body>
  void run(const Parallel& parallel, int64_t depths, int64_t heights, bool streamed, const Body& body) const {
    parallel(ceil_div(rows, rows_per_task) * channel_blocks(), [&](int64_t task, int thread) {
      const Range some = block(task / channel_blocks(), rows_per_task, rows);
      const Range c = block(task % channel_blocks(), channels_per_task, channels);
      for (RowPosition row(some.begin, depths, heights); row.number < some.end; row.next(depths, heights))
        body(row, c, thread);
      if (streamed) end_streams();
    });
  }
};

// Calls block.run<V, part>(channel, count) for blocks of V vectors, the widest first, down to single vectors,
// the last of which overlaps the one before; with fewer channels than lanes a part of a vector.
template <class A, int V, class Block>
CNNEXT_INLINE void each_channel_block(int64_t begin, int64_t end, const Block& block, int64_t c) {
  constexpr int64_t L = kLanes<A>;
  for (; c + V * L <= end; c += V * L) block.template run<V, false>(c, L);
  if constexpr (V > 1) return each_channel_block<A, V / 2>(begin, end, block, c);
  if (c == end) return;
  if (end - begin >= L) return block.template run<1, false>(end - L, L);
  block.template run<1, true>(c, end - c);
}
template <class A, int V, class Block>
CNNEXT_INLINE void each_channel_block(int64_t begin, int64_t end, const Block& block) {
  each_channel_block<A, V>(begin, end, block, begin);
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
        offsets(b.offsets),
        put(shape, output) {
    scratch.base = workspace;
    for (int a = 0; a < kAxes; ++a) axis[a].lay_out(shape, a, false, scratch);
    rows = scratch.take_each<Row>(p.threads, most_taps(shape.axis[0]) * most_taps(shape.axis[1]));
  }

  static constexpr bool kGradient = false, kStoresOffsets = mode == PoolMode::kMaxOffsets;

  int64_t workspace_bytes() const { return scratch.bytes; }

  void prepare() const {
    for (int a = 0; a < kAxes; ++a) axis[a].fill(shape, a);
  }
  void set_buffers(const PoolBuffers& b) {
    input = static_cast<const T*>(b.input);
    output = static_cast<T*>(b.output);
    offsets = b.offsets;
  }
  void all_rows(int thread) const {
    const Window &d = shape.axis[0], &h = shape.axis[1];
    for (RowPosition row(0, d.output, h.output); row.plane < shape.N; row.next(d.output, h.output)) {
      output_row(row, rows[thread], {0, C});
    }
  }

  void run(const Parallel& parallel) const {
    prepare();
    const Window &d = shape.axis[0], &h = shape.axis[1], &w = shape.axis[2];
    const ChannelsLastTasks tasks(shape.N * d.output * h.output, w.output, C, shape.taps());
    tasks.run(parallel, d.output, h.output, put.streamed,
              [&](const RowPosition& row, Range c, int thread) { output_row(row, rows[thread], c); });
  }

  // One output pixel.
  struct Pixel {
    const PoolChannelsLast& pool;
    const Row* rows;
    int64_t row_count, row_offset, taps, step;  // taps of a row are `step` elements apart, from the offset on
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
            const Vec<A> next = kPart ? load_some(from, count, pool.input_end()) : load(from + v * L);
            if constexpr (mode == PoolMode::kAverage) {
              row[v] += next;
            } else if constexpr (mode == PoolMode::kMax) {
              value[v] = larger(value[v], next);
            } else {
              const auto stay = stays(value[v], next);
              value[v] = stay ? value[v] : next;
              offset[v] = stay ? offset[v] : tap - OffsetVec<A>{};
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
        pool.put(pool.output + to, value[v], kPart ? count : L);
        if constexpr (mode == PoolMode::kMaxOffsets) {
          store_offsets<A>(pool.problem, pool.offsets, to, offset[v], kPart ? count : L);
        }
      }
    }
  };

  void output_row(const RowPosition& at, Row* rows, Range c) const {
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
    constexpr bool kAverage = mode == PoolMode::kAverage;
    const int64_t over_rows = kAverage ? problem.divisor(0, at.depth) * problem.divisor(1, at.height) : 1;
    for (int64_t q = 0; q < w.output; ++q) {
      const Span span = axis[2].span[q];
      const int64_t divisor = kAverage ? over_rows * problem.divisor(2, q) : 1;
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
      each_channel_block<A, kWideBlock>(c.begin, c.end, pixel);
    }
  }

  // Vectors that are computed side by side; a vector of an average needs two registers, of a maximum two or
  // more.
  static constexpr int kWideBlock = CNNEXT_VECTOR_BYTES == 64 && mode != PoolMode::kMaxOffsets ? 8 : 4;

  const T* input_end() const { return input + shape.N * shape.input_pixels() * C; }

  const PoolProblem& problem;
  const PoolShape& shape;
  int64_t C;
  const T* input;
  T* output;
  void* offsets;
  ResultStores put;
  ScratchLayout scratch;
  AxisTable axis[kAxes];
  PerThread<Row> rows;
};

constexpr const char* kChannelsLastSummary = "vectors over the channels";
constexpr PoolKernel kMaxPoolChannelsLast = entry<ByType<InMode<PoolChannelsLast, PoolMode::kMax>::Of>>(
    "channels_last", kChannelsLastSummary, layout_refuses<Layout::kChannelsLast>);
constexpr PoolKernel kMaxPoolOffsetsChannelsLast =
    entry<ByType<InMode<PoolChannelsLast, PoolMode::kMaxOffsets>::Of>>("channels_last", kChannelsLastSummary,
                                                                       layout_refuses<Layout::kChannelsLast>);
constexpr PoolKernel kAvgPoolChannelsLast = entry<ByType<InMode<PoolChannelsLast, PoolMode::kAverage>::Of>>(
    "channels_last", kChannelsLastSummary, layout_refuses<Layout::kChannelsLast>);

}  // namespace cnnext::cpu::CNNEXT_ISA
