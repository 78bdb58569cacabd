// output[n, c, o] = maximum, or sum over its divisor, of input[n, c, o * stride - padding + tap * dilation]
// over the taps inside the input; their gradients; and max unpooling: plane after plane, window after window,
// tap after tap.
#include "pool_reference.h"

#define CNNEXT_ISA reference
#define CNNEXT_VECTOR_BYTES 16
#include "vec.h"

namespace cnnext::cpu {
namespace {

using reference::Acc;
using reference::load_one;
using reference::store_one;

// body(plane number, thread) for each plane, in tasks
template <class Body>
void each_plane(const PoolShape& shape, int64_t work, const Parallel& parallel, const Body& body) {
  const int64_t planes = shape.N * shape.C, per_task = max_of(1, (1 << 14) / max_of(1, work));
  parallel(ceil_div(planes, per_task), [&](int64_t task, int thread) {
    const int64_t end = min_of(planes, (task + 1) * per_task);
    for (int64_t plane = task * per_task; plane < end; ++plane) body(plane, thread);
  });
}

// body(output pixel, its three positions) for each window of a plane
template <class Body>
void each_window(const PoolShape& shape, const Body& body) {
  int64_t pixel = 0;
  for (int64_t o = 0; o < shape.axis[0].output; ++o) {
    for (int64_t p = 0; p < shape.axis[1].output; ++p) {
      for (int64_t q = 0; q < shape.axis[2].output; ++q) body(pixel++, o, p, q);
    }
  }
}

// body(input pixel, tap) for each tap of a window that falls inside the input
template <class Body>
void each_tap(const PoolShape& shape, int64_t o, int64_t p, int64_t q, const Body& body) {
  const Window &d = shape.axis[0], &h = shape.axis[1], &w = shape.axis[2];
  const Span so = shape.span(0, o), sp = shape.span(1, p), sq = shape.span(2, q);
  for (int64_t z = 0; z < so.count; ++z) {
    for (int64_t y = 0; y < sp.count; ++y) {
      for (int64_t x = 0; x < sq.count; ++x) {
        const int64_t row = (so.index + z * d.dilation) * h.input + sp.index + y * h.dilation;
        body(row * w.input + sq.index + x * w.dilation,
             ((so.tap + z) * h.kernel + sp.tap + y) * w.kernel + sq.tap + x);
      }
    }
  }
}

int64_t first_tap(const PoolShape& shape, int64_t o, int64_t p, int64_t q) {
  return (shape.span(0, o).tap * shape.axis[1].kernel + shape.span(1, p).tap) * shape.axis[2].kernel +
         shape.span(2, q).tap;
}

// A plane of a tensor: its first element and the step from pixel to pixel.
template <class T>
struct Plane {
  Plane(void* tensor, const PoolProblem& p, int64_t pixels, int64_t plane) {
    const Strides strides = strides_of(p.layout, p.shape.C, pixels);
    step = strides.pixel;
    at = tensor ? static_cast<T*>(tensor) + plane / p.shape.C * strides.image +
                      plane % p.shape.C * strides.channel
                : nullptr;
  }
  T& operator[](int64_t pixel) const { return at[pixel * step]; }
  T* at;
  int64_t step;
};

void store_offset(const PoolProblem& p, void* offsets, int64_t plane, int64_t pixel, int64_t tap) {
  with_offset_type(p, [&](auto* tag) {
    using O = Pointee<decltype(tag)>;
    Plane<O>(offsets, p, p.shape.output_pixels(), plane)[pixel] = static_cast<O>(tap);
  });
}
int64_t load_offset(const PoolProblem& p, void* offsets, int64_t plane, int64_t pixel) {
  int64_t tap = 0;
  with_offset_type(p, [&](auto* tag) {
    tap = Plane<Pointee<decltype(tag)>>(offsets, p, p.shape.output_pixels(), plane)[pixel];
  });
  return tap;
}

int64_t divisor(const PoolProblem& problem, int64_t o, int64_t p, int64_t q) {
  return problem.divisor(0, o) * problem.divisor(1, p) * problem.divisor(2, q);
}

template <bool kOffsets>
void max_pool(const PoolProblem& problem, const PoolBuffers& b, const Parallel& parallel, char*) {
  const PoolShape& shape = problem.shape;
  with_type(problem.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    each_plane(shape, shape.output_pixels() * shape.taps(), parallel, [&](int64_t plane, int) {
      const Plane<T> input(b.input, problem, shape.input_pixels(), plane);
      const Plane<T> output(b.output, problem, shape.output_pixels(), plane);
      each_window(shape, [&](int64_t pixel, int64_t o, int64_t p, int64_t q) {
        Acc<T> best = -__builtin_inff();
        int64_t best_tap = first_tap(shape, o, p, q);
        each_tap(shape, o, p, q, [&](int64_t i, int64_t tap) {
          const Acc<T> value = load_one(&input[i]);
          if (value > best || value != value) best = value, best_tap = tap;
        });
        store_one(&output[pixel], best);
        if (kOffsets) store_offset(problem, b.offsets, plane, pixel, best_tap);
      });
    });
  });
}

void avg_pool(const PoolProblem& problem, const PoolBuffers& b, const Parallel& parallel, char*) {
  const PoolShape& shape = problem.shape;
  with_type(problem.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    each_plane(shape, shape.output_pixels() * shape.taps(), parallel, [&](int64_t plane, int) {
      const Plane<T> input(b.input, problem, shape.input_pixels(), plane);
      const Plane<T> output(b.output, problem, shape.output_pixels(), plane);
      each_window(shape, [&](int64_t pixel, int64_t o, int64_t p, int64_t q) {
        double sum = 0;
        each_tap(shape, o, p, q, [&](int64_t i, int64_t) { sum += load_one(&input[i]); });
        store_one(&output[pixel], static_cast<Acc<T>>(sum / static_cast<double>(divisor(problem, o, p, q))));
      });
    });
  });
}

