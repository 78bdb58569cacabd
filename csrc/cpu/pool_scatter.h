// The gradient of max pooling, scattered window after window to the inputs that the offsets tell, for windows
// so many or so placed that gathering would read too much.
//
// A task owns planes (channels first) or a block of channels of an image (channels last). Neighbouring
// windows often have the same maximum, and each addition waits for the one before it: several planes take
// turns.
#pragma once

#include "pool_lookup.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kScatterPlanes = 4, kScatterChannels = 16;

CNNEXT_INLINE int64_t scatter_width(const PoolProblem& p) {  // planes, or channels
  return p.layout == Layout::kChannelsLast ? min_of(p.shape.C, kScatterChannels)
                                           : min_of(p.shape.N * p.shape.C, kScatterPlanes);
}

// Adds the gradients of windows to those of their inputs, in `width` planes or channels (kWidth if known).
// From window to window and from plane to plane they are these steps of elements apart.
template <int kWidth, class T, class O>
void scatter_windows(const OffsetTable<O>& table, const T* grad_output, const O* offsets, Strides out,
                     int64_t width, Acc<T>* sums, Strides in) {
  const auto pixels = static_cast<uint64_t>(table.shape.input_pixels());
  const int64_t P = table.shape.axis[1].output, Q = table.shape.axis[2].output;
  const int64_t* column = table.origin[2];
  for (int64_t row = 0; row < table.shape.axis[0].output * P; ++row) {
    const int64_t window = table.window(row / P, row % P);
    for (int64_t q = 0; q < Q; ++q, grad_output += out.pixel, offsets += out.pixel) {
      const int64_t origin = window + column[q];
#pragma GCC unroll 4
      for (int64_t c = 0; c < (kWidth ? kWidth : width); ++c) {
        const auto pixel = static_cast<uint64_t>(origin + table.offset_delta(offsets[c * out.channel]));
        if (pixel < pixels)
          sums[pixel * in.pixel + c * in.channel] += load_one(grad_output + c * out.channel);
      }
    }
  }
}

template <class T, class O>
struct MaxPoolGradScatter {
  using A = Acc<T>;

  MaxPoolGradScatter(const PoolProblem& p, const PoolBuffers& b, char* workspace)
      : problem(p),
        shape(p.shape),
        last(p.layout == Layout::kChannelsLast),
        width(scatter_width(p)),
        pixels(shape.input_pixels()),
        buffers(b),
        table(shape, workspace) {
    sums_bytes = round_up(pixels * width * sizeof(A), kAlignment);
  }

  int64_t workspace_bytes() const { return table.scratch.bytes + problem.threads * sums_bytes; }

  void run(const Parallel& parallel) const {
    table.fill(true);
    const int64_t images = last ? shape.N : 1;  // channels first, all planes are one image
    const int64_t channels = last ? shape.C : shape.N * shape.C;
    const int64_t blocks = ceil_div(channels, width), parts = images * blocks;
    const int64_t per_task = max_of(1, (1 << 14) / max_of(1, (pixels + shape.output_pixels()) * width));
    parallel(ceil_div(parts, per_task), [&](int64_t task, int thread) {
      A* scratch = reinterpret_cast<A*>(table.scratch.base + table.scratch.bytes + thread * sums_bytes);
      for (int64_t part = task * per_task; part < min_of(parts, (task + 1) * per_task); ++part) {
        const int64_t c = part % blocks * width;
        channel_block(part / blocks, c, min_of(width, channels - c), scratch);
      }
    });
  }

 private:
  void channel_block(int64_t n, int64_t c, int64_t count, A* scratch) const {
    const Strides in = strides_of(problem.layout, shape.C, pixels);
    const Strides out = strides_of(problem.layout, shape.C, shape.output_pixels());
    const int64_t from = n * out.image + c * out.channel;
    T* grad_input = static_cast<T*>(buffers.input) + n * in.image + c * in.channel;
    // Planes of the accumulation type are their own scratch memory.
    const bool in_place = std::is_same_v<T, A> && !last;
    A* sums = in_place ? reinterpret_cast<A*>(grad_input) : scratch;
    const Strides sums_step = strides_of(problem.layout, count, pixels);
    const T* grad_output = static_cast<const T*>(buffers.output) + from;
    const O* offsets = static_cast<const O*>(buffers.offsets) + from;
    __builtin_memset(sums, 0, pixels * count * sizeof(A));
    if (!last && count == kScatterPlanes) {
      scatter_windows<kScatterPlanes>(table, grad_output, offsets, out, count, sums, sums_step);
    } else {
      scatter_windows<0>(table, grad_output, offsets, out, count, sums, sums_step);
    }
    if (in_place) return;
    for (int64_t i = 0; i < pixels; ++i) {
      for (int64_t k = 0; k < count; ++k) {
        store_one(grad_input + i * in.pixel + k * in.channel,
                  sums[i * sums_step.pixel + k * sums_step.channel]);
      }
    }
  }

  const PoolProblem& problem;
  const PoolShape& shape;
  bool last;
  int64_t width, pixels, sums_bytes;
  const PoolBuffers& buffers;
  OffsetTable<O> table;
};

template <class Run>
void with_max_grad_scatter(const PoolProblem& p, const PoolBuffers& b, char* workspace, Run&& run) {
  with_type(p.dtype, [&](auto* type) {
    with_offset_type(p, [&](auto* tag) {
      run(MaxPoolGradScatter<Pointee<decltype(type)>, Pointee<decltype(tag)>>(p, b, workspace));
    });
  });
}
CNNEXT_INLINE int64_t max_grad_scatter_workspace(const PoolProblem& p) {
  int64_t bytes = 0;
  with_max_grad_scatter(p, {}, nullptr, [&](const auto& kernel) { bytes = kernel.workspace_bytes(); });
  return bytes;
}
CNNEXT_INLINE void run_max_grad_scatter(const PoolProblem& p, const PoolBuffers& b, const Parallel& parallel,
                                        char* workspace) {
  with_max_grad_scatter(p, b, workspace, [&](const auto& kernel) { kernel.run(parallel); });
}

constexpr PoolKernel kMaxPoolGradScatter = {"scatter", "window after window", accepts_every_pool,
                                            max_grad_scatter_workspace, run_max_grad_scatter};

}  // namespace cnnext::cpu::CNNEXT_ISA
