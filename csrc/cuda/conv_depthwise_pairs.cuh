// The gradient for the input of a depthwise convolution with stride 2, by square kernels of the sizes that
// networks have: a thread computes 2x2 pixels of kPack channels, then those below, a strip of them. All read
// the same few gradients, each once. Pixel 2j + u, with an even or odd (kOdd) padding of 2h + kOdd:
// tap 2m + parity, parity = (u + kOdd) % 2, is multiplied by the gradient j + h + (u + kOdd) / 2 - m.
#pragma once

#include "conv_depthwise_slide.cuh"

namespace cnnext::cuda {

struct DepthwisePairs {
  ConvGather g;
  Slides slides;   // pairs of rows, one pair of columns
  int padding[2];  // half of it, rounded down
  bool is_paired;  // in channels first, pairs of columns are whole and aligned
};

template <class T, int kPack, int kTaps, bool kOdd>
CNNEXT_LAUNCH(kSlideThreads, kTaps > 3 ? 3 : 6)
conv_grad_input_depthwise_pairs(DepthwisePairs arguments) {
  using A = Acc<T>;
  constexpr int kGrads = (kTaps + 1) / 2;  // of a row
  const ConvGather& g = arguments.g;
  const Slides& slides = arguments.slides;
  uint32_t strip_of_block = threadIdx.x;
  const int pack = blockIdx.y * slides.lanes + split(strip_of_block, slides.by_lanes);
  const int64_t first = int64_t(blockIdx.x) * slides.per_block;
  if (pack >= slides.packs || first + strip_of_block >= g.images * slides.in_image) return;
  const int64_t image = first / slides.in_image;
  const Slide strip(slides, image, uint32_t(first - image * slides.in_image), int(strip_of_block));
  const int64_t channel = pack * kPack;

  A weights[kTaps][kTaps][kPack], bias[kPack];
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    const T* weight = static_cast<const T*>(g.weight) + (channel + i) * g.weight_group;
#pragma unroll
    for (int tap = 0; tap < kTaps * kTaps; ++tap, weight += g.weight_tap)
      weights[tap / kTaps][tap % kTaps][i] = to_float(*weight);
    bias[i] = g.bias ? to_float(static_cast<const T*>(g.bias)[channel + i]) : A(0);
  }
  const T* source = static_cast<const T*>(g.source) + strip.image * g.source_strides.image +
                    channel * g.source_strides.channel;
  constexpr int kBefore = kGrads - 1 - kOdd;
  SlidingRow<const T, kGrads, kPack> inputs(source, strip.row + arguments.padding[0] - kBefore,
                                            strip.column + arguments.padding[1] - kBefore,
                                            slides.rows + kGrads - 1, 1, 1, g.source_extent[1],
                                            g.source_extent[2], g.source_extent[2], g.source_strides.pixel);
  SlidingRow<T, 2, kPack> outputs(static_cast<T*>(g.destination) + strip.image * g.destination_strides.image +
                                      channel * g.destination_strides.channel,
                                  2 * strip.row, 2 * strip.column, 2 * slides.rows, 1, 1,
                                  g.destination_extent[1], g.destination_extent[2], g.destination_extent[2],
                                  g.destination_strides.pixel);

  A grads[kGrads][kGrads][kPack];  // the last row is the newest
  typename SlidingRow<const T, kGrads, kPack>::Words next[kGrads];
  const auto move = [&] {
#pragma unroll
    for (int y = 0; y < kGrads; ++y) {
#pragma unroll
      for (int x = 0; x < kGrads; ++x) {
#pragma unroll
        for (int i = 0; i < kPack && y + 1 < kGrads; ++i) grads[y][x][i] = grads[y + 1][x][i];
        if (y + 1 == kGrads) to_floats<T>(next[x], grads[y][x]);
      }
    }
    inputs.move();
    inputs.load(next);
  };
  inputs.load(next);
#pragma unroll
  for (int y = 0; y < kGrads - 1; ++y) move();
#pragma unroll kGrads
  for (int j = 0; j < slides.rows; ++j) {
    move();
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      Pack<T, kPack> result[2];
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        A acc[kPack];
#pragma unroll
        for (int i = 0; i < kPack; ++i) acc[i] = bias[i];
#pragma unroll
        for (int r = (u + kOdd) % 2; r < kTaps; r += 2) {
#pragma unroll
          for (int s = (v + kOdd) % 2; s < kTaps; s += 2) {
            const int y = kBefore + (u + kOdd) / 2 - r / 2, x = kBefore + (v + kOdd) / 2 - s / 2;
#pragma unroll
            for (int i = 0; i < kPack; ++i) acc[i] += grads[y][x][i] * weights[r][s][i];
          }
        }
#pragma unroll
        for (int i = 0; i < kPack; ++i) convert(acc[i], &result[v].at[i]);
      }
      if (kPack == 1 && arguments.is_paired) {
        const Pack<T, 2> both = {{result[0].at[0], result[1].at[0]}};
        outputs.each([&](int v, T* pixel, uint32_t inside) {
          if (v == 0 && inside) store_pack(pixel, both);
        });
      } else {
        outputs.each([&](int v, T* pixel, uint32_t inside) {
          if (inside) store_pack(pixel, result[v]);
        });
      }
      outputs.move();
    }
  }
}

}  // namespace cnnext::cuda
