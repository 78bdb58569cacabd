// Max pooling with large windows in channels last: input [N, D, H, W, C], output [N, O, P, Q, C], vectors
// over the channels. Every row of the input is reduced for each window along it, and those rows then for each
// window across them: the taps of a row and the rows of a window add up, instead of being multiplied. Rows
// first keeps torch's order of comparison. A task is some channels of an image.
#pragma once

#include "pool_lanes.h"

namespace cnnext::cpu::CNNEXT_ISA {

template <class T, PoolMode mode>
struct PoolSeparable {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;
  static constexpr bool kGradient = false, kStoresOffsets = mode == PoolMode::kMaxOffsets;
  static constexpr int kVectors = 4;

  PoolSeparable(const PoolProblem& p, const PoolBuffers& b, char* workspace)
      : problem(p),
        shape(p.shape),
        C(p.shape.C),
        input_rows(shape.axis[0].input * shape.axis[1].input),
        reduced(input_rows * shape.axis[2].output * kVectors * L) {
    set_buffers(b);
    scratch.base = workspace;
    for (int a = 0; a < kAxes; ++a) axis[a].lay_out(shape, a, false, scratch);
    values = scratch.take_each<A>(p.threads, reduced);
    taps = scratch.take_each<Offset<A>>(p.threads, kStoresOffsets ? reduced : 0);
  }

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
    for (int64_t n = 0; n < shape.N; ++n) each_channel_block<A, kVectors>(0, C, Image{*this, n, thread});
  }

  void run(const Parallel& parallel) const {
    prepare();
    const int64_t per_task = kVectors * L, blocks = ceil_div(C, per_task);
    parallel(shape.N * blocks, [&](int64_t task, int thread) {
      const int64_t c = task % blocks * per_task;
      each_channel_block<A, kVectors>(c, min_of(C, c + per_task), Image{*this, task / blocks, thread});
    });
  }

  struct Image {
    const PoolSeparable& pool;
    int64_t n;
    int thread;
    template <int V, bool kPart>
    void run(int64_t c, int64_t count) const {
      pool.template reduce_rows<V, kPart>(n, c, count, thread);
      pool.template reduce_windows<V, kPart>(n, c, count, thread);
    }
  };

  template <int V>
  struct Best {  // so far
    Vec<A> value[V];
    OffsetVec<A> tap[V];

    explicit Best(int64_t first_tap) {
      for (int v = 0; v < V; ++v) {
        value[v] = broadcast<A>(lowest(A{}));
        tap[v] = broadcast_offset<A>(first_tap);
      }
    }
    __attribute__((always_inline)) static void take(Vec<A>& value, OffsetVec<A>& tap, Vec<A> next,
                                                    OffsetVec<A> next_tap) {
      if constexpr (!kStoresOffsets) {
        value = larger(value, next);
      } else {
        const auto stay = stays(value, next);
        value = stay ? value : next;
        tap = stay ? tap : next_tap;
      }
    }
  };

  template <int V, bool kPart>
  void reduce_rows(int64_t n, int64_t c, int64_t count, int thread) const {
    const Window& w = shape.axis[2];
    const T *row = input + n * input_rows * w.input * C + c,
            *input_end = input + shape.N * input_rows * w.input * C;
    A* to = values[thread];
    Offset<A>* tap_to = taps[thread];
    for (int64_t y = 0; y < input_rows; ++y, row += w.input * C) {
      for (int64_t q = 0; q < w.output; ++q, to += V * L, tap_to += V * L) {
        const Span span = axis[2].span[q];
        const T* from = row + span.index * C;
        Best<V> best(span.tap);
        for (int64_t t = 0; t < span.count; ++t, from += w.dilation * C) {
          const OffsetVec<A> tap = broadcast_offset<A>(span.tap + t);
          for (int v = 0; v < V; ++v) {
            best.take(best.value[v], best.tap[v],
                      kPart ? load_some(from, count, input_end) : load(from + v * L), tap);
          }
        }
        for (int v = 0; v < V; ++v) {
          store(to + v * L, best.value[v]);
          if constexpr (kStoresOffsets) store_unaligned(tap_to + v * L, best.tap[v]);
        }
      }
    }
  }

