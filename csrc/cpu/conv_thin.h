// Convolution of images: few source channels, channels last, as in a network's first layer.
//
// gemm copies each pixel's window, and with so few channels that costs a tenth of the products. Here the rows
// of the source that a row of the destination reads are copied once, with zeros for the padding. A tile reads
// its pixels from that copy, `step` elements apart: stride times channels, which the compiler knows.
// A row of the destination is a task. Its tiles are of one height, of three that there are; the last may
// overlap the one before, and writes the same there again.
#pragma once

#include "conv_phases.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kThinDepth = 2 * kDepth;  // most taps times channels
constexpr int kThinMiddle = kRows - kRows / 4,
              kThinLow = kRows / 2 + 1;  // heights of tiles: 14, 11, 8 or 6, 5, 4

template <class T, int Step>
struct ThinConv {
  using A = Acc<T>;
  static constexpr int64_t kWide = kCols<A>;

  ThinConv(const ConvProblem& p, const ConvBuffers& b, char* workspace)
      : phases(p, false),
        g(phases.at(0)),
        source(static_cast<const T*>(b.input)),
        weight(static_cast<const T*>(b.weight)),
        bias(static_cast<const T*>(b.bias)),
        destination(static_cast<T*>(b.output)) {
    panels = ceil_div(phases.channels, kWide);
    window = g.axis[2].taps * g.channels;
    pitch = (g.axis[2].count - 1) * Step + window;
    rows = g.axis[0].taps * g.axis[1].taps;
    packed_size = round_up(panels * g.depth() * kWide, 64);
    scratch_size = round_up(rows * pitch, 64) + 64;
    packed = reinterpret_cast<A*>(workspace);
    scratch = packed + packed_size;
  }

  static int64_t workspace(const ConvProblem& p) {
    const ThinConv self(p, {}, nullptr);
    return (self.packed_size + p.threads * self.scratch_size) * sizeof(A);
  }

  void run(const Parallel& parallel) const {
    parallel(panels, [&](int64_t panel, int) {
      pack_weight_panel(phases, g, weight, 0, block(panel, kWide, phases.channels), {0, g.depth()},
                        packed + panel * g.depth() * kWide);
    });
    const int64_t width = g.axis[2].count;
    parallel(g.pixels() / width, [&](int64_t row, int thread) {
      A* copy = scratch + thread * scratch_size;
      copy_rows(pixel_at(g, row * width), copy);
      for (int64_t panel = 0; panel < panels; ++panel) {
        const Range channels = block(panel, kWide, phases.channels);
        if (channels.size() == kWide) {
          fill_row<kVectors>(row * width, panel, copy);
        } else {
          fill_row<1>(row * width, panel, copy);
        }
      }
    });
  }

 private:
  // The source rows of a destination row: to[row][pitch].
  void copy_rows(const Pixel& p, A* to) const {
    const PhaseAxis& w = g.axis[2];
    const int64_t before = min_of(-w.offset * g.channels, pitch);
    const int64_t inside = min_of(w.source * g.channels, pitch - before);
    for (int64_t m = 0; m < rows; ++m, to += pitch) {
      const int64_t row = source_row(g, p, m / g.axis[1].taps, m % g.axis[1].taps);
      const int64_t copied = row < 0 ? 0 : inside;
      fill_zero(to, before);
      if (copied > 0)
        copy_run(source + p.image * phases.source.image + row * w.source * g.channels, to + before, copied);
      fill_zero(to + before + copied, pitch - before - copied);
    }
  }

  template <int Vectors>
  void fill_row(int64_t pixel, int64_t panel, const A* copy) const {
    const int64_t width = g.axis[2].count, height = ceil_div(width, ceil_div(width, kRows));
    if (height > kThinMiddle && width >= kRows) return fill_tiles<Vectors, kRows>(pixel, panel, copy);
    if (height > kThinLow && width >= kThinMiddle)
      return fill_tiles<Vectors, kThinMiddle>(pixel, panel, copy);
    fill_tiles<Vectors, kThinLow>(pixel, panel, copy);
  }

