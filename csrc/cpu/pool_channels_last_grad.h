// Gradients of pooling in channels last: grad_output [N, O, P, Q, C], grad_input [N, D, H, W, C], vectors
// over the channels. Each input gathers from the windows over it, in their order, and is written once.
//
// Where the compiler knows the windows along a row (of maxima), they are passed from the left to the right:
// each is read once, and the sums of the inputs beneath it stay in registers until the last window over them
// has passed. Tensors beyond the caches are passed in the order of memory, all channels of a window at a
// time.
#pragma once

#include "pool_channels_last.h"

namespace cnnext::cpu::CNNEXT_ISA {

// O is the type of the stored offsets, or void for an average.
template <class T, class O, class Windows = RowWindows<0, 0>>
struct PoolGradChannelsLast {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;
  static constexpr bool kAverage = std::is_void_v<O>;
  static constexpr int64_t kCacheBytes = 1 << 20;
  static constexpr int kTaps = Windows::kTaps, kStride = Windows::kStride;

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
        offsets(static_cast<const O*>(b.offsets)),
        put(shape, grad_input) {
    scratch.base = workspace;
    for (int a = 0; a < kAxes; ++a) {
      axis[a].lay_out(shape, a, true, scratch);
      if (kAverage) divisor[a] = scratch.take<int64_t>(shape.axis[a].output);
      if (kAverage) common[a] = scratch.take<int64_t>(shape.axis[a].input);
    }
    windows = scratch.take_each<Row>(p.threads, shape.windows_over_input(0) * shape.windows_over_input(1));
    carried = scratch.take_each<A>(p.threads, round_up(C, kAlignment) * (kTaps - kStride));
  }

  static constexpr bool kGradient = true, kStoresOffsets = false;

  int64_t workspace_bytes() const { return scratch.bytes; }

  void prepare() const {
    for (int a = 0; a < kAxes; ++a) {
      axis[a].fill(shape, a);
      if (kAverage) fill_divisors(a);
    }
  }
  void set_buffers(const PoolBuffers& b) {
    grad_output = static_cast<const T*>(b.output);
    grad_input = static_cast<T*>(b.input);
    offsets = static_cast<const O*>(b.offsets);
  }
  void all_rows(int thread) const {
    const Window &d = shape.axis[0], &h = shape.axis[1];
    for (RowPosition row(0, d.input, h.input); row.plane < shape.N; row.next(d.input, h.input)) {
      input_row(row, thread, {0, C});
    }
  }

  void run(const Parallel& parallel) const {
    prepare();
    int64_t readers = 1;
    for (int a = 0; a < kAxes; ++a) readers *= shape.windows_over_input(a);
    const Window &d = shape.axis[0], &h = shape.axis[1], &w = shape.axis[2];
    const ChannelsLastTasks tasks(shape.N * d.input * h.input, w.input, C, readers);
    tasks.run(parallel, d.input, h.input, put.streamed,
              [&](const RowPosition& row, Range c, int thread) { input_row(row, thread, c); });
  }

