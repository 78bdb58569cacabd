// Gradient of dense convolution with respect to the weight, as one blocked matrix product summed over pixels:
//   grad_weight[k, (tap, c)] = sum over output pixels of gathered input[pixel, (tap, c)] * grad_output[pixel,
//   k]
//
// The rows of a tile are (tap, c), its vectors output channels k. A task is a block of rows times a block of
// channels times a split of the pixels. The number of splits depends on the shape alone and their sums are
// added in order, so that the result does not depend on threads.
#pragma once

#include "conv_gather.h"
#include "gemm_tile.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kGradRows = 2 * kBlockRows;
constexpr int64_t kGradPanels = 4;
constexpr int64_t kGradTasks = 16;  // splits are made until there are this many tasks

template <class T>
struct GradWeightGemm {
  using A = Acc<T>;
  static constexpr int64_t kWide = kCols<A>, kGradCols = kGradPanels * kWide;
  static constexpr int64_t kSums = kGradRows * kGradCols;
  static constexpr int64_t kGathered = kGradRows * kDepthStride, kOutputs = kDepth * kGradCols;

  GradWeightGemm(const ConvProblem& p, const ConvBuffers& b, char* workspace)
      : shape(p.shape),
        last(p.layout == Layout::kChannelsLast),
        input(static_cast<const T*>(b.input)),
        grad_output(static_cast<const T*>(b.output)),
        grad_weight(static_cast<T*>(b.weight)),
        in(strides_of(p.layout, shape.C, shape.input_pixels())),
        out(strides_of(p.layout, shape.K, shape.output_pixels())),
        w(weight_strides_of(p.weight_layout, shape.C_per_group(), shape.taps())) {
    for (int a = 0; a < kAxes; ++a) {
      const Window& window = shape.axis[a];
      g.axis[a] = forward_phase(window);
      outputs.axis[a] = {0, 1, window.output, window.output, 1, 1, 0, 1, 0, 1};
      g.extent[a] = outputs.extent[a] = window.output;
    }
    g.images = outputs.images = shape.N;
    g.channels = shape.C_per_group();
    outputs.channels = shape.K_per_group();
    g = joined(g);
    outputs = joined(outputs);
    order = last || w.tap != 1 ? ColumnOrder{g.channels, 1} : ColumnOrder{1, g.taps()};
    row_blocks = ceil_div(g.depth(), kGradRows);
    channel_blocks = ceil_div(outputs.channels, kGradCols);
    blocks = shape.groups * row_blocks * channel_blocks;
    const int64_t pixel_blocks = ceil_div(g.pixels(), kDepth);
    splits = max_of(1, min_of(kGradTasks / blocks, pixel_blocks / 4));
    split_pixels = ceil_div(pixel_blocks, splits) * kDepth;
    scratch = reinterpret_cast<A*>(workspace);
    partial = scratch + p.threads * (kGathered + kOutputs + kSums);
  }

  static int64_t workspace(const ConvProblem& p) {
    const GradWeightGemm self(p, {}, nullptr);
    const int64_t partials = self.splits > 1 ? self.blocks * self.splits * kSums : 0;
    return (p.threads * (kGathered + kOutputs + kSums) + partials) * sizeof(A);
  }

  void run(const Parallel& parallel) const {
    parallel(blocks * splits, [&](int64_t task, int thread) {
      A* gathered = scratch + thread * (kGathered + kOutputs + kSums);
      A* sums = splits > 1 ? partial + task * kSums : gathered + kGathered + kOutputs;
      sum(task / splits, block(task % splits, split_pixels, g.pixels()), gathered, gathered + kGathered,
          sums);
      if (splits == 1) store_weight(task, sums);
    });
    if (splits == 1) return;
    parallel(blocks, [&](int64_t b, int) {
      A* total = partial + b * splits * kSums;
      for (int64_t split = 1; split < splits; ++split) {
        const A* part = total + split * kSums;
        for (int64_t i = 0; i < kSums; i += kLanes<A>) store(total + i, load(total + i) + load(part + i));
      }
      store_weight(b, total);
    });
  }

