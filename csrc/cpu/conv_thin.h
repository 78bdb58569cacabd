// Convolution of images: few source channels, channels last, as in a network's first layer.
//
// gemm copies each pixel's window, and with so few channels that costs a tenth of the products. Here the rows
// of the source that a row of the destination reads are copied once, with zeros for the padding. A tile reads
// its pixels from that copy, `step` elements apart: stride times channels, which the compiler knows.
// A row of the destination is a task. Its tiles are of one height, of three that there are; the last may
// overlap the one before, and writes the same there again.
#pragma once

#include "conv_gemm_bf16.h"
#include "packed_weights.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kThinDepth = 2 * kDepth;  // most taps times channels
// Heights of tiles, with kRows: 14, 11, 8 or 6, 5, 4.
constexpr int kThinMiddle = kRows - kRows / 4, kThinLow = kRows / 2 + 1;

// The first of a pair, where the window ends in the middle of it.
template <int Rows, int64_t Stride>
struct HalfPairs {
  const BFloat16Pair* a;
  __attribute__((always_inline)) float operator[](int r) const {
    return bit_cast<float>(uint32_t(a[r * Stride].first.bits));
  }
};

// The source rows of the windows from a pixel on, with zeros for the padding: to[row][pitch].
template <class T, class Copied>
void copy_window_rows(const T* source, const Strides& s, const Gather& g, const Pixel& p, int64_t pitch,
                      Copied* to) {
  const PhaseAxis &h = g.axis[1], &w = g.axis[2];
  const int64_t first = w.source_index(p.j[2], 0) * g.channels, end = w.source * g.channels;
  const int64_t before = clamp(-first, 0, pitch), inside = clamp(end - first - before, 0, pitch - before);
  for (int64_t m = 0; m < g.axis[0].taps * h.taps; ++m, to += pitch) {
    const int64_t row = source_row(g, p, m / h.taps, m % h.taps);
    const int64_t copied = row < 0 ? 0 : inside;
    fill_zero(to, before);
    if (copied > 0) {
      const T* from = source + p.image * s.image + row * end + first + before;
      if constexpr (std::is_same_v<Copied, Acc<T>>) {
        copy_run(from, to + before, copied);
      } else {
        __builtin_memcpy(to + before, from, copied * sizeof(T));
      }
    }
    fill_zero(to + before + copied, pitch - before - copied);
  }
}

// P is how elements are multiplied: pairs are of neighbours in memory, pixels whole pairs apart.
template <class T, int Step, Product P = Product::kNumbers>
struct ThinConv {
  using A = Acc<T>;
  static constexpr bool kPairs = P == Product::kPairs;
  static constexpr int kSize = kPairs ? 2 : 1;            // of an element that is multiplied
  using Copied = std::conditional_t<kPairs, T, A>;        // pairs stay as they are
  using S = std::conditional_t<kPairs, BFloat16Pair, A>;  // what is multiplied
  static constexpr int64_t kWide = kCols<A>;
  // Elements between what threads write and what others read, row after row: the processor fetches what lies
  // behind, from the other core, across 4 KiB too.
  static constexpr int64_t kApart = (64 << 10) / sizeof(Copied);

  ThinConv(const ConvProblem& p, const ConvBuffers& b, char* workspace)
      : phases(p, false), g(phases.at(0)), operands(operands_of<T>(b, false)), threads(p.threads) {
    panels = ceil_div(phases.channels, kWide);
    window = g.axis[2].taps * g.channels;
    pitch = round_up((g.axis[2].count - 1) * Step + window, kSize);
    rows = g.axis[0].taps * g.axis[1].taps;
    depth = rows * ceil_div(window, kSize);
    packed = PackedWeights<A>(p, panels, depth * kWide);
    scratch_size = round_up(rows * pitch, 64) + kApart;
    scratch = reinterpret_cast<Copied*>(packed.place(b, workspace)) + kApart;
  }

  int64_t workspace_bytes() const {
    return packed.bytes() + (kApart + threads * scratch_size) * int64_t(sizeof(Copied));
  }
  bool applies_epilogue() const { return true; }

  void run(const Parallel& parallel) const {
    const auto pack = [&](int64_t panel, A* to, int) { pack_weights(panel, to); };
    packed.start(parallel, pack);
    const int64_t width = g.axis[2].count;
    parallel(g.pixels() / width, [&](int64_t row, int thread) {
      Copied* copy = scratch + thread * scratch_size;
      copy_window_rows(operands.source, phases.source, g, pixel_at(g, row * width), pitch, copy);
      for (int64_t panel = 0; panel < panels; ++panel) {
        const A* panel_weights = packed.get(panel, thread, pack);
        if (block(panel, kWide, phases.channels).size() == kWide) {
          fill_row<kVectors>(row * width, panel, panel_weights, copy);
        } else {
          fill_row<1>(row * width, panel, panel_weights, copy);
        }
      }
    });
  }

