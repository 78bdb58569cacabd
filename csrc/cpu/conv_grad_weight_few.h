// Gradient of convolution with respect to the weight from few pixels: each row of it, the weights of an
// output channel, is a sum of as many rows of the gathered input, and written once. A product of matrices
// would transpose more than it multiplies.
//
// A task is a block of columns (tap, c), gathered from the input, for a block of output channels.
#pragma once

#include "conv_phases.h"
#include "entry.h"
#include "stream.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kFewGradPixels = 8;
constexpr int64_t kFewColumns = 1024;                    // of a task
constexpr int64_t kFewColumnsStride = kFewColumns + 16;  // off the powers of two

template <class T>
struct GradWeightFew {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

  GradWeightFew(const ConvProblem& p, const ConvBuffers& b, char* workspace)
      : phases(p, false),
        g(phases.at(0)),
        input(static_cast<const T*>(b.input)),
        grad_output(static_cast<const T*>(b.output)),
        grad_weight(static_cast<T*>(b.weight)),
        threads(p.threads),
        columns(g.depth(), L),
        channels(phases.channels, 4),
        scratch(reinterpret_cast<A*>(workspace)) {
    constexpr int64_t kFewestChannels = 16;  // for which columns are gathered
    columns.cut(ceil_div(g.depth(), kFewColumns));
    channels.cut(
        blocks_for(p.threads, columns.blocks * p.shape.groups, ceil_div(channels.size, kFewestChannels)));
    const int64_t row = g.depth() * int64_t(sizeof(T)), all = p.shape.K * row;
    streamed = all > kStreamedBytes && row % kAlignment == 0 &&
               reinterpret_cast<uintptr_t>(grad_weight) % kAlignment == 0;
  }

  int64_t workspace_bytes() const { return threads * kScratch * int64_t(sizeof(A)); }

  void run(const Parallel& parallel) const {
    const int64_t blocks = columns.blocks * channels.blocks;
    parallel(phases.shape.groups * blocks, [&](int64_t task, int thread) {
      const Range some = channels.at(task % channels.blocks),
                  part = columns.at(task / channels.blocks % columns.blocks);
      const int64_t group = task / blocks;
      A* x = scratch + thread * kScratch;
      const T* from = input + group * g.channels * phases.source.channel;
      pack_pixels(from, phases.source, g, {0, g.pixels()}, part, x, kFewColumnsStride);
      with_count<kFewGradPixels>(g.pixels(), [&](auto pixels) { fill_rows<pixels>(group, some, part, x); });
      if (streamed) end_streams();
    });
  }

 private:
  static constexpr int64_t kScratch = kFewGradPixels * kFewColumnsStride;

  // Several rows at once share the loads of x; their factors stay in registers.
  template <int Pixels>
  void fill_rows(int64_t group, Range some, Range part, const A* x) const {
    constexpr int kRowsAtOnce = Pixels <= 4 ? 4 : 2;
    int64_t k = some.begin;
    for (; k + kRowsAtOnce <= some.end; k += kRowsAtOnce) fill<Pixels, kRowsAtOnce>(group, k, part, x);
    for (; k < some.end; ++k) fill<Pixels, 1>(group, k, part, x);
  }
  template <int Pixels, int Rows>
  void fill(int64_t group, int64_t k, Range part, const A* x) const {
    const int64_t channel = group * phases.channels + k, size = part.size();
    Vec<A> factor[Rows][Pixels];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int p = 0; p < Pixels; ++p)
        factor[r][p] = broadcast(load_one(gradient_at(p) + (channel + r) * phases.destination.channel));
    }
    T* to = grad_weight + channel * phases.weight_channel + part.begin;
    for (int64_t j = 0; j < size; j += L) {
      Vec<A> sum[Rows] = {};
#pragma GCC unroll 8
      for (int p = 0; p < Pixels; ++p) {
        const Vec<A> y = load(x + p * kFewColumnsStride + j);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) sum[r] += factor[r][p] * y;
      }
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) put(streamed, to + r * phases.weight_channel + j, sum[r], size - j);
    }
  }
  // Channel 0 of an output pixel.
  const T* gradient_at(int64_t pixel) const {
    const int64_t of_image = g.pixels() / g.images;
    return grad_output + pixel / of_image * phases.destination.image +
           pixel % of_image * phases.destination.pixel;
  }

  Phases phases;
  Gather g;
  const T *input, *grad_output;
  T* grad_weight;
  int64_t threads;
  CutAxis columns, channels;
  bool streamed;
  A* scratch;
};

inline const char* few_grad_weight_refuses(const ConvProblem& p) {
  if (p.dtype == DType::kFloat64) return kExcludesFloat64;
  if (p.shape.N * p.shape.output_pixels() > kFewGradPixels) return "takes up to 8 pixels";
  if (p.layout != Layout::kChannelsLast && (p.shape.input_pixels() > 1 || p.shape.output_pixels() > 1))
    return "takes channels last";
  const bool rows = p.weight_layout == Layout::kChannelsLast || p.shape.taps() == 1;
  return rows ? nullptr : "takes weights in channels last, or of one tap";
}

constexpr ConvKernel kConvGradWeightFew = entry<ByFloat32Type<GradWeightFew>>(
    "few_pixels", "rows of weights, each a sum of a few pixels", few_grad_weight_refuses);

}  // namespace cnnext::cpu::CNNEXT_ISA
