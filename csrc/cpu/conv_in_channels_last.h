// Kernels of channels last for channels first: the operands are turned into scratch memory, and the result
// out of it. That pays where a kernel has much to compute for each element. The weight alone may be turned
// too.
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
      store_part(to + (c + n) * taps, x[n], (c + n) * taps + L <= C * taps ? L : taps);
    }
  }
}

struct InChannelsLast {
  // `weight_too`: a kernel that wants the weight in channels last.
  InChannelsLast(const ConvProblem& p, ConvOp op, bool weight_too, int64_t (*workspace)(const ConvProblem&))
      : last(p), op(op), turns_data(p.layout != Layout::kChannelsLast) {
    const ConvShape& s = p.shape;
    last.layout = Layout::kChannelsLast;
    if (weight_too) last.weight_layout = Layout::kChannelsLast;
    turns_weight = last.weight_layout != p.weight_layout && s.taps() > 1;
    const int64_t size = p.dtype == DType::kFloat64 ? 8 : p.dtype == DType::kFloat32 ? 4 : 2;
    const auto bytes_of = [&](bool turns, int64_t count) {
      return turns ? round_up(count * size, kAlignment) : 0;
    };
    input_bytes = bytes_of(turns_data, s.N * s.C * s.input_pixels());
    output_bytes = bytes_of(turns_data, s.N * s.K * s.output_pixels());
    weight_bytes = bytes_of(turns_weight, s.weights());
    bytes = input_bytes + output_bytes + weight_bytes + workspace(last);
  }

  template <class Run>
  void run(const ConvBuffers& b, const Parallel& parallel, char* workspace, Run&& run) const {
    ConvBuffers turned = b;
    if (turns_data) turned.input = workspace;
    if (turns_data) turned.output = workspace + input_bytes;
    if (turns_weight) turned.weight = workspace + input_bytes + output_bytes;
    with_type(last.dtype, [&](auto* tag) {
      using T = Pointee<decltype(tag)>;
      const ConvShape& s = last.shape;
      const auto turn = [&](const void* from, void* to, int64_t channels, int64_t pixels, bool back) {
        if (!turns_data) return;
        transpose<T>(static_cast<const T*>(from), back ? pixels : channels, back ? channels : pixels,
                     parallel, static_cast<T*>(to));
      };
      const auto turn_weight = [&](const void* from, void* to, bool back) {
        const int64_t C = s.C_per_group(), taps = s.taps();
        if (!turns_weight) return;
        parallel(s.K, [&](int64_t k, int) {
          const T* filter = static_cast<const T*>(from) + k * C * taps;
          T* out = static_cast<T*>(to) + k * C * taps;
          back ? turn_filter(filter, C, taps, out) : transpose_columns(filter, C, taps, {0, taps}, out);
        });
      };
      if (op != ConvOp::kGradInput) turn(b.input, turned.input, s.C, s.input_pixels(), false);
      if (op != ConvOp::kForward) turn(b.output, turned.output, s.K, s.output_pixels(), false);
      if (op != ConvOp::kGradWeight) turn_weight(b.weight, turned.weight, false);
      run(last, turned, parallel, workspace + input_bytes + output_bytes + weight_bytes);
      if (op == ConvOp::kForward) turn(turned.output, b.output, s.K, s.output_pixels(), true);
      if (op == ConvOp::kGradInput) turn(turned.input, b.input, s.C, s.input_pixels(), true);
      if (op == ConvOp::kGradWeight) turn_weight(turned.weight, b.weight, true);
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
  bool turns_data, turns_weight;
  int64_t input_bytes, output_bytes, weight_bytes, bytes;
};

}  // namespace cnnext::cpu::CNNEXT_ISA
