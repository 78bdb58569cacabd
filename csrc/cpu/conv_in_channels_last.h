// Kernels of channels last for channels first: the operands are turned into scratch memory, and the result
// out of it. That pays where a kernel has much to compute for each element. The weight alone may be turned
// too.
#pragma once

#include "conv_restated.h"
#include "copy.h"
#include "range.h"

namespace cnnext::cpu::CNNEXT_ISA {

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

// A problem in channels last, made of one that is not.
struct InChannelsLast {
  // `weight_too`: a kernel that wants the weight in channels last.
  InChannelsLast(const ConvProblem& p, ConvOp op, bool weight_too, const ConvBuffers& b, char* workspace)
      : problem(p), op(op), turns_data(p.layout != Layout::kChannelsLast), given(b), buffers(b) {
    const ConvShape& s = p.shape;
    problem.layout = Layout::kChannelsLast;
    if (weight_too) problem.weight_layout = Layout::kChannelsLast;
    turns_weight = problem.weight_layout != p.weight_layout && s.taps() > 1;
    const int64_t size = element_bytes(p.dtype);
    buffers.epilogue = {};  // that of the result which is turned back
    memory.base = workspace;
    if (turns_data) buffers.input = memory.take<char>(s.N * s.C * s.input_pixels() * size);
    if (turns_data) buffers.output = memory.take<char>(s.N * s.K * s.output_pixels() * size);
    if (turns_weight) buffers.weight = memory.take<char>(s.weights() * size);
  }

  void take_operands(const Parallel& parallel) const {
    const ConvShape& s = problem.shape;
    if (op != ConvOp::kGradInput) turn_data(given.input, s.C, s.input_pixels(), buffers.input, parallel);
    if (op != ConvOp::kForward) turn_data(given.output, s.K, s.output_pixels(), buffers.output, parallel);
    if (op != ConvOp::kGradWeight) turn_weight(given.weight, buffers.weight, false, parallel);
  }
  void give_result(const Parallel& parallel) const {
    const ConvShape& s = problem.shape;
    if (op == ConvOp::kForward) turn_data(buffers.output, s.output_pixels(), s.K, given.output, parallel);
    if (op == ConvOp::kGradInput) turn_data(buffers.input, s.input_pixels(), s.C, given.input, parallel);
    if (op == ConvOp::kGradWeight) turn_weight(buffers.weight, given.weight, true, parallel);
  }

  // [row][column] of each image to [column][row].
  void turn_data(const void* from, int64_t rows, int64_t columns, void* to, const Parallel& parallel) const {
    constexpr int64_t kPart = 64;
    const int64_t parts = max_of(1, columns / kPart);  // the last is longer
    if (!turns_data) return;
    with_type(problem.dtype, [&](auto* tag) {
      using T = Pointee<decltype(tag)>;
      parallel(problem.shape.N * parts, [&](int64_t task, int) {
        const int64_t image = task / parts * rows * columns, part = task % parts;
        transpose_columns(static_cast<const T*>(from) + image, rows, columns,
                          {part * kPart, part + 1 == parts ? columns : (part + 1) * kPart},
                          static_cast<T*>(to) + image);
      });
    });
  }
  void turn_weight(const void* from, void* to, bool back, const Parallel& parallel) const {
    const int64_t C = problem.shape.C_per_group(), taps = problem.shape.taps();
    if (!turns_weight) return;
    with_type(problem.dtype, [&](auto* tag) {
      using T = Pointee<decltype(tag)>;
      parallel(problem.shape.K, [&](int64_t k, int) {
        const T* filter = static_cast<const T*>(from) + k * C * taps;
        T* out = static_cast<T*>(to) + k * C * taps;
        back ? turn_filter(filter, C, taps, out) : transpose_columns(filter, C, taps, {0, taps}, out);
      });
    });
  }

  ConvProblem problem;
  ConvOp op;
  bool turns_data, turns_weight;
  ConvBuffers given, buffers;
  ScratchLayout memory;  // of what is turned
};

// Classes (entry.h) whose problems are turned where `turns` says so.
template <class Classes, ConvOp op, bool weight_too, bool (*turns)(const ConvProblem&)>
struct MayTurn {
  template <class Visit>
  static void with(const ConvProblem& p, const ConvBuffers& b, char* workspace, Visit&& visit) {
    if (turns(p)) return visit(Restated<Classes, InChannelsLast>(p, op, weight_too, b, workspace));
    Classes::with(p, b, workspace, visit);
  }
};

}  // namespace cnnext::cpu::CNNEXT_ISA
