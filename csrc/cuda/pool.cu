#include "kernels.h"
#include "plan.h"
#include "pool_strip.cuh"

namespace cnnext::cuda {
namespace {

PoolArguments arguments(const PoolProblem& p, int pack) {
  const PoolShape& s = p.shape;
  PoolArguments a = {};
  for (int i = 0; i < kAxes; ++i) {
    const Window& w = s.axis[i];
    PoolAxis& axis = a.axis[i];
    // A step over the whole axis is as good as a longer one.
    const int64_t whole = w.input + 2 * w.padding;
    const int64_t stride = min_of(w.stride, whole), dilation = min_of(w.dilation, whole);
    axis = {int(w.input),   int(w.output), int(w.kernel), int(stride),
            int(w.padding), int(dilation), s.adaptive[i], (w.input + 1) * (w.output + 1) > INT32_MAX};
    a.adaptive = a.adaptive || s.adaptive[i];
    axis.by_input = Divisor(w.input);
    axis.by_output = Divisor(w.output);
    axis.by_kernel = Divisor(w.kernel);
    axis.by_stride = Divisor(stride);
    axis.by_dilation = Divisor(dilation);
  }
  a.channels_last = p.layout == Layout::kChannelsLast;
  a.count_padding = p.count_padding;
  a.divisor_override = p.divisor_override;
  a.packs = int(s.C / pack);
  a.by_packs = Divisor(a.packs);
  a.input = strides_of(p.layout, s.C, s.input_pixels());
  a.output = strides_of(p.layout, s.C, s.output_pixels());
  a.inputs = s.input_pixels() * a.packs;
  a.outputs = s.output_pixels() * a.packs;
  a.large = max_of(a.inputs, a.outputs) > kMostGridX - kPoolThreads;
  return a;
}

enum class Over { kOutput, kInput };  // what threads compute

// Calls run(arguments, grid) for each batch that fits a grid. strip: rows that a thread computes; block:
// items of a block.
template <class Run>
void for_each_batch(const PoolProblem& p, int pack, int strip, Over over, int block, Run&& run) {
  PoolArguments a = arguments(p, pack);
  PoolAxis& h = a.axis[1];
  const bool over_input = over == Over::kInput;
  int64_t& items = over_input ? a.inputs : a.outputs;
  if (strip > 1) {  // of inputs, from the first row of padding
    const int64_t strips = ceil_div(over_input ? h.input + h.padding : h.output, strip);
    items = items / (over_input ? h.input : h.output) * strips;
    (over_input ? h.by_input : h.by_output) = Divisor(strips);
    a.large = items > kMostGridX - kPoolThreads;
  }
  const int64_t blocks = ceil_div(items, block);
  for (; a.first_image < p.shape.N; a.first_image += kMostGridYZ) {
    run(a, Grid{blocks, min_of(kMostGridYZ, p.shape.N - a.first_image)});
  }
}

// Calls run with the window that a strip is computed for, if there is a body for it.
template <class T, class Run>
void with_window(const PoolProblem& p, Run&& run) {
  const Window &h = p.shape.axis[1], &w = p.shape.axis[2];
  const auto is = [&](int64_t kernel, int64_t stride) {
    const auto fits = [&](int axis, const Window& window) {
      return window.kernel == kernel && window.stride == stride && window.dilation == 1 &&
             !p.shape.adaptive[axis];
    };
    return fits(1, h) && fits(2, w);
  };
  if constexpr (sizeof(T) < 8) {
    if (is(2, 2)) return run(Square<2, 2>());
    if (is(3, 1)) return run(Square<3, 1>());
    if (is(3, 2)) return run(Square<3, 2>());
  }
  run(Square<0, 0>());
}

// Calls run with a tag of an unsigned type of the elements' size, for kernels that only move them.
template <class Run>
void with_size(DType dtype, Run&& run) {
  if (dtype == DType::kFloat64) return run(static_cast<uint64_t*>(nullptr));
  if (dtype == DType::kFloat32) return run(static_cast<uint32_t*>(nullptr));
  run(static_cast<uint16_t*>(nullptr));
}

template <class T>
T* as(void* pointer) {
  return static_cast<T*>(pointer);
}
template <class T>
const T* as_const(void* pointer) {
  return static_cast<const T*>(pointer);
}

constexpr int kPlanes = 8;  // of a thread in channels first

bool few_windows(const PoolProblem& p) { return p.shape.output_pixels() < 16; }

// Whether threads take several planes. Few windows are better spread over more threads.
bool by_planes(const PoolProblem& p, Over over) {
  return p.layout == Layout::kChannelsFirst && p.shape.C % kPlanes == 0 &&
         (over == Over::kInput || !few_windows(p));
}

bool shares_windows(const PoolProblem& p) {
  const auto& axis = p.shape.axis;
  return few_windows(p) && axis[0].kernel * axis[1].kernel * axis[2].kernel >= 32;
}

// Calls run(tag of the type, channels of a thread, window, tag of the offsets' type) for the body that fits
// the problem.
template <class Run>
void with_bodies(const PoolProblem& p, const PoolBuffers& b, Over over, Run&& run) {
  with_type(p.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    const auto generic = [&](auto* offset) {
      if (by_planes(p, over)) return run(tag, ChannelPack<kPlanes, true>(), Square<0, 0>(), offset);
      run(tag, ChannelPack<1, false>(), Square<0, 0>(), offset);
    };
    if (b.offsets && p.wide_offsets()) return generic(static_cast<int32_t*>(nullptr));
    auto* offset = static_cast<uint8_t*>(nullptr);
    if (p.layout == Layout::kChannelsFirst) {
      return with_window<T>(p, [&](auto window) {
        if constexpr (window.kKernel == 0) {
          generic(offset);
        } else {
          run(tag, ChannelPack<1, false>(), window, offset);
        }
      });
    }
    // Whole vectors of channels where they fill vectors.
    if (!are_aligned(b.input, b.output, b.offsets) || p.shape.C % kPerVector<T> != 0) return generic(offset);
    with_window<T>(p, [&](auto window) { run(tag, ChannelPack<kPerVector<T>, false>(), window, offset); });
  });
}

template <bool kWithOffsets>
void start_max_pool(const PoolProblem& p, const PoolBuffers& b, const Stream& stream) {
  with_bodies(p, b, Over::kOutput, [&](auto* tag, auto channels, auto window, auto* offset) {
    using T = Pointee<decltype(tag)>;
    using Channels = decltype(channels);
    constexpr int kPack = Channels::kCount;
    using Offset = Pointee<decltype(offset)>;
    using Window = decltype(window);
    const auto start = [&](auto kernel, int strip) {
      for_each_batch(p, kPack, strip, Over::kOutput, kPoolThreads, [&](const PoolArguments& a, Grid grid) {
        launch(kernel, grid, kPoolThreads, 0, stream, a, as_const<T>(b.input), as<T>(b.output),
               as<Offset>(b.offsets));
      });
    };
    if constexpr (Window::kKernel > 0) {
      start(max_pool_strip<T, kPack, Window, kWithOffsets>, kStrip<kPack>);
    } else {
      start(max_pool<T, Channels, Offset, kWithOffsets>, 1);
    }
  });
}

}  // namespace

