// Depthwise convolution in channels first, by square kernels of the sizes that networks have: a thread
// computes a column of kStripRows outputs of one channel, `dilation` rows apart, so that they share what they
// read. Neighbouring threads have neighbouring columns. The block's channel is blockIdx.y, or blockIdx.x of
// grad_weight. Sums in Acc<T>. kDilated: taps may lie apart, in rows and columns, else they are neighbours.
#pragma once

#include "conv_gather.cuh"
#include "conv_grad_weight.cuh"
#include "ptx.cuh"

namespace cnnext::cuda {

constexpr int kStripThreads = 256, kStripRows = 8;

// The strips of all images, numbered; in an image the columns are the fastest.
struct Strips {
  int dilation;
  int64_t in_image;
  Divisor by_image, by_columns, by_strips, by_dilation;

  Strips(int64_t planes, int64_t rows, int64_t columns, int64_t dilation)
      : dilation(int(dilation)), by_columns(columns), by_dilation(dilation) {
    const int64_t strips = ceil_div(rows, kStripRows * dilation) * dilation;
    in_image = planes * strips * columns;
    by_image = Divisor(in_image);
    by_strips = Divisor(strips);
  }
};
struct Strip {
  int64_t image;
  int plane, row, column;  // of the outputs: their first row

  // Strip number first + beyond; `image` and `in_image` are those of the first.
  CNNEXT_DEVICE Strip(const Strips& s, int64_t image, uint32_t in_image, int beyond) {
    uint32_t images = in_image + beyond, rest = split(images, s.by_image);
    this->image = image + images;
    column = split(rest, s.by_columns);
    uint32_t strip = split(rest, s.by_strips);
    plane = int(rest);
    const int offset = split(strip, s.by_dilation);
    row = int(strip) * kStripRows * s.dilation + offset;
  }
};

// Calls body(value, y, x) for the inputs of a strip, zero in the padding: row y of the strip, tap x. The
// steps are those between taps. There are no branches around loads, so that many are on their way at once.
template <int kTaps, int kStep, bool kDilated, class T, class Body>
CNNEXT_DEVICE void each_strip_value(const T* plane, int top, int rows, int row_step, int left, int columns,
                                    int column_step, const Body& body) {
  if (!kDilated) row_step = column_step = 1;
  const int64_t to_next = int64_t(row_step) * columns;
  const T* row = plane + int64_t(top) * columns + left;
  unsigned rows_of[kTaps];  // of the column that tap x reads
#pragma unroll
  for (int x = 0; x < kTaps; ++x)
    rows_of[x] = unsigned(left + x * column_step) < unsigned(columns) ? rows : 0;
#pragma unroll
  for (int y = 0; y < (kStripRows - 1) * kStep + kTaps; ++y, row += to_next) {
    if (kTaps > 5 && unsigned(top + y * row_step) >= unsigned(rows)) continue;
#pragma unroll
    for (int x = 0; x < kTaps; ++x) {
      const bool inside = unsigned(top + y * row_step) < rows_of[x];
      body(to_float(load_if<T, 1>(inside, row + x * column_step, {}).at[0]), y, x);
    }
  }
}

struct DepthwiseStrips {
  ConvGather g;
  Strips strips;
};

template <class T, int kTaps, int kStep, bool kDilated>
CNNEXT_LAUNCH(kStripThreads, kTaps* kStep > 7 ? 1 : 2)  // for registers
conv_gather_depthwise_strip(DepthwiseStrips arguments) {
  using A = Acc<T>;
  const ConvGather& g = arguments.g;
  const PhaseAxes& phase = g.phase[0];
  const Phase &d = phase.axis[0], &h = phase.axis[1], &w = phase.axis[2];
  const int64_t first = int64_t(blockIdx.x) * kStripThreads, in_image = arguments.strips.in_image;
  if (first + threadIdx.x >= g.images * in_image) return;
  const int64_t image = first / in_image;
  const Strip strip(arguments.strips, image, uint32_t(first - image * in_image), threadIdx.x);
  const int channel = blockIdx.y;
  const T* source = static_cast<const T*>(g.source) + strip.image * g.source_strides.image +
                    channel * g.source_strides.channel;
  const T* weight = static_cast<const T*>(g.weight) + channel * g.weight_group;
  const int top = h.source_index(strip.row, 0), left = w.source_index(strip.column, 0);

  A acc[kStripRows] = {};
  for (int z = 0; z < d.taps; ++z) {
    const int at_z = d.source_index(strip.plane, z);
    if (unsigned(at_z) >= unsigned(d.source)) continue;
    A weights[kTaps][kTaps];
    const T* next_weight = weight + phase.tap(g.kernel, z, 0, 0) * g.weight_tap;
#pragma unroll
    for (int i = 0; i < kTaps * kTaps; ++i, next_weight += w.tap_step * g.weight_tap) {
      weights[i / kTaps][i % kTaps] = to_float(*next_weight);
    }
    each_strip_value<kTaps, kStep, kDilated>(source + int64_t(at_z) * h.source * w.source, top, h.source,
                                             h.offset_step, left, w.source, w.offset_step,
                                             [&](A value, int y, int x) {
#pragma unroll
                                               for (int j = 0; j < kStripRows; ++j) {
                                                 const int tap = y - j * kStep;
                                                 if (tap >= 0 && tap < kTaps)
                                                   acc[j] += value * weights[tap][x];
                                               }
                                             });
  }
  const A bias = g.bias ? to_float(static_cast<const T*>(g.bias)[channel]) : A(0);
  T* to = static_cast<T*>(g.destination) + strip.image * g.destination_strides.image +
          channel * g.destination_strides.channel + (int64_t(strip.plane) * h.count + strip.row) * w.count +
          strip.column;
  const int dilation = kDilated ? arguments.strips.dilation : 1;
#pragma unroll
  for (int j = 0; j < kStripRows; ++j, to += int64_t(dilation) * w.count) {
    if (strip.row + j * dilation >= h.count) break;
    convert(acc[j] + bias, to);
  }
}

struct DepthwiseGradWeightStrips {
  ConvGradWeight g;  // per_part counts strips
  Strips strips;
};

// Grid: channels; taps of the first axis; parts of the sum.
template <class T, int kTaps, int kStep, bool kDilated>
CNNEXT_LAUNCH(kStripThreads, kTaps* kStep > 6 ? 1 : 2)
conv_grad_weight_depthwise_strip(DepthwiseGradWeightStrips arguments) {
  using A = Acc<T>;
  const ConvGradWeight& g = arguments.g;
  const int64_t in_image = arguments.strips.in_image, first = blockIdx.z * g.per_part;
  const int64_t image = first / in_image;
  const uint32_t start = uint32_t(first - image * in_image);
  const int count = int(min_of(g.per_part, g.images * in_image - first));
  const int channel = blockIdx.x, t = blockIdx.y;

  A acc[kTaps][kTaps] = {};
  for (int at = threadIdx.x; at < count; at += kStripThreads) {
    const Strip strip(arguments.strips, image, start, at);
    const int at_z = strip.plane * g.stride[0] + t * g.dilation[0] - g.padding[0];
    if (unsigned(at_z) >= unsigned(g.input_extent[0])) continue;
    const T* grad_output = static_cast<const T*>(g.grad_output) + strip.image * g.output_strides.image +
                           channel * g.output_strides.channel +
                           (int64_t(strip.plane) * g.output[1] + strip.row) * g.output[2] + strip.column;
    const int dilation = kDilated ? arguments.strips.dilation : 1;
    A grads[kStripRows];
#pragma unroll
    for (int j = 0; j < kStripRows; ++j, grad_output += int64_t(dilation) * g.output[2]) {
      grads[j] = to_float(load_if<T, 1>(strip.row + j * dilation < g.output[1], grad_output, {}).at[0]);
    }
    const T* plane = static_cast<const T*>(g.input) + strip.image * g.input_strides.image +
                     channel * g.input_strides.channel +
                     int64_t(at_z) * g.input_extent[1] * g.input_extent[2];
    each_strip_value<kTaps, kStep, kDilated>(plane, strip.row * kStep - g.padding[1], g.input_extent[1],
                                             g.dilation[1], strip.column * kStep - g.padding[2],
                                             g.input_extent[2], g.dilation[2], [&](A value, int y, int x) {
#pragma unroll
                                               for (int j = 0; j < kStripRows; ++j) {
                                                 const int tap = y - j * kStep;
                                                 if (tap >= 0 && tap < kTaps) acc[tap][x] += grads[j] * value;
                                               }
                                             });
  }

  constexpr int kAll = kTaps * kTaps, kWarps = kStripThreads / 32;
  A* sums = shared_memory<A>();  // [kWarps][kAll]
#pragma unroll
  for (int tap = 0; tap < kAll; ++tap) {
    A sum = acc[tap / kTaps][tap % kTaps];
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) sum += ptx::shuffle_xor(sum, mask);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32 * kAll + tap] = sum;
  }
  __syncthreads();
  A* partial = static_cast<A*>(g.partial) + blockIdx.z * g.weights() + int64_t(channel) * g.taps + t * kAll;
  for (int tap = threadIdx.x; tap < kAll; tap += kStripThreads) {
    A sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) sum += sums[warp * kAll + tap];
    partial[tap] = sum;
  }
}

}  // namespace cnnext::cuda
