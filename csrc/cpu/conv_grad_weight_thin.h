// Gradient with respect to the weight of images of few channels in channels last.
//
// gemm copies each pixel's window and transposes the gradient of the output; for a window of 27 elements that
// is half of the time. Here neither is packed. A tile is a part of a row of the window times two vectors of
// output channels, and sums over pixels: vectors of the gradient are read where they are, elements of the
// image from a copy of its rows (conv_thin.h), the window's part shifted by a pixel's elements each time.
// Pixels are cut into runs of a row; blocks of runs stay in the cache while all tiles pass over them. A task
// is a split of the blocks (conv_splits.h) times a block of output channels.
#pragma once

#include "conv_splits.h"
#include "conv_thin.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kThinChannels = 24;     // of more, gemm multiplies windows as fast
constexpr int64_t kThinPixels = 224;      // of a block, at most
constexpr int64_t kThinSums = 128 << 10;  // elements of all splits' sums, about

template <class T>
struct ThinGradWeight {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

  ThinGradWeight(const ConvProblem& p, const ConvBuffers& b, char* workspace)
      : g(Phases(p, false).at(0)),
        channels(p.shape.K),
        w(weight_strides_of(p.weight_layout, p.shape.C, p.shape.taps())),
        input(static_cast<const T*>(b.input)),
        grad_output(static_cast<const T*>(b.output)),
        grad_weight(static_cast<T*>(b.weight)),
        threads(p.threads) {
    in = strides_of(p.layout, g.channels, p.shape.input_pixels());
    const int64_t width = g.axis[2].count;
    step = g.axis[2].source_step * g.channels;
    window = g.axis[2].taps * g.channels;
    rows = g.axis[0].taps * g.axis[1].taps;
    runs_per_row = ceil_div(width, kThinPixels);
    length = ceil_div(width, runs_per_row);
    runs = g.pixels() / width * runs_per_row;
    block_runs = runs_per_row > 1 ? 1 : max_of(kThinPixels / width, 1);
    blocks = ceil_div(runs, block_runs);
    pitch = (length - 1) * step + window;
    copied = round_up(block_runs * rows * pitch, 64) + 64;  // off the powers of two
    sums = round_up(rows * window * channels, 64);
    splits = min_of(blocks, clamp(kThinSums / sums, 8, 32));
    // For more threads channels are cut; each block of them copies the rows again.
    const int64_t most_cuts = ceil_div(channels, kVectors * L);
    cut_channels = CutAxis(channels, kVectors * L);
    cut_channels.cut(blocks_for(p.threads, splits, most_cuts));
    scratch = reinterpret_cast<A*>(workspace);
    partial = scratch + threads * copied;
  }

  int64_t workspace_bytes() const { return (threads * copied + splits * sums) * int64_t(sizeof(A)); }

  void run(const Parallel& parallel) const {
    parallel(splits * cut_channels.blocks, [&](int64_t task, int thread) {
      const int64_t split = task / cut_channels.blocks;
      const Range outputs = cut_channels.at(task % cut_channels.blocks);
      A* to = partial + split * sums;
      for (int64_t e = 0; e < rows * window; ++e)
        fill_zero(to + e * channels + outputs.begin, outputs.size());
      const Range mine = {split * blocks / splits, (split + 1) * blocks / splits};
      for (int64_t b = mine.begin; b < mine.end; ++b) {
        const Range next = block(b + 1, block_runs, b + 1 < mine.end ? runs : 0);
        add_block(block(b, block_runs, runs), next, outputs, scratch + thread * copied, to);
      }
    });
    parallel(channels / L, [&](int64_t vector, int) { store_weights(vector * L); });
  }

 private:
  int64_t first_pixel(int64_t number) const {  // of a run
    return number / runs_per_row * g.axis[2].count + number % runs_per_row * length;
  }

  int64_t pixels_of(int64_t number) const {
    return min_of(length, g.axis[2].count - number % runs_per_row * length);
  }

  // to[row of the window, its element][K] += over the pixels of a block. Meanwhile those of the next one are
  // fetched.
  void add_block(Range now, Range next, Range outputs, A* copy, A* to) const {
    Ahead ahead = fetched(next, outputs, now.size());
    for (int64_t n = now.begin; n < now.end; ++n) {
      const Pixel pixel = pixel_at(g, first_pixel(n));
      copy_window_rows(input, in, g, pixel, pitch, copy + (n - now.begin) * rows * pitch);
    }
    for (int64_t k = outputs.begin; k < outputs.end; k += kVectors * L) {
      const bool narrow = k + L == outputs.end;
      for (int64_t m = 0; m < rows; ++m) {
        for (int64_t tiles = ceil_div(window, kRows), e = 0; tiles > 0; --tiles) {
          const int64_t height = ceil_div(window - e, tiles);
          (this->*tile_of(height, narrow))(now, k, copy + m * pitch + e, to + (m * window + e) * channels + k,
                                           ahead);
          e += height;
        }
      }
    }
  }