 private:
  void pack_weights(int64_t panel, A* to) const {
    const Range channels = block(panel, kWide, phases.channels);
    if constexpr (!kPairs) {
      pack_weight_panel(phases, g, operands.weight, 0, channels, {0, g.depth()}, to);
    } else {
      const auto bits = [&](int64_t k, int64_t row, int64_t i) {  // of element i of a row of the window
        if (i == window) return uint32_t(0);
        const int64_t tap = row * g.axis[2].taps + i / g.channels, c = i % g.channels;
        return uint32_t(
            operands.weight[k * phases.weight_channel + tap * phases.weight_tap + c * phases.weight_source]
                .bits);
      };
      fill_zero(to, depth * kWide);
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t i = 0; i < window; i += 2, to += kWide) {
          for (int64_t k = channels.begin; k < channels.end; ++k)
            to[k - channels.begin] = bit_cast<float>(bits(k, row, i) | bits(k, row, i + 1) << 16);
        }
      }
    }
  }

  template <int Vectors>
  void fill_row(int64_t pixel, int64_t panel, const A* panel_weights, const Copied* copy) const {
    const int64_t width = g.axis[2].count, height = ceil_div(width, ceil_div(width, kRows));
    if (height > kThinMiddle && width >= kRows)
      return fill_tiles<Vectors, kRows>(pixel, panel, panel_weights, copy);
    if (height > kThinLow && width >= kThinMiddle)
      return fill_tiles<Vectors, kThinMiddle>(pixel, panel, panel_weights, copy);
    fill_tiles<Vectors, kThinLow>(pixel, panel, panel_weights, copy);
  }

  template <int Vectors, int Rows>
  void fill_tiles(int64_t pixel, int64_t panel, const A* panel_weights, const Copied* copy) const {
    const int64_t first = panel * kWide, stride = phases.destination.pixel;
    A add[kWide];
    if (operands.bias) copy_run(operands.bias + first, add, Vectors * kLanes<A>);
    for (int64_t width = g.axis[2].count, j = 0; j < width; j += Rows) {
      j = min_of(j, width - Rows);
      fill_tile<Vectors, Rows>(copy + j * Step, panel_weights,
                               {operands.destination + (pixel + j) * stride + first, stride, nullptr,
                                operands.bias ? add : nullptr, nullptr, operands.any_epilogue()});
    }
  }

  template <int Vectors, int Rows>
  void fill_tile(const Copied* a, const A* b, const TileOutput<T, P>& out) const {
    Vec<A> sum[Rows][Vectors] = {};
    for (int64_t m = 0; m < rows; ++m, a += pitch) {
      const int64_t each = ceil_div(Rows, rows);
      for (int64_t r = m * each; r < min_of((m + 1) * each, Rows); ++r) out.template fetch<Vectors>(r);
      auto at = reinterpret_cast<const S*>(a);
      for (int64_t d = window / kSize; d > 0; --d, ++at, b += kWide) {
        asm("" : "+r"(at));  // else GCC spills what neighbouring pixels share, to spare a load
        add_products<P>(sum, TileRows<S, Rows, Step / kSize>(at, Step), b);
      }
      if constexpr (kPairs) {
        if (window % 2 == 0) continue;
        add_products<P>(sum, HalfPairs<Rows, Step / kSize>{at}, b);
        b += kWide;
      }
    }
    out.put(sum);
  }

  Phases phases;
  Gather g;
  Operands<T> operands;
  int64_t threads;
  int64_t panels, rows, window, pitch;  // rows of a window, elements of one, elements of a copied row
  int64_t depth;                        // products for an output
  int64_t scratch_size;
  PackedWeights<A> packed;
  Copied* scratch;
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
  if (p.dtype == DType::kFloat64) return kExcludesFloat64;
  if (p.layout != Layout::kChannelsLast) return "takes channels last";
  const char* reason = "takes channels times stride of 1, 2, 3, 6 or 12";
  with_thin_step(p, [&](auto) { reason = nullptr; });
  if (reason) return reason;
  if (s.groups != 1) return "takes one group";
  if (s.axis[2].dilation != 1 || s.axis[2].kernel == 1) return "takes rows of neighbouring taps";
  if (s.C * s.taps() > kThinDepth) return "takes sums of at most 512 products";
  if (s.axis[2].output < kThinLow) return "takes rows that fill a tile";
  return s.K % lanes_of(p.dtype) == 0 ? nullptr : "takes output channels that fill vectors";
}

template <bool Pairs>
struct ThinClasses {
  template <class Visit>
  static void with(const ConvProblem& p, const ConvBuffers& b, char* workspace, Visit&& visit) {
    with_thin_step(p, [&](auto step) {
      if constexpr (Pairs) {
        if constexpr (step % 2 == 0) visit(ThinConv<BFloat16, step, Product::kPairs>(p, b, workspace));
      } else {
        with_float32_type(p.dtype,
                          [&](auto* tag) { visit(ThinConv<Pointee<decltype(tag)>, step>(p, b, workspace)); });
      }
    });
  }
};

inline const char* thin_bf16_refuses(const ConvProblem& p) {
  if (p.dtype != DType::kBFloat16) return "takes bfloat16";
  if (const char* reason = processor_excludes_pairs()) return reason;
  if (p.shape.C * p.shape.axis[2].stride % 2 != 0) return "takes pixels that are whole pairs apart";
  return thin_refuses(p);
}

constexpr ConvKernel kConvThin =
    entry<ThinClasses<false>>("thin", "an image's rows, read in place", thin_refuses);
constexpr ConvKernel kConvThinBf16 = entry<ThinClasses<true>>(
    "thin_bf16", "an image's rows, read in place by pairs of bfloat16", thin_bf16_refuses);

}  // namespace cnnext::cpu::CNNEXT_ISA
