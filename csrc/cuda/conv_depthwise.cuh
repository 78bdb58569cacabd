// Depthwise convolution, one input and one output channel in each group: the gather of conv_gather.cuh, and
// the gradient for the weight in one pass over its operands. Sums in Acc<T>.
//
// Gather: a thread computes kStrip neighbours along the last axis for kPack channels; a block 256 / kLanes
// such strips of kLanes packs of channels. In channels last a pack is 16 bytes and kLanes 8, in channels
// first both are one. The weights of a row of taps are staged in shared memory. With kTaps > 0 the last axis
// has that many taps, next to each other, and kStep between outputs: each input of the strip is read once.
// Else any taps.
#pragma once

#include "conv_gather.cuh"
#include "conv_grad_weight.cuh"

namespace cnnext::cuda {

constexpr int kDepthwiseThreads = 256;

struct DepthwiseGather {
  ConvGather g;
  int strips[kMostPhases];  // in an image
  Divisor by_strips[kMostPhases], by_strips_in_row[kMostPhases];
};

template <class T, int kPack, int kLanes, int kStrip, int kTaps, int kStep>
CNNEXT_LAUNCH(kDepthwiseThreads, 2)
conv_gather_depthwise(DepthwiseGather arguments) {
  using A = Acc<T>;
  const ConvGather& g = arguments.g;
  constexpr int kChannels = kLanes * kPack, kStrips = kDepthwiseThreads / kLanes;
  const PhaseAxes& phase = g.phase[blockIdx.z];
  const Phase &d = phase.axis[0], &h = phase.axis[1], &w = phase.axis[2];
  const int64_t first = int64_t(blockIdx.x) * kStrips, strips = g.images * arguments.strips[blockIdx.z];
  if (first >= strips) return;
  const int first_channel = blockIdx.y * kChannels, channel = first_channel + threadIdx.x % kLanes * kPack;
  const int lane_strip = threadIdx.x / kLanes;
  const bool active = first + lane_strip < strips && channel < g.groups;

  int64_t image = first / arguments.strips[blockIdx.z];
  uint32_t rest = uint32_t(first - image * arguments.strips[blockIdx.z]) + lane_strip;
  uint32_t images = rest;
  rest = split(images, arguments.by_strips[blockIdx.z]);
  image += images;
  const int q = split(rest, arguments.by_strips_in_row[blockIdx.z]) * kStrip;
  const int p = split(rest, h.by_count), o = int(rest);
  const T* source =
      static_cast<const T*>(g.source) + image * g.source_strides.image + channel * g.source_strides.channel;

  A* weights = shared_memory<A>();  // [taps of the row][kChannels]
  A acc[kStrip][kPack] = {};
  for (int z = 0; z < d.taps; ++z) {
    for (int y = 0; y < h.taps; ++y) {
      __syncthreads();
      for (int i = threadIdx.x; i < w.taps * kChannels; i += kDepthwiseThreads) {
        const int c = first_channel + i % kChannels;
        const int64_t at = c * g.weight_group + phase.tap(g.kernel, z, y, i / kChannels) * g.weight_tap;
        weights[i] = c < g.groups ? A(to_float(static_cast<const T*>(g.weight)[at])) : A(0);
      }
      __syncthreads();
      const int at_z = d.source_index(o, z), at_y = h.source_index(p, y);
      if (!active || unsigned(at_z) >= unsigned(d.source) || unsigned(at_y) >= unsigned(h.source)) continue;
      const T* row = source + (int64_t(at_z) * h.source + at_y) * w.source * g.source_strides.pixel;
      const A* mine = weights + threadIdx.x % kLanes * kPack;
      const auto add = [&](int at_x, auto&& each) {  // each(value, i) for the channels of one input
        const bool inside = unsigned(at_x) < unsigned(w.source);
        const Pack<T, kPack> values = load_if<T, kPack>(inside, row + at_x * g.source_strides.pixel, {});
#pragma unroll
        for (int i = 0; i < kPack; ++i) each(A(to_float(values.at[i])), i);
      };
      if constexpr (kTaps > 0) {
        const int at_x = q * kStep + w.offset;
#pragma unroll
        for (int x = 0; x < (kStrip - 1) * kStep + kTaps; ++x) {
          add(at_x + x, [&](A value, int i) {
#pragma unroll
            for (int j = 0; j < kStrip; ++j) {
              const int tap = x - j * kStep;
              if (tap >= 0 && tap < kTaps) acc[j][i] += value * mine[tap * kChannels + i];
            }
          });
        }
      } else {
        for (int x = 0; x < w.taps; ++x) {
#pragma unroll
          for (int j = 0; j < kStrip; ++j) {
            add(w.source_index(q + j, x),
                [&](A value, int i) { acc[j][i] += value * mine[x * kChannels + i]; });
          }
        }
      }
    }
  }
  if (!active) return;
  A bias[kPack];
#pragma unroll
  for (int i = 0; i < kPack; ++i)
    bias[i] = g.bias ? to_float(static_cast<const T*>(g.bias)[channel + i]) : A(0);
#pragma unroll
  for (int j = 0; j < kStrip; ++j) {
    if (q + j >= w.count) break;
    const Row row = {image, {o, p, q + j}};
    const int64_t pixel = row.destination_pixel(phase, g.destination_extent);
    Pack<T, kPack> result;
#pragma unroll
    for (int i = 0; i < kPack; ++i) convert(acc[j][i] + bias[i], &result.at[i]);
    store_pack(static_cast<T*>(g.destination) + image * g.destination_strides.image +
                   channel * g.destination_strides.channel + pixel * g.destination_strides.pixel,
               result);
  }
}

// Grid: tiles of channels; tiles of kR x kS taps; parts of the sum. A thread keeps a sum for each tap of the
// tile and kPack channels; those of a block's threads are added by halves.
template <class T, int kPack, int kLanes, int kR, int kS>
CNNEXT_LAUNCH(kDepthwiseThreads, 1)
conv_grad_weight_depthwise(ConvGradWeight g) {
  using A = Acc<T>;
  constexpr int kChannels = kLanes * kPack, kPixels = kDepthwiseThreads / kLanes;
  const int tiles_s = int(ceil_div(g.kernel[2], kS)), tiles_r = int(ceil_div(g.kernel[1], kR));
  const int s0 = blockIdx.y % tiles_s * kS, r0 = blockIdx.y / tiles_s % tiles_r * kR,
            t = blockIdx.y / tiles_s / tiles_r;
  const int channel = blockIdx.x * kChannels + threadIdx.x % kLanes * kPack, lane = threadIdx.x / kLanes;
  const bool active = channel < g.groups;
  const GradWeightPixels pixels(g, blockIdx.z, (t * g.kernel[1] + r0) * g.kernel[2] + s0);

  A acc[kR * kS][kPack] = {};
  for (int at = lane; active && at < pixels.count; at += kPixels) {
    const OutputPixel pixel = pixels[at];
    uint32_t rest = pixel.pixel;
    const int x = split(rest, g.by_output[2]) * g.stride[2] + pixels.shift[2];
    const int y = split(rest, g.by_output[1]) * g.stride[1] + pixels.shift[1];
    const int z = int(rest) * g.stride[0] + pixels.shift[0];
    if (unsigned(z) >= unsigned(g.input_extent[0])) continue;
    const Pack<T, kPack> grads = load_pack<T, kPack>(
        static_cast<const T*>(g.grad_output) + pixel.image * g.output_strides.image +
        int64_t(pixel.pixel) * g.output_strides.pixel + channel * g.output_strides.channel);
    const T* plane = static_cast<const T*>(g.input) + pixel.image * g.input_strides.image +
                     channel * g.input_strides.channel +
                     int64_t(z) * g.input_extent[1] * g.input_extent[2] * g.input_strides.pixel;
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      const int at_y = y + r * g.dilation[1];
      const bool is_row = unsigned(at_y) < unsigned(g.input_extent[1]);
      const T* row = plane + int64_t(at_y) * g.input_extent[2] * g.input_strides.pixel;
#pragma unroll
      for (int s = 0; s < kS; ++s) {
        const int at_x = x + s * g.dilation[2];
        const bool inside = is_row & unsigned(at_x) < unsigned(g.input_extent[2]);
        const Pack<T, kPack> values = load_if<T, kPack>(inside, row + at_x * g.input_strides.pixel, {});
#pragma unroll
        for (int i = 0; i < kPack; ++i) {
          acc[r * kS + s][i] += A(to_float(grads.at[i])) * A(to_float(values.at[i]));
        }
      }
    }
  }

  A* sums = shared_memory<A>();  // [kPixels][kChannels]
  A* mine = sums + threadIdx.x * kPack;
#pragma unroll
  for (int tap = 0; tap < kR * kS; ++tap) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kPack; ++i) mine[i] = acc[tap][i];
    for (int half = kPixels / 2; half > 0; half /= 2) {
      __syncthreads();
      if (lane >= half) continue;
#pragma unroll
      for (int i = 0; i < kPack; ++i) mine[i] += mine[half * kChannels + i];
    }
    const int r = r0 + tap / kS, s = s0 + tap % kS;
    if (lane > 0 || !active || r >= g.kernel[1] || s >= g.kernel[2]) continue;
    A* partial = static_cast<A*>(g.partial) + blockIdx.z * g.weights();
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      partial[int64_t(channel + i) * g.taps + (t * g.kernel[1] + r) * g.kernel[2] + s] = mine[i];
    }
  }
}

}  // namespace cnnext::cuda
