// Pooling in channels first where one window covers the whole plane (global pooling): the plane is one run of
// elements, vectors along it. Maximum and average, and their gradients.
#pragma once

#include "copy.h"
#include "entry.h"
#include "pool_run.h"
#include "pool_tables.h"

namespace cnnext::cpu::CNNEXT_ISA {

inline const char* plane_refuses(const PoolProblem& p) {
  if (const char* reason = layout_refuses<Layout::kChannelsFirst>(p)) return reason;
  for (int a = 0; a < kAxes; ++a) {
    const Window& w = p.shape.axis[a];
    if (w.output != 1 || p.shape.span(a, 0).count != w.input) return "takes one window over the whole plane";
    if (w.dilation != 1 && w.input != 1) return "takes windows without dilation";
  }
  return nullptr;
}

template <class T, PoolMode mode>
struct PoolPlane {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

  PoolPlane(const PoolProblem& p, const PoolBuffers& b, char*)
      : problem(p),
        shape(p.shape),
        planes(p.shape.N * p.shape.C),
        pixels(p.shape.input_pixels()),
        input(static_cast<T*>(b.input)),
        output(static_cast<T*>(b.output)),
        offsets(b.offsets) {
    divisor = static_cast<A>(problem.divisor(0, 0) * problem.divisor(1, 0) * problem.divisor(2, 0));
  }

  int64_t workspace_bytes() const { return 0; }

  template <class Body>
  void some_planes(const Parallel& parallel, Body body) const {
    const int64_t per_task = max_of(1, (1 << 15) / pixels);
    parallel(ceil_div(planes, per_task),
             [&](int64_t task, int) { body(task * per_task, min_of(planes, (task + 1) * per_task)); });
  }
  template <class Body>
  void each_plane(const Parallel& parallel, Body body) const {
    some_planes(parallel, [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane) body(plane, (end - plane) * pixels);
    });
  }

  void run(const Parallel& parallel) const {
    each_plane(parallel, [&](int64_t plane, int64_t) {
      const T* from = input + plane * pixels;
      const int64_t available = (planes - plane) * pixels;
      if constexpr (mode == PoolMode::kAverage) {
        store_one(output + plane, sum_run(from, pixels, available) / divisor);
      } else {
        maximum(plane, from, available);
      }
    });
  }

  void maximum(int64_t plane, const T* from, int64_t available) const {
    Offset<A> at = 0;
    store_one(output + plane, maximum_run<mode == PoolMode::kMaxOffsets>(from, pixels, available, &at));
    if constexpr (mode == PoolMode::kMaxOffsets) {
      const Window &h = shape.axis[1], &w = shape.axis[2];
      const int64_t z = at / w.input / h.input + shape.span(0, 0).tap,
                    y = at / w.input % h.input + shape.span(1, 0).tap;
      const int64_t tap = (z * h.kernel + y) * w.kernel + at % w.input + shape.span(2, 0).tap;
      with_offset_type(problem, [&](auto* tag) {
        static_cast<decltype(tag)>(offsets)[plane] = static_cast<Pointee<decltype(tag)>>(tap);
      });
    }
  }

  const PoolProblem& problem;
  const PoolShape& shape;
  int64_t planes, pixels;
  T *input, *output;
  void* offsets;
  A divisor;
};

template <class T>
struct AvgPoolGradPlane : PoolPlane<T, PoolMode::kAverage> {
  using Forward = PoolPlane<T, PoolMode::kAverage>;
  using Forward::divisor, Forward::input, Forward::L, Forward::output, Forward::pixels;
  using Forward::Forward;

  void run(const Parallel& parallel) const {
    this->each_plane(parallel, [&](int64_t plane, int64_t room) {
      const Vec<Acc<T>> value = broadcast<Acc<T>>(load_one(output + plane) / divisor);
      for (int64_t i = 0; i < pixels; i += L) store_part(input + plane * pixels + i, value, room - i);
    });
  }
};

// Zeros, but for the pixel where a plane's maximum was. Offsets that name no pixel add nothing.
template <class T>
struct MaxPoolGradPlane : PoolPlane<T, PoolMode::kMaxOffsets> {
  using Forward = PoolPlane<T, PoolMode::kMaxOffsets>;
  using Forward::Forward;
  using Forward::input, Forward::output, Forward::pixels, Forward::shape;

  void run(const Parallel& parallel) const {
    bool same = true;  // taps and pixels have the same numbers
    for (const Window& x : shape.axis) same &= x.kernel == x.input;
    with_offset_type(this->problem, [&](auto* tag) {
      const auto* offsets = static_cast<decltype(tag)>(this->offsets);
      this->some_planes(parallel, [&](int64_t begin, int64_t end) {
        fill_zero(input + begin * pixels, (end - begin) * pixels);
        for (int64_t plane = begin; plane < end; ++plane) {
          const int64_t pixel = same ? int64_t(offsets[plane]) : pixel_of(offsets[plane]);
          if (uint64_t(pixel) < uint64_t(pixels)) input[plane * pixels + pixel] = output[plane];
        }
      });
    });
  }

  int64_t pixel_of(int64_t tap) const {
    const Window &h = shape.axis[1], &w = shape.axis[2];
    const int64_t z = tap / w.kernel / h.kernel - shape.span(0, 0).tap,
                  y = tap / w.kernel % h.kernel - shape.span(1, 0).tap;
    return (z * h.input + y) * w.input + tap % w.kernel - shape.span(2, 0).tap;
  }
};

constexpr const char* kPlaneSummary = "one window over the plane, vectors along it";
constexpr PoolKernel kMaxPoolPlane =
    entry<ByType<InMode<PoolPlane, PoolMode::kMax>::Of>>("plane", kPlaneSummary, plane_refuses);
constexpr PoolKernel kMaxPoolOffsetsPlane =
    entry<ByType<InMode<PoolPlane, PoolMode::kMaxOffsets>::Of>>("plane", kPlaneSummary, plane_refuses);
constexpr PoolKernel kMaxPoolGradPlane =
    entry<ByType<MaxPoolGradPlane>>("plane", kPlaneSummary, plane_refuses);
constexpr PoolKernel kAvgPoolPlane =
    entry<ByType<InMode<PoolPlane, PoolMode::kAverage>::Of>>("plane", kPlaneSummary, plane_refuses);
constexpr PoolKernel kAvgPoolGradPlane =
    entry<ByType<AvgPoolGradPlane>>("plane", kPlaneSummary, plane_refuses);

}  // namespace cnnext::cpu::CNNEXT_ISA