  Range rows_of(int64_t b) const { return block(b % row_blocks, kGradRows, g.depth()); }
  Range channels_of(int64_t b) const {
    return block(b / row_blocks % channel_blocks, kGradCols, outputs.channels);
  }
  int64_t group_of(int64_t b) const { return b / row_blocks / channel_blocks; }

  // sums[panel][row][kWide] over the pixels.
  void sum(int64_t b, Range pixels, A* gathered, A* panels, A* sums) const {
    const Range rows = rows_of(b), channels = channels_of(b);
    const T* from = input + group_of(b) * g.channels * in.channel;
    const T* grad = grad_output + group_of(b) * outputs.channels * out.channel;
    fill_zero(sums, kSums);
    for (int64_t begin = pixels.begin; begin < pixels.end; begin += kDepth) {
      const Range part = {begin, min_of(begin + kDepth, pixels.end)};
      if (last) {
        pack_pixels(from, in, g, part, rows, gathered, kGradRows);
      } else {
        pack_columns(from, in, g, part, rows, order, gathered, kDepthStride);
      }
      for (int64_t k = channels.begin; k < channels.end; k += kWide) {
        const Range panel = {k, min_of(k + kWide, channels.end)};
        A* c = sums + (k - channels.begin) * kGradRows;
        if (panel.size() < kWide) fill_zero(panels, part.size() * kWide);
        if (last) {
          pack_pixels(grad, out, outputs, part, panel, panels, kWide);
          tile_column<A, 1, kGradRows>(rows.size(), part.size(), panel.size(), gathered, panels, c, true);
        } else {
          pack_transposed(grad, part, panel, panels);
          tile_column<A, kDepthStride, 1>(rows.size(), part.size(), panel.size(), gathered, panels, c, true);
        }
      }
    }
  }

  // to[pixel][kWide] from a gradient with channels first.
  void pack_transposed(const T* grad, Range pixels, Range panel, A* to) const {
    for_each_run(outputs, pixels, [&](int64_t at, int64_t image, int64_t pixel, int64_t, int64_t count) {
      transpose_block(grad + image * out.image + panel.begin * out.channel + pixel, out.channel, panel.size(),
                      count, [&](int64_t i) { return to + (at + i) * kWide; });
    });
  }

  void store_weight(int64_t b, const A* sums) const {
    const Range rows = rows_of(b), channels = channels_of(b);
    for (int64_t k = channels.begin; k < channels.end; ++k) {
      const int64_t at = k - channels.begin;
      const A* from = sums + at / kWide * kWide * kGradRows + at % kWide;
      T* to = grad_weight + (group_of(b) * outputs.channels + k) * w.k;
      for (int64_t tap = 0; tap < g.taps(); ++tap) {
        const Range c = channels_in(rows, order, tap, g.channels);
        const int64_t first = tap * order.tap - rows.begin;
        for (int64_t i = c.begin; i < c.end; ++i) {
          store_one(to + i * w.c + tap * w.tap, from[(first + i * order.channel) * kWide]);
        }
      }
    }
  }

  ConvShape shape;
  bool last;
  const T *input, *grad_output;
  T* grad_weight;
  Strides in, out;
  WeightStrides w;
  Gather g, outputs;  // of the input, and of the gradient itself
  ColumnOrder order;  // of rows
  int64_t row_blocks, channel_blocks, blocks, splits, split_pixels;
  A *scratch, *partial;
};

constexpr ConvKernel kConvGradWeightGemm = {
    "gemm", "blocked implicit matrix product over pixels", accepts_all,
    [](const ConvProblem& p) {
      int64_t bytes = 0;
      with_type(p.dtype, [&](auto* tag) { bytes = GradWeightGemm<Pointee<decltype(tag)>>::workspace(p); });
      return bytes;
    },
    [](const ConvProblem& p, const ConvBuffers& b, const Parallel& parallel, char* workspace) {
      with_type(p.dtype,
                [&](auto* tag) { GradWeightGemm<Pointee<decltype(tag)>>(p, b, workspace).run(parallel); });
    }};

}  // namespace cnnext::cpu::CNNEXT_ISA