void run_max_pool(const PoolProblem& p, const PoolBuffers& b, const Stream& stream, char*) {
  start_max_pool<false>(p, b, stream);
}
void run_max_pool_with_offsets(const PoolProblem& p, const PoolBuffers& b, const Stream& stream, char*) {
  start_max_pool<true>(p, b, stream);
}

void run_max_pool_grad_input(const PoolProblem& p, const PoolBuffers& b, const Stream& stream, char*) {
  with_bodies(p, b, Over::kInput, [&](auto* tag, auto channels, auto window, auto* offset) {
    using T = Pointee<decltype(tag)>;
    using Channels = decltype(channels);
    constexpr int kPack = Channels::kCount;
    using Offset = Pointee<decltype(offset)>;
    using Window = decltype(window);
    const auto start = [&](auto kernel, int strip) {
      for_each_batch(p, kPack, strip, Over::kInput, kPoolThreads, [&](const PoolArguments& a, Grid grid) {
        launch(kernel, grid, kPoolThreads, 0, stream, a, as<T>(b.input), as_const<T>(b.output),
               as_const<Offset>(b.offsets));
      });
    };
    if constexpr (Window::kKernel > 0) {
      start(max_pool_grad_input_strip<T, kPack, Window>, kStrip<kPack>);
    } else {
      start(max_pool_grad_input<T, Channels, Offset>, 1);
    }
  });
}

