// Convolution on any GPU, for every type, layout and geometry, with multiply-adds in Acc<T>: the gather of
// conv_gather.cuh, and the gradient for the weight.
//
// A block of 256 threads computes a tile of kM x kN: kM pixels of a phase by kN destination channels of a
// group, or for grad_weight kM output channels by kN input channels of one tap. Both operands pass through
// shared memory, kDepth of the summed index at a time; the sum of an element runs in one thread, in order.
#pragma once

#include "conv_gather.cuh"
#include "reduce.cuh"

namespace cnnext::cuda {

constexpr int kDirectThreads = 256, kDirectSide = 16, kDirectDepth = 16, kDirectPad = 4;

// The element, or zero.
template <class T>
CNNEXT_DEVICE Acc<T> value_if(bool condition, const T* from) {
  return to_float(load_if<T, 1>(condition, from, {}).at[0]);
}

// acc[i][j] += sum over k of a[k][row + i] * b[k][column + j], for a thread's part of the tile.
template <class T, int kM, int kN>
struct DirectTile {
  static constexpr int kRows = kM / kDirectSide, kColumns = kN / kDirectSide;
  static constexpr int kWidthA = kM + kDirectPad, kWidthB = kN + kDirectPad;
  static constexpr int kPlaces = kM > 2 * kDirectDepth ? kM : 2 * kDirectDepth;
  static constexpr int kBytes = (kWidthA + kWidthB) * kDirectDepth * int(sizeof(Acc<T>)) + kPlaces * 8;
  using A = Acc<T>;

  A* a;             // [kDirectDepth][kWidthA]
  A* b;             // [kDirectDepth][kWidthB]
  int64_t* places;  // where pixels are in memory, in elements, or -1
  int row, column;
  A acc[kRows][kColumns];

  CNNEXT_DEVICE DirectTile()
      : a(shared_memory<A>()),
        b(a + kWidthA * kDirectDepth),
        places(reinterpret_cast<int64_t*>(b + kWidthB * kDirectDepth)),
        row(threadIdx.x / kDirectSide * kRows),
        column(threadIdx.x % kDirectSide * kColumns) {
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kColumns; ++j) acc[i][j] = 0;
    }
  }

  CNNEXT_DEVICE void multiply() {
    for (int k = 0; k < kDirectDepth; ++k) {
      A x[kRows], y[kColumns];
#pragma unroll
      for (int i = 0; i < kRows; ++i) x[i] = a[k * kWidthA + row + i];
#pragma unroll
      for (int j = 0; j < kColumns; ++j) y[j] = b[k * kWidthB + column + j];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) acc[i][j] += x[i] * y[j];
      }
    }
  }

  // Fills [kDirectDepth][kExtent] with value(k, i). Neighbouring threads take neighbours along k or along i:
  // whichever are neighbours in memory. Several are read before any is written.
  template <int kExtent, class Value>
  CNNEXT_DEVICE static void fill(A* to, int width, bool k_is_contiguous, const Value& value) {
    constexpr int kEach = kDirectDepth * kExtent / kDirectThreads, kAtOnce = kEach < 4 ? kEach : 4;
#pragma unroll
    for (int first = 0; first < kEach; first += kAtOnce) {
      A values[kAtOnce];
      const auto each = [&](auto&& body) {
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          const int i = (first + j) * kDirectThreads + threadIdx.x;
          const int k = k_is_contiguous ? i % kDirectDepth : i / kExtent;
          body(values[j], k, k_is_contiguous ? i / kDirectDepth : i % kExtent);
        }
      };
      each([&](A& number, int k, int at) { number = value(k, at); });
      each([&](A number, int k, int at) { to[k * width + at] = number; });
    }
  }
};