// The sums of one plane for each thread, in double precision.
int64_t sums_workspace(const PoolProblem& p) { return p.threads * p.shape.input_pixels() * sizeof(double); }

// share(output pixel, positions, input pixel, tap) is what the tap adds to the gradient of its input.
template <class T, class Share>
void scatter(const PoolProblem& problem, const PoolBuffers& b, const Parallel& parallel, char* workspace,
             const Share& share) {
  const PoolShape& shape = problem.shape;
  const int64_t pixels = shape.input_pixels();
  each_plane(shape, pixels + shape.output_pixels() * shape.taps(), parallel, [&](int64_t plane, int thread) {
    double* sums = reinterpret_cast<double*>(workspace) + thread * pixels;
    for (int64_t i = 0; i < pixels; ++i) sums[i] = 0;
    const Plane<T> grad_output(b.output, problem, shape.output_pixels(), plane);
    each_window(shape, [&](int64_t pixel, int64_t o, int64_t p, int64_t q) {
      each_tap(shape, o, p, q, [&](int64_t i, int64_t tap) {
        sums[i] += share(load_one(&grad_output[pixel]), plane, pixel, o, p, q, tap);
      });
    });
    const Plane<T> grad_input(b.input, problem, pixels, plane);
    for (int64_t i = 0; i < pixels; ++i) store_one(&grad_input[i], static_cast<Acc<T>>(sums[i]));
  });
}

void max_pool_grad(const PoolProblem& problem, const PoolBuffers& b, const Parallel& parallel,
                   char* workspace) {
  with_type(problem.dtype, [&](auto* tag) {
    scatter<Pointee<decltype(tag)>>(
        problem, b, parallel, workspace,
        [&](double grad, int64_t plane, int64_t pixel, int64_t, int64_t, int64_t, int64_t tap) {
          return load_offset(problem, b.offsets, plane, pixel) == tap ? grad : 0.0;
        });
  });
}

void avg_pool_grad(const PoolProblem& problem, const PoolBuffers& b, const Parallel& parallel,
                   char* workspace) {
  with_type(problem.dtype, [&](auto* tag) {
    scatter<Pointee<decltype(tag)>>(
        problem, b, parallel, workspace,
        [&](double grad, int64_t, int64_t, int64_t o, int64_t p, int64_t q, int64_t) {
          return grad / static_cast<double>(divisor(problem, o, p, q));
        });
  });
}

// Unpooling: the shape's output is the pooled side, its input the larger one. Of equal indices the last one
// stays.
void unpool(const PoolProblem& problem, const PoolBuffers& b, const Parallel& parallel, char*) {
  const PoolShape& shape = problem.shape;
  const int64_t pixels = shape.input_pixels();
  with_type(problem.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    each_plane(shape, pixels + shape.output_pixels(), parallel, [&](int64_t plane, int) {
      const Plane<T> pooled(b.output, problem, shape.output_pixels(), plane),
          to(b.input, problem, pixels, plane);
      const Plane<int64_t> indices(b.indices, problem, shape.output_pixels(), plane);
      for (int64_t i = 0; i < pixels; ++i) to[i] = T{};
      for (int64_t i = 0; i < shape.output_pixels(); ++i) {
        const int64_t index = indices[i];
        if (index >= 0 && index < pixels) {
          to[index] = pooled[i];
        } else {
          __atomic_store_n(b.invalid_index, index, __ATOMIC_RELAXED);
        }
      }
    });
  });
}

void unpool_grad(const PoolProblem& problem, const PoolBuffers& b, const Parallel& parallel, char*) {
  const PoolShape& shape = problem.shape;
  const int64_t pixels = shape.input_pixels();
  with_type(problem.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    each_plane(shape, shape.output_pixels(), parallel, [&](int64_t plane, int) {
      const Plane<T> pooled(b.output, problem, shape.output_pixels(), plane),
          from(b.input, problem, pixels, plane);
      const Plane<int64_t> indices(b.indices, problem, shape.output_pixels(), plane);
      for (int64_t i = 0; i < shape.output_pixels(); ++i) {
        const int64_t index = indices[i];
        if (index >= 0 && index < pixels) {
          pooled[i] = from[index];
        } else {
          __atomic_store_n(b.invalid_index, index, __ATOMIC_RELAXED);
        }
      }
    });
  });
}

}  // namespace

const PoolKernel kMaxPoolReference = {"reference", "by definition", accepts_all, no_workspace,
                                      max_pool<false>};
const PoolKernel kMaxPoolOffsetsReference = {"reference", "by definition", accepts_all, no_workspace,
                                             max_pool<true>};
const PoolKernel kMaxPoolGradReference = {"reference", "by definition", accepts_all, sums_workspace,
                                          max_pool_grad};
const PoolKernel kAvgPoolReference = {"reference", "by definition", accepts_all, no_workspace, avg_pool};
const PoolKernel kAvgPoolGradReference = {"reference", "by definition", accepts_all, sums_workspace,
                                          avg_pool_grad};
const PoolKernel kMaxUnpool = {"planes", "plane after plane", accepts_all, no_workspace, unpool};
const PoolKernel kMaxUnpoolGrad = {"planes", "plane after plane", accepts_all, no_workspace, unpool_grad};

}  // namespace cnnext::cpu
