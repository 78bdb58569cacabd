// Pointwise convolutions with a stride, in channels first, as those without: the pixels that they read are
// copied next to each other. Rows are long then, and a kernel that packs them for each block of channels does
// not pick them out again.
#pragma once

#include "conv_restated.h"

namespace cnnext::cpu::CNNEXT_ISA {

inline bool is_pointwise_with_stride(const ConvProblem& p) {
  bool strided = false;
  for (const Window& x : p.shape.axis) {
    if (x.kernel != 1 || x.padding != 0) return false;
    strided |= x.stride != 1;
  }
  return strided;
}

// Every step-th pixel of a row. With a constant step the compiler finds vectors.
template <class T>
void sample_row(const T* row, int64_t step, int64_t count, T* to) {
  if (step == 2) {
    for (int64_t i = 0; i < count; ++i) to[i] = row[2 * i];
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = row[step * i];
  }
}

// The reverse: a row of so many pixels, `between` where there is no sample.
template <class T>
void spread_row(const T* samples, int64_t step, int64_t count, T between, T* row, int64_t size) {
  int64_t i = 0;
  if (step == 2) {
    for (; i < count && 2 * i + 1 < size; ++i) {
      row[2 * i] = samples[i];
      row[2 * i + 1] = between;
    }
  }
  for (int64_t j = step * i; j < size; ++j) row[j] = between;
  for (; i < count; ++i) row[step * i] = samples[i];
}

struct Sampled {
  Sampled(const ConvProblem& p, ConvOp op, const ConvBuffers& b, char* workspace)
      : problem(p), op(op), whole(p.shape), given(b), buffers(b) {
    for (Window& x : problem.shape.axis) x = {x.output, x.output};
    memory.base = workspace;
    const int64_t samples = whole.N * whole.C * whole.output_pixels();
    buffers.input = memory.take<char>(samples * element_bytes(p.dtype));
  }

  void take_operands(const Parallel& parallel) const {
    if (op == ConvOp::kGradInput) return;
    for_each_plane(parallel, [&](auto* input, auto* samples, int64_t) {
      for_each_row([&](int64_t from, bool read, int64_t to) {
        if (read) sample_row(input + from, whole.axis[2].stride, whole.axis[2].output, samples + to);
      });
    });
  }
  void give_result(const Parallel& parallel) const {
    if (op != ConvOp::kGradInput) return;
    for_each_plane(parallel, [&](auto* input, const auto* samples, int64_t channel) {
      using T = Pointee<decltype(input)>;
      const T between = given.bias ? static_cast<const T*>(given.bias)[channel] : T();
      const Window& w = whole.axis[2];
      for_each_row([&](int64_t to, bool read, int64_t from) {
        spread_row(samples + from, w.stride, read ? w.output : 0, between, input + to, w.input);
      });
    });
  }

  // body(a plane of the input, its samples, its channel)
  template <class Body>
  void for_each_plane(const Parallel& parallel, Body&& body) const {
    with_type(problem.dtype, [&](auto* tag) {
      using T = Pointee<decltype(tag)>;
      parallel(whole.N * whole.C, [&](int64_t plane, int) {
        body(static_cast<T*>(given.input) + plane * whole.input_pixels(),
             static_cast<T*>(buffers.input) + plane * whole.output_pixels(), plane % whole.C);
      });
    });
  }
  // body(where a row of a plane starts, whether there are samples of it, where these start)
  template <class Body>
  void for_each_row(Body&& body) const {
    const Window &d = whole.axis[0], &h = whole.axis[1], &w = whole.axis[2];
    for (int64_t i = 0; i < d.input; ++i) {
      for (int64_t j = 0; j < h.input; ++j) {
        const bool read = i % d.stride == 0 && j % h.stride == 0;
        body((i * h.input + j) * w.input, read, (i / d.stride * h.output + j / h.stride) * w.output);
      }
    }
  }

  ConvProblem problem;
  ConvOp op;
  ConvShape whole;  // that of the problem as it was given
  ConvBuffers given, buffers;
  ScratchLayout memory;
};

// Classes (entry.h) that see such problems without the stride.
template <class Classes, ConvOp op>
struct MaySample {
  template <class Visit>
  static void with(const ConvProblem& p, const ConvBuffers& b, char* workspace, Visit&& visit) {
    if (p.layout == Layout::kChannelsFirst && is_pointwise_with_stride(p))
      return visit(Restated<Classes, Sampled>(p, op, b, workspace));
    Classes::with(p, b, workspace, visit);
  }
};

}  // namespace cnnext::cpu::CNNEXT_ISA