void run_avg_pool(const PoolProblem& p, const PoolBuffers& b, const Stream& stream, char*) {
  with_bodies(p, b, Over::kOutput, [&](auto* tag, auto channels, auto window, auto*) {
    using T = Pointee<decltype(tag)>;
    using Channels = decltype(channels);
    constexpr int kPack = Channels::kCount;
    using Window = decltype(window);
    const auto start = [&](auto kernel, int strip, int block = kPoolThreads, int shared = 0) {
      for_each_batch(p, kPack, strip, Over::kOutput, block, [&](const PoolArguments& a, Grid grid) {
        launch(kernel, grid, kPoolThreads, shared, stream, a, as_const<T>(b.input), as<T>(b.output));
      });
    };
    if constexpr (Window::kKernel > 0) {
      start(avg_pool_strip<T, kPack, Window>, kStrip<kPack>);
    } else {
      if constexpr (!Channels::kPlanes) {
        const int bytes = kSharers<kPack> * kPack * kSumStep<kPack> * sizeof(Acc<T>);
        if (shares_windows(p)) return start(avg_pool_shared<T, kPack>, 1, kSharedWindows<kPack>, bytes);
      }
      start(avg_pool<T, Channels>, 1);
    }
  });
}

void run_avg_pool_grad_input(const PoolProblem& p, const PoolBuffers& b, const Stream& stream, char*) {
  with_bodies(p, b, Over::kInput, [&](auto* tag, auto channels, auto window, auto*) {
    using T = Pointee<decltype(tag)>;
    using Channels = decltype(channels);
    constexpr int kPack = Channels::kCount;
    using Window = decltype(window);
    const auto start = [&](auto kernel, int strip) {
      for_each_batch(p, kPack, strip, Over::kInput, kPoolThreads, [&](const PoolArguments& a, Grid grid) {
        launch(kernel, grid, kPoolThreads, 0, stream, a, as<T>(b.input), as_const<T>(b.output));
      });
    };
    if constexpr (Window::kKernel > 0) {
      start(avg_pool_grad_input_strip<T, kPack, Window>, kStrip<kPack>);
    } else {
      start(avg_pool_grad_input<T, Channels>, 1);
    }
  });
}

void run_max_pool_select(const PoolProblem& p, const PoolBuffers& b, const Stream& stream, char*) {
  with_size(p.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    with_offset_type(p, [&](auto* offset) {
      using Offset = Pointee<decltype(offset)>;
      for_each_batch(p, 1, 1, Over::kOutput, kPoolThreads, [&](const PoolArguments& a, Grid grid) {
        launch(max_pool_select<T, Offset>, grid, kPoolThreads, 0, stream, a, as_const<T>(b.input),
               as<T>(b.output), as_const<Offset>(b.offsets));
      });
    });
  });
}

void run_max_pool_indices(const PoolProblem& p, const PoolBuffers& b, const Stream& stream, char*) {
  with_offset_type(p, [&](auto* offset) {
    using Offset = Pointee<decltype(offset)>;
    for_each_batch(p, 1, 1, Over::kOutput, kPoolThreads, [&](const PoolArguments& a, Grid grid) {
      launch(max_pool_indices<Offset>, grid, kPoolThreads, 0, stream, a, as_const<Offset>(b.offsets),
             b.indices);
    });
  });
}

void run_max_unpool(const PoolProblem& p, const PoolBuffers& b, const Stream& stream, char* workspace) {
  const PoolShape& s = p.shape;
  with_size(p.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    launch(max_unpool<T>, {unpool_blocks(p)}, kPoolThreads, 0, stream, s.N * s.C, int(s.C),
           strides_of(p.layout, s.C, s.output_pixels()), strides_of(p.layout, s.C, s.input_pixels()),
           int(s.input_pixels()), int(s.output_pixels()), as_const<T>(b.output),
           static_cast<const int64_t*>(b.indices), as<T>(b.input), reinterpret_cast<int*>(workspace));
  });
}

void run_max_unpool_grad_input(const PoolProblem& p, const PoolBuffers& b, const Stream& stream, char*) {
  const PoolShape& s = p.shape;
  const int64_t elements = s.N * s.C * s.output_pixels();
  with_size(p.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    launch(max_unpool_grad_input<T>, {ceil_div(elements, kPoolThreads)}, kPoolThreads, 0, stream, elements,
           int(s.C), p.layout == Layout::kChannelsLast, strides_of(p.layout, s.C, s.output_pixels()),
           strides_of(p.layout, s.C, s.input_pixels()), int(s.input_pixels()), int(s.output_pixels()),
           as_const<T>(b.input), static_cast<const int64_t*>(b.indices), as<T>(b.output));
  });
}

}  // namespace cnnext::cuda