  template <int Vectors, int Rows>
  void fill_tiles(int64_t pixel, int64_t panel, const A* copy) const {
    const int64_t first = panel * kWide, stride = phases.destination.pixel;
    A add[kWide];
    if (bias) copy_run(bias + first, add, Vectors * kLanes<A>);
    for (int64_t width = g.axis[2].count, j = 0; j < width; j += Rows) {
      j = min_of(j, width - Rows);
      fill_tile<Vectors, Rows>(
          copy + j * Step, packed + panel * g.depth() * kWide,
          {destination + (pixel + j) * stride + first, stride, nullptr, bias ? add : nullptr});
    }
  }

  template <int Vectors, int Rows>
  void fill_tile(const A* a, const A* b, const TileOutput<T>& out) const {
    Vec<A> sum[Rows][Vectors] = {};
    for (int64_t m = 0; m < rows; ++m, a += pitch) {
      const int64_t each = ceil_div(Rows, rows);
      for (int64_t r = m * each; r < min_of((m + 1) * each, Rows); ++r) {
        for (int v = 0; v < Vectors; ++v) out.fetch(r, v);
      }
      const A* at = a;
      for (int64_t d = window; d > 0; --d, ++at, b += kWide) {
        asm("" : "+r"(at));  // else GCC spills what neighbouring pixels share, to spare a load
        add_products<Product::kNumbers>(sum, TileRows<A, Rows, Step>(at, Step), b);
      }
    }
#pragma GCC unroll 14
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) out.put(r, v, sum[r][v]);
    }
  }

  Phases phases;
  Gather g;
  const T *source, *weight, *bias;
  T* destination;
  int64_t panels, rows, window, pitch;  // rows of a window, elements of one, elements of a copied row
  int64_t packed_size, scratch_size;
  A *packed, *scratch;
};

// Calls visit(std::integral_constant) with the step, if there is a kernel for it.
template <class Visit>
void with_thin_step(const ConvProblem& p, Visit&& visit) {
  switch (p.shape.C * p.shape.axis[2].stride) {
    case 1:
      return visit(std::integral_constant<int, 1>());
    case 2:
      return visit(std::integral_constant<int, 2>());
    case 3:
      return visit(std::integral_constant<int, 3>());
    case 6:
      return visit(std::integral_constant<int, 6>());
    case 12:
      return visit(std::integral_constant<int, 12>());
  }
}

inline const char* thin_refuses(const ConvProblem& p) {
  const ConvShape& s = p.shape;
  if (p.layout != Layout::kChannelsLast) return "takes channels last";
  const char* reason = "takes channels times stride of 1, 2, 3, 6 or 12";
  with_thin_step(p, [&](auto) { reason = nullptr; });
  if (reason) return reason;
  if (s.groups != 1) return "takes one group";
  if (s.axis[2].dilation != 1 || s.axis[2].kernel == 1) return "takes rows of neighbouring taps";
  if (s.C * s.taps() > kThinDepth) return "takes sums of at most 512 products";
  if (s.axis[2].output < kThinLow) return "takes rows that fill a tile";
  int64_t lanes = 0;
  with_type(p.dtype, [&](auto* tag) { lanes = kLanes<Acc<Pointee<decltype(tag)>>>; });
  return s.K % lanes == 0 ? nullptr : "takes output channels that fill vectors";
}

constexpr ConvKernel kConvThin = {
    "thin", "an image's rows, read in place", thin_refuses,
    [](const ConvProblem& p) {
      int64_t bytes = 0;
      with_type(p.dtype, [&](auto* tag) {
        with_thin_step(p, [&](auto step) { bytes = ThinConv<Pointee<decltype(tag)>, step>::workspace(p); });
      });
      return bytes;
    },
    [](const ConvProblem& p, const ConvBuffers& b, const Parallel& parallel, char* workspace) {
      with_type(p.dtype, [&](auto* tag) {
        with_thin_step(
            p, [&](auto step) { ThinConv<Pointee<decltype(tag)>, step>(p, b, workspace).run(parallel); });
      });
    }};

}  // namespace cnnext::cpu::CNNEXT_ISA