  template <int V, bool kPart>
  void reduce_windows(int64_t n, int64_t c, int64_t count, int thread) const {
    const Window &d = shape.axis[0], &h = shape.axis[1], &w = shape.axis[2];
    int64_t at = n * shape.output_pixels() * C + c;
    for (RowPosition row(0, d.output, h.output); row.plane == 0; row.next(d.output, h.output)) {
      const Span sd = axis[0].span[row.depth], sh = axis[1].span[row.height];
      for (int64_t q = 0; q < w.output; ++q, at += C) {
        Best<V> best((sd.tap * h.kernel + sh.tap) * w.kernel + axis[2].span[q].tap);
        for (int64_t z = 0; z < sd.count; ++z) {
          for (int64_t y = 0; y < sh.count; ++y) {
            const int64_t input_row = (sd.index + z * d.dilation) * h.input + sh.index + y * h.dilation;
            const int64_t from = (input_row * w.output + q) * V * L;
            const OffsetVec<A> tap = broadcast_offset<A>(((sd.tap + z) * h.kernel + sh.tap + y) * w.kernel);
            for (int v = 0; v < V; ++v) {
              OffsetVec<A> next_tap = tap;
              if constexpr (kStoresOffsets)
                next_tap += load_unaligned<OffsetVec<A>>(taps[thread] + from + v * L);
              best.take(best.value[v], best.tap[v], load(values[thread] + from + v * L), next_tap);
            }
          }
        }
        for (int v = 0; v < V; ++v) {
          store_part(output + at + v * L, best.value[v], kPart ? count : L);
          if constexpr (kStoresOffsets) {
            store_offsets<A>(problem, offsets, at + v * L, best.tap[v], kPart ? count : L);
          }
        }
      }
    }
  }

  const PoolProblem& problem;
  const PoolShape& shape;
  int64_t C, input_rows;
  int64_t reduced;  // elements of reduced rows for each thread
  const T* input;
  T* output;
  void* offsets;
  ScratchLayout scratch;
  AxisTable axis[kAxes];
  PerThread<A> values;
  PerThread<Offset<A>> taps;
};

inline const char* separable_refuses(const PoolProblem& p) {
  constexpr int64_t kMostBytes = 1 << 20;
  const Window &d = p.shape.axis[0], &h = p.shape.axis[1], &w = p.shape.axis[2];
  const int64_t input_rows = d.input * h.input, rows = d.output * h.output,
                rows_read = rows * d.kernel * h.kernel;
  if (rows_read * w.kernel < 2 * (input_rows * w.kernel + rows_read)) return "takes large windows";
  return input_rows * w.output * 4 * CNNEXT_VECTOR_BYTES > kMostBytes ? "takes planes that fit the cache"
                                                                      : nullptr;
}

constexpr const char* kSeparableSummary = "rows, then across them, vectors over the channels";
constexpr PoolKernel kMaxPoolSeparable = entry<ByType<InMode<PoolSeparable, PoolMode::kMax>::Of>>(
    "separable", kSeparableSummary, first_refusal<layout_refuses<Layout::kChannelsLast>, separable_refuses>);
constexpr PoolKernel kMaxPoolOffsetsSeparable =
    entry<ByType<InMode<PoolSeparable, PoolMode::kMaxOffsets>::Of>>(
        "separable", kSeparableSummary,
        first_refusal<layout_refuses<Layout::kChannelsLast>, separable_refuses>);

constexpr const char* kSeparableLanesSummary = "rows, then across them, vectors over planes";
constexpr PoolKernel kMaxPoolSeparableLanes = entry<InLanes<InMode<PoolSeparable, PoolMode::kMax>::Of>>(
    "separable_lanes", kSeparableLanesSummary, first_refusal<lanes_refuses, separable_refuses>);
constexpr PoolKernel kMaxPoolOffsetsSeparableLanes =
    entry<InLanes<InMode<PoolSeparable, PoolMode::kMaxOffsets>::Of>>(
        "separable_lanes", kSeparableLanesSummary, first_refusal<lanes_refuses, separable_refuses>);

}  // namespace cnnext::cpu::CNNEXT_ISA
