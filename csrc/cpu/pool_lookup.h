// What follows the offsets of max windows, in both layouts: int64 indices made of them, values picked by
// them, and the gradient scattered by them, window after window, for windows so many that gathering would
// read too much.
#pragma once

#include "pool_plane.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kNowhere = int64_t{1} << 60;  // added to any pixel it stays outside of the plane

// The input pixel of an offset is the window's origin plus delta[offset], which must be checked: offsets are
// data.
template <class O>
struct OffsetTable {
  OffsetTable(const PoolShape& shape, char* workspace) : shape(shape) {
    scratch.base = workspace;
    entries = sizeof(O) == 1 ? 256 : shape.taps();
    delta = scratch.take<int64_t>(entries);
    for (int a = 0; a < kAxes; ++a) origin[a] = scratch.take<int64_t>(shape.axis[a].output);
  }

  // A dilated window may have no tap inside the input. Its index is torch's, but no value and no gradient
  // goes there.
  void fill(bool only_inside) const {
    const Window &d = shape.axis[0], &h = shape.axis[1], &w = shape.axis[2];
    for (int64_t tap = 0; tap < entries; ++tap) {
      const int64_t td = tap / w.kernel / h.kernel * d.dilation, th = tap / w.kernel % h.kernel * h.dilation;
      delta[tap] =
          tap < shape.taps() ? (td * h.input + th) * w.input + tap % w.kernel * w.dilation : kNowhere;
    }
    for (int a = 0; a < kAxes; ++a) {
      for (int64_t o = 0; o < shape.axis[a].output; ++o) {
        origin[a][o] = only_inside && shape.span(a, o).count == 0 ? kNowhere : shape.origin(a, o);
      }
    }
  }

  int64_t window(int64_t o, int64_t p) const {  // the origin of its rows of windows
    if (origin[0][o] == kNowhere || origin[1][p] == kNowhere) return kNowhere;
    return (origin[0][o] * shape.axis[1].input + origin[1][p]) * shape.axis[2].input;
  }
  int64_t offset_delta(O offset) const {
    if constexpr (sizeof(O) == 1) return delta[offset];
    return static_cast<uint64_t>(offset) < static_cast<uint64_t>(entries) ? delta[offset] : kNowhere;
  }

  const PoolShape& shape;
  int64_t entries;
  int64_t* delta;
  int64_t* origin[kAxes];
  ScratchLayout scratch;
};

// body(element of the output, its image and channel, input pixel) for each output, in tasks of rows.
template <class O, class Body>
void each_offset(const PoolProblem& p, const O* offsets, const Parallel& parallel, char* workspace,
                 bool only_inside, Body body) {
  const PoolShape& shape = p.shape;
  const OffsetTable<O> table(shape, workspace);
  table.fill(only_inside);
  const bool last = p.layout == Layout::kChannelsLast;
  const int64_t C = shape.C, O_ = shape.axis[0].output, P = shape.axis[1].output, Q = shape.axis[2].output;
  const int64_t inner = last ? C : 1, outer = last ? 1 : C;
  const int64_t rows = shape.N * outer * O_ * P, per_task = max_of(1, (1 << 14) / max_of(1, Q * inner));
  parallel(ceil_div(rows, per_task), [&](int64_t task, int) {
    for (int64_t row = task * per_task; row < min_of(rows, (task + 1) * per_task); ++row) {
      const int64_t window = table.window(row / P % O_, row % P), block = row / P / O_;
      for (int64_t q = 0; q < Q; ++q) {
        const int64_t at = (row * Q + q) * inner, origin = window + table.origin[2][q];
        for (int64_t c = 0; c < inner; ++c) {
          body(at + c, block / outer, block % outer + c, origin + table.offset_delta(offsets[at + c]));
        }
      }
    }
  });
}

template <class Run>
void with_offset_type(const PoolProblem& p, Run&& run) {
  if (p.wide_offsets()) {
    run(static_cast<int32_t*>(nullptr));
  } else {
    run(static_cast<uint8_t*>(nullptr));
  }
}

CNNEXT_INLINE int64_t lookup_workspace(const PoolProblem& p) {
  int64_t bytes = 0;
  with_offset_type(
      p, [&](auto* tag) { bytes = OffsetTable<Pointee<decltype(tag)>>(p.shape, nullptr).scratch.bytes; });
  return bytes;
}

CNNEXT_INLINE void run_indices(const PoolProblem& p, const PoolBuffers& b, const Parallel& parallel,
                               char* workspace) {
  with_offset_type(p, [&](auto* tag) {
    each_offset(p, static_cast<decltype(tag)>(b.offsets), parallel, workspace, false,
                [&](int64_t at, int64_t, int64_t, int64_t pixel) { b.indices[at] = pixel; });
  });
}

CNNEXT_INLINE void run_select(const PoolProblem& p, const PoolBuffers& b, const Parallel& parallel,
                              char* workspace) {
  const Strides strides = strides_of(p.layout, p.shape.C, p.shape.input_pixels());
  const auto pixels = static_cast<uint64_t>(p.shape.input_pixels());
  with_type(p.dtype, [&](auto* type) {
    const auto* input = static_cast<decltype(type)>(b.input);
    auto* output = static_cast<decltype(type)>(b.output);
    with_offset_type(p, [&](auto* tag) {
      each_offset(p, static_cast<decltype(tag)>(b.offsets), parallel, workspace, true,
                  [&](int64_t at, int64_t n, int64_t c, int64_t pixel) {
                    output[at] = static_cast<uint64_t>(pixel) < pixels
                                     ? input[n * strides.image + c * strides.channel + pixel * strides.pixel]
                                     : Pointee<decltype(type)>{};
                  });
    });
  });
}

