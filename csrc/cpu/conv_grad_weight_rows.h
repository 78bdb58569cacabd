// Gradient with respect to the weight of convolutions of few channels by whole rows, channels first.
//
// Pixels that are neighbours in a row fill the vectors of both factors: those of the gradient are read where
// they are, those of the input from a copy of its rows, at each tap's distance (conv_rows.h). A tile is some
// output channels times some terms, a term being a channel and a tap; its vectors are summed over the rows of
// a block, then lane by lane. The last vector of a row overlaps the one before, without the pixels that they
// share.
// A task is a split of the blocks of all images (conv_splits.h) times a block of output channels.
#pragma once

#include "conv_rows.h"
#include "conv_splits.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kRowsGradSide = 16;           // output channels, or terms, that gemm's tiles would not fill
constexpr int64_t kRowsPixels = 2048;           // of a block, about: its sums are added lane by lane once
constexpr int64_t kRowsGradCopied = 128 << 10;  // bytes of a block's copied rows, about
constexpr int64_t kRowsSplits = 32;             // at most
constexpr int kRowsTileChannels = 4;

// Terms of a tile with so many output channels.
constexpr int rows_terms(int channels) { return min_of(kRows * kVectors / channels, kRows > 6 ? 9 : 5); }

// The vector with its first lanes zero, also where they are infinite or NaN.
template <class A>
CNNEXT_INLINE Vec<A> without(Vec<A> v, int64_t lanes) {
  constexpr int64_t L = kLanes<A>;
  using Int = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  using Ints = typename VecOf<Int, L>::type;
  if (lanes == 0) return v;
  Ints number;
  for (int i = 0; i < L; ++i) number[i] = i;
  return bit_cast<Vec<A>>(bit_cast<Ints>(v) & (number >= Int(lanes)));
}

// to[i] = the sum of the lanes of x[i]; writes whole vectors.
template <class A>
void sum_lanes(const Vec<A>* x, int count, A* to) {
  constexpr int L = kLanes<A>;
  for (int i = 0; i < count; i += L) {
    Vec<A> y[L] = {};
    for (int n = 0; n < min_of(L, count - i); ++n) y[n] = x[i + n];
    transpose<A>(y);
    for (int n = 1; n < L; ++n) y[0] += y[n];
    store(to + i, y[0]);
  }
}

template <class T>
struct RowsGradWeight {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

  RowsGradWeight(const ConvProblem& p, const ConvBuffers& b, char* workspace)
      : phases(p, false),
        g(phases.at(0)),
        copied(phases, static_cast<const T*>(b.input), kRowsGradCopied,
               max_of(kRowsPixels / g.axis[2].count, 1)),
        w(weight_strides_of(p.weight_layout, g.channels, g.taps())),
        grad_output(static_cast<const T*>(b.output)),
        grad_weight(static_cast<T*>(b.weight)),
        threads(p.threads),
        cut_channels(phases.channels, kRowsTileChannels) {
    blocks = g.images * g.axis[0].count * copied.row_blocks;
    splits = min_of(blocks, kRowsSplits);
    // Where rows are few, as in one dimension, channels are cut; each block copies the rows again.
    const int64_t most_cuts = ceil_div(phases.channels, kRowsTileChannels);
    cut_channels.cut(blocks_for(p.threads, p.shape.groups * splits, most_cuts));
    terms = g.depth();
    sums = round_up(phases.channels * terms, 64);
    gradient_size = in_place() ? 0 : round_up(phases.channels * plane_size(), 64) + 64;
    scratch = reinterpret_cast<A*>(workspace);
    partial = scratch + threads * (copied.size + gradient_size);
  }

  int64_t workspace_bytes() const {
    const int64_t partials = phases.shape.groups * splits * sums;
    return (threads * (copied.size + gradient_size) + partials) * int64_t(sizeof(A));
  }

  void run(const Parallel& parallel) const {
    parallel(phases.shape.groups * splits * cut_channels.blocks, [&](int64_t task, int thread) {
      const Range channels = cut_channels.at(task % cut_channels.blocks);
      task /= cut_channels.blocks;
      A* copy = scratch + thread * (copied.size + gradient_size);
      A* to = partial + task * sums + channels.begin * terms;
      fill_zero(to, channels.size() * terms);
      const int64_t split = task % splits;
      for (int64_t b = split * blocks / splits; b < (split + 1) * blocks / splits; ++b)
        add_block(task / splits, b, channels, copy, to);
    });
    parallel(phases.shape.groups, [&](int64_t group, int) { store_weights(group); });
  }

 private:
  bool in_place() const { return phases.destination.pixel == 1; }
  int64_t plane_size() const { return copied.block_rows * g.axis[2].count; }

  // to[output channel][term] += over the pixels of a block of rows.
  void add_block(int64_t group, int64_t b, Range channels, A* copy, A* to) const {
    const PhaseAxis &d = g.axis[0], &h = g.axis[1];
    const int64_t width = g.axis[2].count;
    const Range rows = block(b % copied.row_blocks, copied.block_rows, h.count);
    const int64_t j0 = b / copied.row_blocks % d.count, image = b / copied.row_blocks / d.count;
    copied.copy_rows(image, group, j0, rows.begin, copy);
    const Strides& s = phases.destination;
    const T* from = grad_output + image * s.image + (group * phases.channels + channels.begin) * s.channel +
                    (j0 * h.count + rows.begin) * width * s.pixel;
    if (in_place()) return add_tiles(channels.size(), rows.size(), copy, from, s.channel, to);
    A* gradient = copy + copied.size;
    for (int64_t k = 0; k < channels.size(); ++k)
      copy_strided(from + k * s.channel, s.pixel, gradient + k * plane_size(), rows.size() * width, false);
    add_tiles(channels.size(), rows.size(), copy, gradient, plane_size(), to);
  }