// Grid: tiles of rows; tiles of channels in all groups; phases.
template <class T, int kM, int kN>
CNNEXT_LAUNCH(kDirectThreads, 2)
conv_gather_direct(ConvGather g) {
  using A = Acc<T>;
  const PhaseAxes& phase = g.phase[blockIdx.z];
  const int64_t first = int64_t(blockIdx.x) * kM, rows = g.rows(blockIdx.z);
  if (first >= rows) return;
  const int tiles = int(ceil_div(g.destination_channels, kN));
  const int group = blockIdx.y / tiles, first_channel = blockIdx.y % tiles * kN;
  const Rows row_at(phase, first);
  const Phase &d = phase.axis[0], &h = phase.axis[1], &w = phase.axis[2];
  const T* source = static_cast<const T*>(g.source) + group * g.source_group;
  const T* weight =
      static_cast<const T*>(g.weight) + group * g.weight_group + first_channel * g.weight_destination;

  DirectTile<T, kM, kN> tile;
  for (int z = 0; z < d.taps; ++z) {
    for (int y = 0; y < h.taps; ++y) {
      for (int x = 0; x < w.taps; ++x) {
        const int64_t tap = phase.tap(g.kernel, z, y, x) * g.weight_tap;
        for (int i = threadIdx.x; i < kM; i += kDirectThreads) {
          const Row row = row_at[i];
          const int64_t pixel = first + i < rows ? row.source_pixel(phase, z, y, x) : -1;
          tile.places[i] =
              pixel < 0 ? -1 : row.image * g.source_strides.image + pixel * g.source_strides.pixel;
        }
        __syncthreads();
        for (int channel = 0; channel < g.source_channels; channel += kDirectDepth) {
          tile.template fill<kM>(tile.a, tile.kWidthA, g.source_strides.channel == 1, [&](int k, int i) -> A {
            const int64_t place = tile.places[i];
            return value_if(place >= 0 && channel + k < g.source_channels,
                            source + place + (channel + k) * g.source_strides.channel);
          });
          tile.template fill<kN>(
              tile.b, tile.kWidthB, g.weight_source < g.weight_destination, [&](int k, int i) -> A {
                return value_if(first_channel + i < g.destination_channels && channel + k < g.source_channels,
                                weight + i * g.weight_destination + (channel + k) * g.weight_source + tap);
              });
          __syncthreads();
          tile.multiply();
          __syncthreads();
        }
      }
    }
  }

  T* destination = static_cast<T*>(g.destination);
  for (int i = 0; i < tile.kRows; ++i) {
    if (first + tile.row + i >= rows) break;
    const Row row = row_at[tile.row + i];
    const int64_t pixel = row.destination_pixel(phase, g.destination_extent);
    T* to = destination + row.image * g.destination_strides.image + pixel * g.destination_strides.pixel;
    for (int j = 0; j < tile.kColumns; ++j) {
      if (first_channel + tile.column + j >= g.destination_channels) break;
      const int64_t channel = int64_t(group) * g.destination_channels + first_channel + tile.column + j;
      const A bias = g.bias ? to_float(static_cast<const T*>(g.bias)[channel]) : A(0);
      convert(tile.acc[i][j] + bias, to + channel * g.destination_strides.channel);
    }
  }
}

// Grid: taps times tiles of input channels; tiles of output channels in all groups; parts of the sum. Writes
// partial sums, [part][K][tap][C / groups].
template <class T, int kM, int kN>
CNNEXT_LAUNCH(kDirectThreads, 2)
conv_grad_weight_direct(ConvGradWeight g) {
  using A = Acc<T>;
  const int tiles_n = int(ceil_div(g.C, kN)), tiles_m = int(ceil_div(g.K, kM));
  const int tap = blockIdx.x / tiles_n, first_c = blockIdx.x % tiles_n * kN;
  const int group = blockIdx.y / tiles_m, first_k = blockIdx.y % tiles_m * kM;
  const int part = blockIdx.z;
  const T* grad_output =
      static_cast<const T*>(g.grad_output) + group * g.output_group + first_k * g.output_strides.channel;
  const T* input = static_cast<const T*>(g.input) + group * g.input_group + first_c * g.input_strides.channel;
  const GradWeightPixels pixels(g, part, tap);

  DirectTile<T, kM, kN> tile;
  int64_t *out = tile.places, *in = tile.places + kDirectDepth;
  const bool last = g.input_strides.channel == 1;
  for (int at = 0; at < pixels.count; at += kDirectDepth) {
    for (int k = threadIdx.x; k < kDirectDepth; k += kDirectThreads) {
      const OutputPixel o = pixels[at + k];
      const int64_t pixel = at + k < pixels.count ? pixels.input_pixel(o) : -1;
      out[k] = o.image * g.output_strides.image + int64_t(o.pixel) * g.output_strides.pixel;
      in[k] = pixel < 0 ? -1 : o.image * g.input_strides.image + pixel * g.input_strides.pixel;
    }
    __syncthreads();
    tile.template fill<kM>(tile.a, tile.kWidthA, !last, [&](int k, int i) -> A {
      return value_if(at + k < pixels.count && first_k + i < g.K,
                      grad_output + out[k] + i * g.output_strides.channel);
    });
    tile.template fill<kN>(tile.b, tile.kWidthB, !last, [&](int k, int i) -> A {
      return value_if(in[k] >= 0 && first_c + i < g.C, input + in[k] + i * g.input_strides.channel);
    });
    __syncthreads();
    tile.multiply();
    __syncthreads();
  }

  A* partial = static_cast<A*>(g.partial) + part * g.weights();
  for (int i = 0; i < tile.kRows; ++i) {
    const int k = first_k + tile.row + i;
    if (k >= g.K) break;
    for (int j = 0; j < tile.kColumns; ++j) {
      const int c = first_c + tile.column + j;
      if (c >= g.C) break;
      partial[((int64_t(group) * g.K + k) * g.taps + tap) * g.C + c] = tile.acc[i][j];
    }
  }
}

}  // namespace cnnext::cuda