// A task owns a plane (channels first) or a block of channels of an image (channels last), summed in scratch
// memory.
constexpr int64_t kScatterChannels = 16;

CNNEXT_INLINE int64_t scatter_channels(const PoolProblem& p) {
  return p.layout == Layout::kChannelsLast ? min_of(p.shape.C, kScatterChannels) : 1;
}

// Adds `channels` neighbouring channels of each window's gradient to theirs of the input, sums [pixels,
// channels]. From pixel to pixel it is `step` elements in the output.
template <class T, class O>
void scatter_windows(const OffsetTable<O>& table, const T* grad_output, const O* offsets, int64_t step,
                     int64_t channels, Acc<T>* sums) {
  const auto pixels = static_cast<uint64_t>(table.shape.input_pixels());
  const int64_t Q = table.shape.axis[2].output;
  const int64_t* origin = table.origin[2];
  for (int64_t o = 0; o < table.shape.axis[0].output; ++o) {
    for (int64_t p = 0; p < table.shape.axis[1].output; ++p) {
      const int64_t window = table.window(o, p);
      if (step == 1) {  // a plane: there is one channel
        for (int64_t q = 0; q < Q; ++q) {
          const auto pixel = static_cast<uint64_t>(window + origin[q] + table.offset_delta(offsets[q]));
          if (pixel < pixels) sums[pixel] += load_one(grad_output + q);
        }
      } else {
        for (int64_t q = 0; q < Q; ++q) {
          for (int64_t c = 0; c < channels; ++c) {
            const int64_t delta = table.offset_delta(offsets[q * step + c]);
            const auto pixel = static_cast<uint64_t>(window + origin[q] + delta);
            if (pixel < pixels) sums[pixel * channels + c] += load_one(grad_output + q * step + c);
          }
        }
      }
      grad_output += Q * step;
      offsets += Q * step;
    }
  }
}

template <class T, class O>
void scatter(const PoolProblem& p, const PoolBuffers& b, const Parallel& parallel, char* workspace) {
  using A = Acc<T>;
  const PoolShape& shape = p.shape;
  const OffsetTable<O> table(shape, workspace);
  table.fill(true);
  const Strides in = strides_of(p.layout, shape.C, shape.input_pixels());
  const Strides out = strides_of(p.layout, shape.C, shape.output_pixels());
  const int64_t pixels = shape.input_pixels(), width = scatter_channels(p), blocks = ceil_div(shape.C, width);
  const int64_t sums_bytes = round_up(pixels * width * sizeof(A), kAlignment);
  const int64_t per_task = max_of(1, (1 << 14) / max_of(1, (pixels + shape.output_pixels()) * width));
  const int64_t parts = shape.N * blocks;
  // Planes of the accumulation type are their own scratch memory.
  const bool in_place = std::is_same_v<T, A> && p.layout == Layout::kChannelsFirst;
  parallel(ceil_div(parts, per_task), [&](int64_t task, int thread) {
    A* scratch = reinterpret_cast<A*>(workspace + table.scratch.bytes + thread * sums_bytes);
    const int64_t first = task * per_task, end = min_of(parts, first + per_task);
    if (in_place)
      __builtin_memset(static_cast<T*>(b.input) + first * pixels, 0, (end - first) * pixels * sizeof(T));
    for (int64_t part = first; part < end; ++part) {
      const int64_t n = part / blocks, c = part % blocks * width, channels = min_of(width, shape.C - c);
      const int64_t from = n * out.image + c * out.channel;
      const T* grad_output = static_cast<const T*>(b.output) + from;
      const O* offsets = static_cast<const O*>(b.offsets) + from;
      T* grad_input = static_cast<T*>(b.input) + n * in.image + c * in.channel;
      A* sums = in_place ? reinterpret_cast<A*>(grad_input) : scratch;
      if (!in_place) __builtin_memset(sums, 0, pixels * channels * sizeof(A));
      scatter_windows<T, O>(table, grad_output, offsets, out.pixel, channels, sums);
      for (int64_t i = 0; i < pixels && !in_place; ++i) {
        for (int64_t k = 0; k < channels; ++k)
          store_one(grad_input + i * in.pixel + k, sums[i * channels + k]);
      }
    }
  });
}

CNNEXT_INLINE int64_t scatter_workspace(const PoolProblem& p) {
  const int64_t size = p.dtype == DType::kFloat64 ? sizeof(double) : sizeof(float);
  return lookup_workspace(p) +
         p.threads * round_up(p.shape.input_pixels() * scatter_channels(p) * size, kAlignment);
}
CNNEXT_INLINE void run_scatter(const PoolProblem& p, const PoolBuffers& b, const Parallel& parallel,
                               char* workspace) {
  with_type(p.dtype, [&](auto* type) {
    with_offset_type(p, [&](auto* tag) {
      scatter<Pointee<decltype(type)>, Pointee<decltype(tag)>>(p, b, parallel, workspace);
    });
  });
}
CNNEXT_INLINE const char* accepts_every_pool(const PoolProblem&) { return nullptr; }

constexpr PoolKernel kMaxPoolIndices = {"lookup", "offsets to indices", accepts_every_pool, lookup_workspace,
                                        run_indices};
constexpr PoolKernel kMaxPoolSelect = {"lookup", "values at the offsets", accepts_every_pool,
                                       lookup_workspace, run_select};
constexpr PoolKernel kMaxPoolGradScatter = {"scatter", "window after window", accepts_every_pool,
                                            scatter_workspace, run_scatter};

}  // namespace cnnext::cpu::CNNEXT_ISA
