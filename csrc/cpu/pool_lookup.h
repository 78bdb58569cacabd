// What follows the offsets of max windows, in both layouts: int64 indices made of them and values picked by
// them.
#pragma once

#include "entry.h"
#include "scratch.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kNowhere = int64_t{1} << 60;  // added to any pixel it stays outside of the plane

// Divides numbers below 2^31 by a product and a shift.
class Quotient {
 public:
  explicit Quotient(int64_t divisor) {
    while (int64_t{1} << (shift - 31) < divisor) ++shift;
    factor = ceil_div(int64_t{1} << shift, divisor);  // of 32 bits
  }
  int64_t operator()(int64_t number) const {
    return static_cast<int64_t>(static_cast<uint64_t>(number) * static_cast<uint64_t>(factor) >> shift);
  }

 private:
  int shift = 31;
  int64_t factor;
};

// The input pixel of an offset is the window's origin plus offset_delta(offset), which must be checked:
// offsets are data. Looked up where there are no more taps than outputs, else computed.
template <class O>
struct OffsetTable {
  OffsetTable(const PoolShape& shape, char* workspace)
      : shape(shape),
        by_row(shape.axis[2].kernel),
        by_depth(shape.axis[1].kernel),
        entries(sizeof(O) == 1                                              ? 256
                : shape.taps() <= shape.N * shape.C * shape.output_pixels() ? shape.taps()
                                                                            : 0) {
    scratch.base = workspace;
    delta = scratch.take<int64_t>(entries);
    for (int a = 0; a < kAxes; ++a) origin[a] = scratch.take<int64_t>(shape.axis[a].output);
  }

  // A dilated window may have no tap inside the input. Its index is torch's, but no value and no gradient
  // goes there.
  void fill(bool only_inside) const {
    for (int64_t tap = 0; tap < entries; ++tap) delta[tap] = tap_delta(tap);
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
    return static_cast<uint64_t>(offset) < static_cast<uint64_t>(entries) ? delta[offset] : tap_delta(offset);
  }
  int64_t tap_delta(int64_t tap) const {
    if (static_cast<uint64_t>(tap) >= static_cast<uint64_t>(shape.taps())) return kNowhere;
    const Window &d = shape.axis[0], &h = shape.axis[1], &w = shape.axis[2];
    const int64_t row = by_row(tap), depth = by_depth(row);
    return (depth * d.dilation * h.input + (row - depth * h.kernel) * h.dilation) * w.input +
           (tap - row * w.kernel) * w.dilation;
  }

  const PoolShape& shape;
  Quotient by_row, by_depth;  // of taps, of rows of taps
  int64_t entries;
  int64_t* delta;  // [entries]
  int64_t* origin[kAxes];
  ScratchLayout scratch;
};

// What the two operators share.
template <class O>
struct OffsetLookup {
  OffsetLookup(const PoolProblem& p, const PoolBuffers& b, char* workspace)
      : problem(p), buffers(b), table(p.shape, workspace) {}

  int64_t workspace_bytes() const { return table.scratch.bytes; }

  // body(element of the output, its image and channel, input pixel) for each output, in tasks of rows.
  template <class Body>
  void each_offset(const Parallel& parallel, bool only_inside, Body body) const {
    const PoolShape& shape = problem.shape;
    const auto* offsets = static_cast<const O*>(buffers.offsets);
    table.fill(only_inside);
    const bool channels_last = problem.layout == Layout::kChannelsLast;
    const int64_t C = shape.C, O_ = shape.axis[0].output, P = shape.axis[1].output, Q = shape.axis[2].output;
    const int64_t inner = channels_last ? C : 1, outer = channels_last ? 1 : C;
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

  const PoolProblem& problem;
  const PoolBuffers& buffers;
  OffsetTable<O> table;
};

template <class O>
struct MaxPoolIndices : OffsetLookup<O> {
  using OffsetLookup<O>::OffsetLookup;

  void run(const Parallel& parallel) const {
    int64_t* const indices = this->buffers.indices;
    this->each_offset(parallel, false,
                      [&](int64_t at, int64_t, int64_t, int64_t pixel) { indices[at] = pixel; });
  }
};

template <class T, class O>
struct MaxPoolSelect : OffsetLookup<O> {
  using OffsetLookup<O>::OffsetLookup;

  void run(const Parallel& parallel) const {
    const PoolShape& shape = this->problem.shape;
    const Strides strides = strides_of(this->problem.layout, shape.C, shape.input_pixels());
    const auto pixels = static_cast<uint64_t>(shape.input_pixels());
    const auto* input = static_cast<const T*>(this->buffers.input);
    auto* output = static_cast<T*>(this->buffers.output);
    this->each_offset(parallel, true, [&](int64_t at, int64_t n, int64_t c, int64_t pixel) {
      output[at] = static_cast<uint64_t>(pixel) < pixels
                       ? input[n * strides.image + c * strides.channel + pixel * strides.pixel]
                       : T{};
    });
  }
};

// Classes for each type of the offsets,
template <template <class> class Class>
struct ByOffset {
  template <class Visit>
  static void with(const PoolProblem& p, const PoolBuffers& b, char* workspace, Visit&& visit) {
    with_offset_type(p, [&](auto* tag) { visit(Class<Pointee<decltype(tag)>>(p, b, workspace)); });
  }
};
// and for each element type too.
template <template <class, class> class Class>
struct ByTypeAndOffset {
  template <class Visit>
  static void with(const PoolProblem& p, const PoolBuffers& b, char* workspace, Visit&& visit) {
    with_type(p.dtype, [&](auto* type) {
      with_offset_type(p, [&](auto* tag) {
        visit(Class<Pointee<decltype(type)>, Pointee<decltype(tag)>>(p, b, workspace));
      });
    });
  }
};

constexpr PoolKernel kMaxPoolIndices =
    entry<ByOffset<MaxPoolIndices>>("lookup", "offsets to indices", accepts_all<PoolProblem>);
constexpr PoolKernel kMaxPoolSelect =
    entry<ByTypeAndOffset<MaxPoolSelect>>("lookup", "values at the offsets", accepts_all<PoolProblem>);

}  // namespace cnnext::cpu::CNNEXT_ISA