  // The divisors of windows along an axis, and for each input the one that all windows over it have, or else
  // 0.
  void fill_divisors(int a) const {
    const Window& w = shape.axis[a];
    for (int64_t o = 0; o < w.output; ++o) divisor[a][o] = problem.divisor(a, o);
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
    A multiply_by;                        // the same by its reciprocal, where that is exact, or 0

    template <int V, bool kPart>
    __attribute__((always_inline)) void run(int64_t c, int64_t count) const {
      Vec<A> sum[V] = {};
      for (const Row* row = rows; row != rows_end; ++row) {
        for (const Reader* reader = readers; reader != readers_end; ++reader) {
          const int64_t from = (row->output + reader->output) * pool.C + c;
          const auto tap = static_cast<Offset<A>>(row->tap + reader->tap);
          for (int v = 0; v < V; ++v) {
            const T* source = pool.grad_output + from + v * L;
            Vec<A> grad = kPart ? load_some(source, count, pool.grad_output + pool.outputs()) : load(source);
            if constexpr (std::is_same_v<O, uint8_t>) {
              const auto match = pool.template match<kPart>(from + v * L, count);
              sum[v] = match.add(sum[v], OffsetMatch<A>::key(tap), grad);
            } else if constexpr (!kAverage) {
              const OffsetVec<A> offset =
                  kPart ? load_some_offsets<A>(pool.offsets + from, count, pool.offsets + pool.outputs())
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
        if (kAverage && multiply_by != A(0)) {
          sum[v] *= broadcast<A>(multiply_by);
        } else if (kAverage && divide_by != A(0)) {
          sum[v] /= broadcast<A>(divide_by);
        }
        pool.put(pool.grad_input + at + c + v * L, sum[v], kPart ? count : L);
      }
    }
  };

  // The inputs of a row beneath windows [begin, end).
  template <bool kStreamed>
  struct Inputs {
    const PoolGradChannelsLast& pool;
    const Row *rows, *rows_end;
    int64_t at;  // first element of the row
    int64_t begin, end;
    A* carried;     // sums of inputs that are beneath both window begin - 1 and window `begin`
    bool in_order;  // of memory

    template <int V, bool kPart>
    __attribute__((always_inline)) void run(int64_t c, int64_t count) const {
      constexpr int kCarried = kTaps - kStride;
      const Window& w = pool.shape.axis[2];
      Vec<A> sum[kTaps][V] = {};  // of the inputs beneath window q
      A* kept = carried + round_up(c, L) * kCarried;
      for (int i = 0; begin > 0 && i < kCarried * V; ++i) sum[i / V][i % V] = load(kept + i * L);
      int64_t x = begin * kStride - w.padding;
      T* to = pool.grad_input + at + x * pool.C + c;
      const auto next_input = [&]() __attribute__((always_inline)) {
        for (int v = 0; v < V && in_order; ++v) __builtin_prefetch(to + kAhead * pool.C + v * L, 1, 2);
        for (int v = 0; v < V && w.contains(x); ++v) {
          kStreamed ? stream(to + v * L, sum[0][v]) : store_part(to + v * L, sum[0][v], kPart ? count : L);
        }
        to += pool.C;
        ++x;
        for (int v = 0; v < V; ++v) {
          for (int t = 1; t < kTaps; ++t) sum[t - 1][v] = sum[t][v];
          sum[kTaps - 1][v] = Vec<A>{};
        }
      };
      for (int64_t q = begin; q < end; ++q) {
        for (const Row* row = rows; row != rows_end; ++row) {
          const int64_t from = (row->output + q) * pool.C + c;
          for (int v = 0; v < V; ++v) {
            const T* source = pool.grad_output + from + v * L;
            if (kStreamed) {  // whose operands are no longer in the caches either
              __builtin_prefetch(source + kReadAhead * pool.C, 0, 3);
              if (v % 4 == 0) __builtin_prefetch(pool.offsets + from + v * L + kReadAhead * pool.C, 0, 3);
            }
            const Vec<A> grad =
                kPart ? load_some(source, count, pool.grad_output + pool.outputs()) : load(source);
            const auto match = pool.template match<kPart>(from + v * L, count);
            for (int t = 0; t < kTaps; ++t)
              sum[t][v] = match.add(sum[t][v], OffsetMatch<A>::key(row->tap + t), grad);
          }
        }
        for (int n = 0; n < kStride; ++n) next_input();
      }
      while (end == w.output && x < w.input) next_input();
      for (int i = 0; end < w.output && i < kCarried * V; ++i) store(kept + i * L, sum[i / V][i % V]);
    }
  };
  static constexpr int64_t kAhead = 4, kReadAhead = 8;  // inputs, windows
  // As many vectors side by side as leave a few registers.
  static constexpr int side_by_side() {
    int V = 1;
    while (2 * V * kTaps <= (CNNEXT_VECTOR_BYTES == 64 ? 24 : 12)) V *= 2;
    return V;
  }

  void input_row(const RowPosition& at, int thread, Range c) const {
    const Window &d = shape.axis[0], &h = shape.axis[1], &w = shape.axis[2];
    Row *const rows = windows[thread], *end = rows;
    for (int64_t i = axis[0].begin[at.depth]; i < axis[0].begin[at.depth + 1]; ++i) {
      for (int64_t j = axis[1].begin[at.height]; j < axis[1].begin[at.height + 1]; ++j) {
        const Reader o = axis[0].reader[i], p = axis[1].reader[j];
        *end++ = {((at.plane * d.output + o.output) * h.output + p.output) * w.output,
                  static_cast<Offset<A>>((o.tap * h.kernel + p.tap) * w.kernel),
                  kAverage ? divisor[0][o.output] * divisor[1][p.output] : 1};
      }
    }
    if constexpr (kTaps > 0) {
      const auto inputs = [&](auto streamed, int64_t q, int64_t q_end, bool in_order) {
        const Inputs<streamed> beneath = {*this,           rows,    end, at.number * w.input * C, q, q_end,
                                          carried[thread], in_order};
        each_channel_block<A, side_by_side()>(c.begin, c.end, beneath);
      };
      const bool in_order =
          c.size() > side_by_side() * L && shape.N * shape.input_pixels() * C * sizeof(T) > kCacheBytes;
      for (int64_t q = 0, count = in_order ? 1 : w.output; q < w.output; q += count)
        put.streamed ? inputs(std::true_type(), q, q + count, false)
                     : inputs(std::false_type(), q, q + count, in_order);
      return;
    }
    const int64_t over_rows = kAverage ? common[0][at.depth] * common[1][at.height] : 1;
    for (int64_t x = 0; x < w.input; ++x) {
      // Where all windows divide by the same number, the sum is divided once, or multiplied, which takes a
      // tenth.
      const int64_t count = kAverage ? over_rows * common[2][x] : 1;
      const bool exact = count > 0 && (count & (count - 1)) == 0;
      const Pixel pixel = {*this,
                           rows,
                           end,
                           axis[2].reader + axis[2].begin[x],
                           axis[2].reader + axis[2].begin[x + 1],
                           (at.number * w.input + x) * C,
                           static_cast<A>(count),
                           exact ? A(1) / static_cast<A>(count) : A(0)};
      each_channel_block<A, CNNEXT_VECTOR_BYTES == 64 ? 8 : 4>(c.begin, c.end, pixel);
    }
  }

  int64_t outputs() const { return shape.N * shape.output_pixels() * C; }
  template <bool kPart>
  __attribute__((always_inline)) OffsetMatch<A> match(int64_t from, int64_t count) const {
    return kPart ? match_some<A>(offsets + from, count, offsets + outputs()) : OffsetMatch<A>(offsets + from);
  }

  const PoolProblem& problem;
  const PoolShape& shape;
  int64_t C;
  const T* grad_output;
  T* grad_input;
  const O* offsets;
  ResultStores put;
  ScratchLayout scratch;
  AxisTable axis[kAxes];
  int64_t *divisor[kAxes] = {}, *common[kAxes] = {};
  PerThread<Row> windows;
  PerThread<A> carried;
};

template <class T>
using AvgPoolGradChannelsLast = PoolGradChannelsLast<T, void>;

struct MaxPoolGradChannelsLastClasses {
  template <class Visit>
  static void with(const PoolProblem& p, const PoolBuffers& b, char* workspace, Visit&& visit) {
    with_type(p.dtype, [&](auto* type) {
      using T = Pointee<decltype(type)>;
      const bool known = with_row_windows(p, [&](auto windows) {
        visit(PoolGradChannelsLast<T, uint8_t, decltype(windows)>(p, b, workspace));
      });
      if (known) return;
      with_offset_type(
          p, [&](auto* tag) { visit(PoolGradChannelsLast<T, Pointee<decltype(tag)>>(p, b, workspace)); });
    });
  }
};

// Gathering compares an output for each input under its window: with large, dense windows scattering does
// less.
inline const char* max_grad_channels_last_refuses(const PoolProblem& p) {
  constexpr bool kMasks = CNNEXT_VECTOR_BYTES == 64, kWide = CNNEXT_VECTOR_BYTES > 16;
  if (const char* reason = layout_refuses<Layout::kChannelsLast>(p)) return reason;
  const int64_t most = with_row_windows(p, [](auto) {}) ? (kMasks ? 32 : 16)
                       : kWide                          ? kLanes<float> / 2 + 8
                                                        : 1;
  int64_t readers = 1;
  for (int a = 0; a < kAxes; ++a) readers *= p.shape.windows_over_input(a);
  return readers > most ? "takes few windows over an input" : nullptr;
}

constexpr PoolKernel kMaxPoolGradChannelsLast = entry<MaxPoolGradChannelsLastClasses>(
    "channels_last", kChannelsLastSummary, max_grad_channels_last_refuses);
constexpr PoolKernel kAvgPoolGradChannelsLast = entry<ByType<AvgPoolGradChannelsLast>>(
    "channels_last", kChannelsLastSummary,
    first_refusal<layout_refuses<Layout::kChannelsLast>, readers_refuse>);

}  // namespace cnnext::cpu::CNNEXT_ISA
