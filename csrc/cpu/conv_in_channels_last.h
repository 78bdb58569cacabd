// Kernels of channels last for channels first: the operands are turned into scratch memory, and the result
// out of it. That pays where a kernel has much to compute for each element.
#pragma once

#include "conv_gather.h"

namespace cnnext::cpu::CNNEXT_ISA {

enum class ConvOp { kForward, kGradInput, kGradWeight };

// to[j * rows + i] = from[i * columns + j], for columns [begin, end).
template <class T>
void transpose_columns(const T* from, int64_t rows, int64_t columns, Range part, T* to) {
  using A = Acc<T>;
  constexpr int64_t L = kLanes<A>;
  if (rows < L || part.size() < L) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = part.begin; j < part.end; ++j) to[j * rows + i] = from[i * columns + j];
    }
    return;
  }
  // The last vectors overlap those before.
  for (int64_t i = 0; i < rows; i += L) {
    i = min_of(i, rows - L);
    for (int64_t j = part.begin; j < part.end; j += L) {
      j = min_of(j, part.end - L);
      transpose_block(from + i * columns + j, columns, L, L,
                      [&](int64_t n) { return to + (j + n) * rows + i; });
    }
  }
}

// A filter's taps[tap][C] to [c][taps].
template <class T>
void turn_filter(const T* from, int64_t C, int64_t taps, T* to) {
  using A = Acc<T>;
  constexpr int64_t L = kLanes<A>;
  if (taps > L || C < L) return transpose_columns(from, taps, C, {0, C}, to);
  for (int64_t c = 0; c < C; c += L) {
    c = min_of(c, C - L);
    Vec<A> x[L] = {};
    for (int64_t m = 0; m < taps; ++m) x[m] = load(from + m * C + c);
    transpose<A>(x);
    for (int64_t n = 0; n < L; ++n) {  // what a vector writes beyond its taps is overwritten by the next
      store_some(to + (c + n) * taps, x[n], (c + n) * taps + L <= C * taps ? L : taps);
    }
  }
}

struct InChannelsLast {
  InChannelsLast(const ConvProblem& p, ConvOp op, int64_t (*workspace)(const ConvProblem&))
      : last(p), op(op) {
    last.layout = Layout::kChannelsLast;
    if (op == ConvOp::kGradWeight) last.weight_layout = Layout::kChannelsLast;
    turns_weight = last.weight_layout != p.weight_layout;
    const int64_t size = p.dtype == DType::kFloat64 ? 8 : p.dtype == DType::kFloat32 ? 4 : 2;
    input_bytes = round_up(p.shape.N * p.shape.C * p.shape.input_pixels() * size, kAlignment);
    output_bytes = round_up(p.shape.N * p.shape.K * p.shape.output_pixels() * size, kAlignment);
    weight_bytes = turns_weight ? round_up(p.shape.weights() * size, kAlignment) : 0;
    bytes = input_bytes + output_bytes + weight_bytes + workspace(last);
  }

  template <class Run>
  void run(const ConvBuffers& b, const Parallel& parallel, char* workspace, Run&& run) const {
    ConvBuffers turned = b;
    turned.input = workspace;
    turned.output = workspace + input_bytes;
    if (turns_weight) turned.weight = workspace + input_bytes + output_bytes;
    with_type(last.dtype, [&](auto* tag) {
      using T = Pointee<decltype(tag)>;
      const ConvShape& s = last.shape;
      const auto turn = [&](const void* from, void* to, int64_t channels, int64_t pixels, bool back) {
        transpose<T>(static_cast<const T*>(from), back ? pixels : channels, back ? channels : pixels,
                     parallel, static_cast<T*>(to));
      };
      if (op != ConvOp::kGradInput) turn(b.input, turned.input, s.C, s.input_pixels(), false);
      if (op != ConvOp::kForward) turn(b.output, turned.output, s.K, s.output_pixels(), false);
      run(last, turned, parallel, workspace + input_bytes + output_bytes + weight_bytes);
      if (op == ConvOp::kForward) turn(turned.output, b.output, s.K, s.output_pixels(), true);
      if (op == ConvOp::kGradInput) turn(turned.input, b.input, s.C, s.input_pixels(), true);
      if (turns_weight) {
        const int64_t filter = s.C_per_group() * s.taps();
        parallel(s.K, [&](int64_t k, int) {
          turn_filter(static_cast<const T*>(turned.weight) + k * filter, s.C_per_group(), s.taps(),
                      static_cast<T*>(b.weight) + k * filter);
        });
      }
    });
  }

  template <class T>
  void transpose(const T* from, int64_t rows, int64_t columns, const Parallel& parallel, T* to) const {
    constexpr int64_t kPart = 64;
    const int64_t parts = max_of(1, columns / kPart);  // the last is longer
    parallel(last.shape.N * parts, [&](int64_t task, int) {
      const int64_t image = task / parts * rows * columns, part = task % parts;
      transpose_columns(from + image, rows, columns,
                        {part * kPart, part + 1 == parts ? columns : (part + 1) * kPart}, to + image);
    });
  }

  ConvProblem last;
  ConvOp op;
  bool turns_weight;  // a gradient of it
  int64_t input_bytes, output_bytes, weight_bytes, bytes;
};

CNNEXT_INLINE InChannelsLast in_channels_last(const ConvProblem& p, bool gradient,
                                              int64_t (*workspace)(const ConvProblem&)) {
  return {p, gradient ? ConvOp::kGradInput : ConvOp::kForward, workspace};
}

}  // namespace cnnext::cpu::CNNEXT_ISA