  template <class S>
  void add_tiles(int64_t channels, int64_t rows, const A* copy, const S* gradient, int64_t stride,
                 A* to) const {
    for (int64_t k = 0; k < channels; k += kRowsTileChannels) {
      const int64_t some = min_of(kRowsTileChannels, channels - k);
      add_terms(some, rows, copy, gradient + k * stride, stride, to + k * terms);
    }
  }
  template <class S, int Channels = kRowsTileChannels>
  void add_terms(int64_t channels, int64_t rows, const A* copy, const S* gradient, int64_t stride,
                 A* to) const {
    if constexpr (Channels > 1) {
      if (channels < Channels) return add_terms<S, Channels - 1>(channels, rows, copy, gradient, stride, to);
    }
    constexpr int kMost = rows_terms(Channels);
    for (int64_t tiles = ceil_div(terms, kMost), n = 0; tiles > 0; --tiles) {
      const int64_t some = ceil_div(terms - n, tiles);
      add_some<S, Channels, kMost>(some, rows, copy, copied.place + n, gradient, stride, to + n);
      n += some;
    }
  }
  template <class S, int Channels, int Terms>
  void add_some(int64_t some, int64_t rows, const A* copy, const int32_t* place, const S* gradient,
                int64_t stride, A* to) const {
    if constexpr (Terms > 1) {
      if (some < Terms)
        return add_some<S, Channels, Terms - 1>(some, rows, copy, place, gradient, stride, to);
    }
    add_tile<S, Channels, Terms>(rows, copy, place, gradient, stride, to);
  }

  template <class S, int Channels, int Terms>
  void add_tile(int64_t rows, const A* copy, const int32_t* place, const S* gradient, int64_t stride,
                A* to) const {
    const int64_t width = g.axis[2].count, rest = width % L;
    Vec<A> sum[Channels * Terms] = {};
    const A* x[Terms];
#pragma GCC unroll 9
    for (int t = 0; t < Terms; ++t) x[t] = copy + place[t];
    // Of pixel j on; the first `twice` lanes have been added before.
    const auto add = [&](int64_t j, int64_t twice) __attribute__((always_inline)) {
      Vec<A> y[Channels];
#pragma GCC unroll 4
      for (int k = 0; k < Channels; ++k) y[k] = without<A>(load(gradient + k * stride + j), twice);
#pragma GCC unroll 9
      for (int t = 0; t < Terms; ++t) {
        const Vec<A> z = without<A>(load(x[t] + j), twice);
#pragma GCC unroll 4
        for (int k = 0; k < Channels; ++k) sum[k * Terms + t] += y[k] * z;
      }
    };
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t j = 0; j + L <= width; j += L) add(j, 0);
      if (rest > 0) add(width - L, L - rest);
      gradient += width;
#pragma GCC unroll 9
      for (int t = 0; t < Terms; ++t) x[t] += copied.row_step;
    }
    A total[round_up(Channels * Terms, L)];
    sum_lanes<A>(sum, Channels * Terms, total);
    for (int k = 0; k < Channels; ++k) {
      for (int t = 0; t < Terms; ++t) to[k * terms + t] += total[k * Terms + t];
    }
  }

  void store_weights(int64_t group) const {
    const A* from = partial + group * splits * sums;
    T* to = grad_weight + group * phases.channels * w.k;
    for (int64_t k = 0; k < phases.channels; ++k) {
      for (int64_t n = 0; n < terms; ++n) {
        A total = 0;
        for (int64_t split = 0; split < splits; ++split) total += from[split * sums + k * terms + n];
        store_one(to + k * w.k + n / g.taps() * w.c + n % g.taps() * w.tap, total);
      }
    }
  }

  Phases phases;
  Gather g;
  CopiedRows<T> copied;
  WeightStrides w;
  const T* grad_output;
  T* grad_weight;
  int64_t threads;
  CutAxis cut_channels;           // of the output
  int64_t terms, blocks, splits;  // channels times taps; blocks of rows, and the splits of them
  int64_t sums, gradient_size;    // elements of a split's sums, and of a block's gradient where it is copied
  A *scratch, *partial;
};

inline const char* rows_grad_weight_refuses(const ConvProblem& p) {
  const ConvShape& s = p.shape;
  if (const char* reason = rows_refuses<false>(p)) return reason;
  if (min_of(s.K_per_group(), s.C_per_group() * s.taps()) > kRowsGradSide)
    return "takes at most 16 output channels, or as many taps times input channels";
  return s.axis[2].output < lanes_of(p.dtype) ? "takes rows of a vector or more" : nullptr;
}

constexpr ConvKernel kConvGradWeightRows = entry<ByFloat32Type<RowsGradWeight>>(
    "rows", "few channels, the input's rows copied once", rows_grad_weight_refuses);

}  // namespace cnnext::cpu::CNNEXT_ISA
