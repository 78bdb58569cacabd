// The arguments of every kernel that computes the gradient for the weight: sums over the pixels of all
// images, cut into parts whose number depends on the shape alone. Each part writes its sums; reduce.cuh adds
// them in order.
//
// grad_weight[k, c, tap] = sum over n, o of grad_output[n, k, o] * input[n, c, o * stride - padding + tap *
// dilation]
#pragma once

#include "device.cuh"
#include "plan.h"

namespace cnnext::cuda {

struct ConvGradWeight {
  const void *grad_output, *input;
  void* partial;  // of Acc<T>: [part][groups * K][tap][C]
  int64_t images;
  int groups, K, C;  // channels of one group
  int taps;
  Strides output_strides, input_strides;
  int64_t output_group, input_group;  // from one group's channels to the next's, in elements
  int output_pixels;
  int output[kAxes], input_extent[kAxes], kernel[kAxes], stride[kAxes], padding[kAxes], dilation[kAxes];
  Divisor by_pixels, by_output[kAxes];
  int64_t per_part;  // pixels, of all images
  int parts;

  CNNEXT_HOST_DEVICE int64_t pixels() const { return images * output_pixels; }
  CNNEXT_HOST_DEVICE int64_t weights() const { return int64_t(groups) * K * taps * C; }
};

struct OutputPixel {
  int64_t image;
  uint32_t pixel;  // in its image
};

// The output pixels of one part, and the input pixels that one tap reads for them.
struct GradWeightPixels {
  const ConvGradWeight& g;
  int64_t image;
  uint32_t in_image;
  int count;
  int shift[kAxes];  // what the tap adds to output * stride

  CNNEXT_DEVICE GradWeightPixels(const ConvGradWeight& g, int part, int tap) : g(g) {
    const int64_t first = part * g.per_part;
    image = first / g.output_pixels;
    in_image = uint32_t(first - image * g.output_pixels);
    count = int(min_of(g.per_part, g.pixels() - first));
    for (int a = kAxes - 1; a >= 0; --a) {
      shift[a] = tap % g.kernel[a] * g.dilation[a] - g.padding[a];
      tap /= g.kernel[a];
    }
  }
  CNNEXT_DEVICE OutputPixel operator[](int at) const {
    uint32_t images = in_image + at;
    const uint32_t pixel = split(images, g.by_pixels);
    return {image + images, pixel};
  }
  // What the tap reads of the input for an output pixel: positions, which may lie in the padding, and the
  // number of the pixel as if it did not.
  CNNEXT_DEVICE int64_t first_input(const OutputPixel& o, int (&at)[kAxes]) const {
    uint32_t rest = o.pixel;
    at[2] = split(rest, g.by_output[2]) * g.stride[2] + shift[2];
    at[1] = split(rest, g.by_output[1]) * g.stride[1] + shift[1];
    at[0] = int(rest) * g.stride[0] + shift[0];
    return (int64_t(at[0]) * g.input_extent[1] + at[1]) * g.input_extent[2] + at[2];
  }
  // The number of the input pixel that the tap reads for an output pixel, or -1 in the padding.
  CNNEXT_DEVICE int64_t input_pixel(const OutputPixel& o) const {
    int at[kAxes];
    const int64_t pixel = first_input(o, at);
    bool inside = true;
    for (int a = 0; a < kAxes; ++a) inside &= unsigned(at[a]) < unsigned(g.input_extent[a]);
    return inside ? pixel : -1;
  }
};

inline ConvGradWeight grad_weight_arguments(const ConvProblem& p, const ConvBuffers& b, char* workspace,
                                            int64_t parts) {
  const ConvShape& s = p.shape;
  ConvGradWeight g = {};
  g.grad_output = b.output;
  g.input = b.input;
  g.partial = workspace;
  g.images = s.N;
  g.groups = int(s.groups);
  g.K = int(s.K_per_group());
  g.C = int(s.C_per_group());
  g.taps = int(s.taps());
  g.output_strides = strides_of(p.layout, s.K, s.output_pixels());
  g.input_strides = strides_of(p.layout, s.C, s.input_pixels());
  g.output_group = g.K * g.output_strides.channel;
  g.input_group = g.C * g.input_strides.channel;
  g.output_pixels = int(s.output_pixels());
  g.by_pixels = Divisor(g.output_pixels);
  for (int a = 0; a < kAxes; ++a) {
    const Window& w = s.axis[a];
    g.output[a] = int(w.output);
    g.by_output[a] = Divisor(w.output);
    g.input_extent[a] = int(w.input);
    g.kernel[a] = int(w.kernel);
    g.stride[a] = int(w.stride);
    g.padding[a] = int(w.padding);
    g.dilation[a] = int(w.dilation);
  }
  g.per_part = ceil_div(g.pixels(), parts);
  g.parts = int(ceil_div(g.pixels(), g.per_part));
  return g;
}

}  // namespace cnnext::cuda