  // What the next block reads: of the image the last row of each window.
  Ahead fetched(Range next, Range outputs, int64_t of_runs) const {
    if (next.size() == 0) return {};
    const Range pixels = {first_pixel(next.begin), first_pixel(next.end)};
    const int64_t tiles = ceil_div(outputs.size(), kVectors * L) * rows * ceil_div(window, kRows);
    const int64_t calls = tiles * of_runs * ceil_div(length, kFetchSteps);
    const T* gradient = grad_output + pixels.begin * channels + outputs.begin;
    return {fetched_pixels(input, in, g, pixels, {(rows - 1) * window, rows * window}, calls),
            FetchedRows(gradient, outputs.size(), {pixels.size(), channels}, {1, 0}, calls)};
  }

  template <int Rows, int Vectors>
  void add_tile(Range now, int64_t k, const A* a, A* to, Ahead& ahead) const {
    Vec<A> sum[Rows][Vectors] = {};
    for (int64_t n = now.begin; n < now.end; ++n, a += rows * pitch) {
      TileRows<A, Rows, 1> elements(a, 1);
      const T* b = grad_output + first_pixel(n) * channels + k;
      for (int64_t count = pixels_of(n); count > 0; count -= kFetchSteps) {
        ahead.fetch();
        for (int64_t j = min_of(count, kFetchSteps); j > 0; --j, elements.advance(step), b += channels)
          add_products<Product::kNumbers>(sum, elements, b);
      }
    }
#pragma GCC unroll 14
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) {
        A* out = to + r * channels + v * L;
        store(out, load(out) + sum[r][v]);
      }
    }
  }
  static auto tile_of(int64_t height, bool narrow) {
    return with_count<kRows>(height, [=](auto n) {
      return narrow ? &ThinGradWeight::add_tile<n, 1> : &ThinGradWeight::add_tile<n, kVectors>;
    });
  }

  // The weights of a vector of output channels: the sum of all splits.
  void store_weights(int64_t k) const {
    for (int64_t e = 0; e < rows * window; ++e) {
      const A* from = partial + e * channels + k;
      Vec<A> total = load(from);
      for (int64_t split = 1; split < splits; ++split) total += load(from + split * sums);
      T* to = grad_weight + e / g.channels * w.tap + e % g.channels * w.c + k * w.k;
      for (int64_t lane = 0; lane < L; ++lane) store_one(to + lane * w.k, total[lane]);
    }
  }

  Gather g;
  int64_t channels;  // of the output
  Strides in;
  WeightStrides w;
  const T *input, *grad_output;
  T* grad_weight;
  int64_t threads;
  int64_t rows, window, step;          // of a window; elements of a row of it, and from pixel to pixel
  int64_t length, runs_per_row, runs;  // pixels of a run, and how many runs there are
  int64_t block_runs, blocks, splits;  // runs of a block; blocks, and the splits of them
  CutAxis cut_channels;                // of the output
  int64_t pitch, copied, sums;         // elements of a copied row, of a block's copy, of a split's sums
  A *scratch, *partial;
};

inline const char* thin_grad_weight_refuses(const ConvProblem& p) {
  const ConvShape& s = p.shape;
  if (p.dtype == DType::kFloat64) return kExcludesFloat64;
  if (p.layout != Layout::kChannelsLast) return "takes channels last";
  if (s.groups != 1) return "takes one group";
  if (s.axis[2].dilation != 1) return "takes rows of neighbouring taps";
  if (s.C > kThinChannels) return "takes at most 24 input channels";
  if (s.C * s.taps() > kThinDepth) return "takes windows of at most 512 elements";
  return s.K % lanes_of(p.dtype) == 0 ? nullptr : "takes output channels that fill vectors";
}

constexpr ConvKernel kConvGradWeightThin = entry<ByFloat32Type<ThinGradWeight>>(
    "thin", "an image's rows and the gradient, read in place", thin_grad_weight_refuses);

}  // namespace cnnext::cpu::CNNEXT_ISA
