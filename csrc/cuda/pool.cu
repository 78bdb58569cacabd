#include "pool.cuh"
#include "kernels.h"

namespace cnnext::cuda {
namespace {

PoolArguments arguments(const PoolProblem& p, int pack) {
  const PoolShape& s = p.shape;
  PoolArguments a = {};
  for (int i = 0; i < kAxes; ++i) {
    const Window& w = s.axis[i];
    PoolAxis& axis = a.axis[i];
    axis = {int(w.input),   int(w.output),   int(w.kernel), int(w.stride),
            int(w.padding), int(w.dilation), s.adaptive[i]};
    axis.by_input = Divisor(w.input);
    axis.by_output = Divisor(w.output);
    axis.by_kernel = Divisor(w.kernel);
    axis.by_stride = Divisor(w.stride);
    axis.by_dilation = Divisor(w.dilation);
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

// Calls run(arguments, grid) for each batch that fits a grid.
template <class Run>
void for_each_batch(const PoolProblem& p, int pack, bool over_input, Run&& run) {
  PoolArguments a = arguments(p, pack);
  const int64_t blocks = ceil_div(over_input ? a.inputs : a.outputs, kPoolThreads);
  for (; a.first_image < p.shape.N; a.first_image += kMostGridYZ) {
    run(a, Grid{blocks, min_of(kMostGridYZ, p.shape.N - a.first_image)});
  }
}

// Whole vectors of channels where they are neighbours and fill vectors.
template <class T, class Run>
void with_pack(const PoolProblem& p, const PoolBuffers& b, Run&& run) {
  const bool wide = b.offsets && p.wide_offsets();
  if (!wide && are_aligned(b.input, b.output, b.offsets) && p.layout == Layout::kChannelsLast &&
      p.shape.C % kPerVector<T> == 0) {
    run(std::integral_constant<int, kPerVector<T>>());
  } else {
    run(std::integral_constant<int, 1>());
  }
}

// Calls run with a tag of the offsets' type.
template <class Run>
void with_offsets(const PoolProblem& p, Run&& run) {
  if (p.wide_offsets()) {
    run(static_cast<int32_t*>(nullptr));
  } else {
    run(static_cast<uint8_t*>(nullptr));
  }
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

}  // namespace

void run_max_pool(const PoolProblem& p, const PoolBuffers& b, const Stream& stream, char*) {
  with_type(p.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    with_pack<T>(p, b, [&](auto pack) {
      for_each_batch(p, pack, false, [&](const PoolArguments& a, Grid grid) {
        launch(max_pool<T, pack, uint8_t, false>, grid, kPoolThreads, 0, stream, a, as_const<T>(b.input),
               as<T>(b.output), static_cast<uint8_t*>(nullptr));
      });
    });
  });
}

void run_max_pool_with_offsets(const PoolProblem& p, const PoolBuffers& b, const Stream& stream, char*) {
  with_type(p.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    with_offsets(p, [&](auto* offset) {
      using Offset = Pointee<decltype(offset)>;
      with_pack<T>(p, b, [&](auto pack) {
        if constexpr (sizeof(Offset) == 1 || pack == 1) {
          for_each_batch(p, pack, false, [&](const PoolArguments& a, Grid grid) {
            launch(max_pool<T, pack, Offset, true>, grid, kPoolThreads, 0, stream, a, as_const<T>(b.input),
                   as<T>(b.output), as<Offset>(b.offsets));
          });
        }
      });
    });
  });
}

void run_max_pool_grad_input(const PoolProblem& p, const PoolBuffers& b, const Stream& stream, char*) {
  with_type(p.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    with_offsets(p, [&](auto* offset) {
      using Offset = Pointee<decltype(offset)>;
      with_pack<T>(p, b, [&](auto pack) {
        if constexpr (sizeof(Offset) == 1 || pack == 1) {
          for_each_batch(p, pack, true, [&](const PoolArguments& a, Grid grid) {
            launch(max_pool_grad_input<T, pack, Offset>, grid, kPoolThreads, 0, stream, a, as<T>(b.input),
                   as_const<T>(b.output), as_const<Offset>(b.offsets));
          });
        }
      });
    });
  });
}

void run_avg_pool(const PoolProblem& p, const PoolBuffers& b, const Stream& stream, char*) {
  with_type(p.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    with_pack<T>(p, b, [&](auto pack) {
      for_each_batch(p, pack, false, [&](const PoolArguments& a, Grid grid) {
        launch(avg_pool<T, pack>, grid, kPoolThreads, 0, stream, a, as_const<T>(b.input), as<T>(b.output));
      });
    });
  });
}

void run_avg_pool_grad_input(const PoolProblem& p, const PoolBuffers& b, const Stream& stream, char*) {
  with_type(p.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    with_pack<T>(p, b, [&](auto pack) {
      for_each_batch(p, pack, true, [&](const PoolArguments& a, Grid grid) {
        launch(avg_pool_grad_input<T, pack>, grid, kPoolThreads, 0, stream, a, as<T>(b.input),
               as_const<T>(b.output));
      });
    });
  });
}

void run_max_pool_select(const PoolProblem& p, const PoolBuffers& b, const Stream& stream, char*) {
  with_size(p.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    with_offsets(p, [&](auto* offset) {
      using Offset = Pointee<decltype(offset)>;
      for_each_batch(p, 1, false, [&](const PoolArguments& a, Grid grid) {
        launch(max_pool_select<T, Offset>, grid, kPoolThreads, 0, stream, a, as_const<T>(b.input),
               as<T>(b.output), as_const<Offset>(b.offsets));
      });
    });
  });
}

void run_max_pool_indices(const PoolProblem& p, const PoolBuffers& b, const Stream& stream, char*) {
  with_offsets(p, [&](auto* offset) {
    using Offset = Pointee<decltype(offset)>;
    for_each_batch(p, 1, false, [&](const PoolArguments& a, Grid grid) {
      launch(max_pool_indices<Offset>, grid, kPoolThreads, 0, stream, a, as_const<Offset>(b.offsets),
             b.indices);
    });
  });
}

void run_max_unpool(const PoolProblem& p, const PoolBuffers& b, const Stream& stream, char* workspace) {
  const PoolShape& s = p.shape;
  with_size(p.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    launch(max_unpool<T>, {min_of(s.N * s.C, kMostGridX)}, kPoolThreads, 0, stream, s.N * s.C, int(s.C),
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
