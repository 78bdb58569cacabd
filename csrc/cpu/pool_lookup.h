// What follows the offsets of max windows, in both layouts: int64 indices made of them and values picked by
// them.
#pragma once

#include "scratch.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kNowhere = int64_t{1} << 60;  // added to any pixel it stays outside of the plane

// The input pixel of an offset is the window's origin plus delta[offset], which must be checked: offsets are
// data.
template <class O>
struct OffsetTable {
  OffsetTable(const PoolShape& shape, char* workspace) : shape(shape) {
    scratch.base = workspace;
    entries = sizeof(O) == 1 ? 256 : shape.taps();
    delta = scratch.take<int64_t>(entries);
    for (int a = 0; a < kAxes; ++a) origin[a] = scratch.take<int64_t>(shape.axis[a].output);
  }

  // A dilated window may have no tap inside the input. Its index is torch's, but no value and no gradient
  // goes there.
  void fill(bool only_inside) const {
    const Window &d = shape.axis[0], &h = shape.axis[1], &w = shape.axis[2];
    for (int64_t tap = 0; tap < entries; ++tap) {
      const int64_t td = tap / w.kernel / h.kernel * d.dilation, th = tap / w.kernel % h.kernel * h.dilation;
      delta[tap] =
          tap < shape.taps() ? (td * h.input + th) * w.input + tap % w.kernel * w.dilation : kNowhere;
    }
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
    return static_cast<uint64_t>(offset) < static_cast<uint64_t>(entries) ? delta[offset] : kNowhere;
  }

  const PoolShape& shape;
  int64_t entries;
  int64_t* delta;
  int64_t* origin[kAxes];
  ScratchLayout scratch;
};

// body(element of the output, its image and channel, input pixel) for each output, in tasks of rows.
template <class O, class Body>
void each_offset(const PoolProblem& p, const O* offsets, const Parallel& parallel, char* workspace,
                 bool only_inside, Body body) {
  const PoolShape& shape = p.shape;
  const OffsetTable<O> table(shape, workspace);
  table.fill(only_inside);
  const bool last = p.layout == Layout::kChannelsLast;
  const int64_t C = shape.C, O_ = shape.axis[0].output, P = shape.axis[1].output, Q = shape.axis[2].output;
  const int64_t inner = last ? C : 1, outer = last ? 1 : C;
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

CNNEXT_INLINE int64_t lookup_workspace(const PoolProblem& p) {
  int64_t bytes = 0;
  with_offset_type(
      p, [&](auto* tag) { bytes = OffsetTable<Pointee<decltype(tag)>>(p.shape, nullptr).scratch.bytes; });
  return bytes;
}

CNNEXT_INLINE void run_indices(const PoolProblem& p, const PoolBuffers& b, const Parallel& parallel,
                               char* workspace) {
  with_offset_type(p, [&](auto* tag) {
    each_offset(p, static_cast<decltype(tag)>(b.offsets), parallel, workspace, false,
                [&](int64_t at, int64_t, int64_t, int64_t pixel) { b.indices[at] = pixel; });
  });
}

CNNEXT_INLINE void run_select(const PoolProblem& p, const PoolBuffers& b, const Parallel& parallel,
                              char* workspace) {
  const Strides strides = strides_of(p.layout, p.shape.C, p.shape.input_pixels());
  const auto pixels = static_cast<uint64_t>(p.shape.input_pixels());
  with_type(p.dtype, [&](auto* type) {
    const auto* input = static_cast<decltype(type)>(b.input);
    auto* output = static_cast<decltype(type)>(b.output);
    with_offset_type(p, [&](auto* tag) {
      each_offset(p, static_cast<decltype(tag)>(b.offsets), parallel, workspace, true,
                  [&](int64_t at, int64_t n, int64_t c, int64_t pixel) {
                    output[at] = static_cast<uint64_t>(pixel) < pixels
                                     ? input[n * strides.image + c * strides.channel + pixel * strides.pixel]
                                     : Pointee<decltype(type)>{};
                  });
    });
  });
}

constexpr PoolKernel kMaxPoolIndices = {"lookup", "offsets to indices", accepts_all, lookup_workspace,
                                        run_indices};
constexpr PoolKernel kMaxPoolSelect = {"lookup", "values at the offsets", accepts_all, lookup_workspace,
                                       run_select};

}  // namespace cnnext::cpu::CNNEXT_ISA
