// Convolution as a matrix product on tensor cores (tile_...cuh), by the gather of conv_gather.cuh, from
// operands in channels last whose chunks of 16 bytes are aligned and whole (pack.cuh). Padding is copied as
// zeros. Rows are the pixels of the phase in all images, columns the destination's channels. A block computes
// a tile of kM x kN; blocks that share rows are neighbours.
//
// Forward: source input. The summed index runs over the taps, and for each over the source's channels, as the
// weight [K, taps, C] lies in memory; a step may take in several taps of few channels each.
// Gradient for the input: source grad_output, each tap begins a step (kTapBeginsStep), and the weight lies
// across the summed index where the tile can read it so.
#pragma once

#include "conv_gather.cuh"
#include "conv_grad_weight.cuh"
#include "tile_sm80.cuh"
#include "tile_tf32_sm90.cuh"

namespace cnnext::cuda {

struct GemmGather {
  ConvGather g;              // source_group: its channels, padded
  bool destination_aligned;  // every chunk
  // Whether row i reads the i-th pixel of the source alone, and writes the i-th of a destination in channels
  // last.
  bool reads_in_order, writes_in_order;
};

template <class T, class Product, bool kTapBeginsStep>
CNNEXT_LAUNCH(Product::kThreads, Product::kBlocks)
conv_gather_gemm(GemmGather arguments) {
  if (!Product::kCompiled) return;
  constexpr bool kAcrossB = Product::kAcrossB;
  constexpr int kM = Product::kM, kN = Product::kN;
  using StageA = typename Product::StageA;
  using StageB = typename Product::StageB;
  const ConvGather& g = arguments.g;
  const PhaseAxes& phase = g.phase[blockIdx.z];
  const int tiles = int(ceil_div(g.destination_channels, kN)), group = blockIdx.y;
  const int64_t first = int64_t(blockIdx.x / tiles) * kM, rows = g.rows(blockIdx.z);
  if (first >= rows) return;
  const int first_channel = blockIdx.x % tiles * kN;
  const Rows row_at(phase, first);
  const int channels = int(g.source_group);
  const T* source = static_cast<const T*>(g.source) + int64_t(group) * channels;
  const T* weight =
      static_cast<const T*>(g.weight) + group * g.weight_group + first_channel * g.weight_destination;

  // Each thread copies the same chunk of the same rows in every step.
  const int chunk_a = threadIdx.x % StageA::kChunksInRow, row_a = threadIdx.x / StageA::kChunksInRow;
  const int chunk_b = threadIdx.x % StageB::kChunksInRow, row_b = threadIdx.x / StageB::kChunksInRow;
  const int place_a = StageA::place(row_a, chunk_a), place_b = StageB::place(row_b, chunk_b);
  SourceRow row[StageA::kRowsOfThread];
  uint32_t exists = 0, inside = 0;  // bit i: row i does; the tap reads a pixel for it, and no padding
  int64_t tap_distance = 0;         // what the tap adds to a row's
#pragma unroll
  for (int i = 0; i < StageA::kRowsOfThread; ++i) {
    const int at = row_a + i * StageA::kRowsAtOnce;
    if (arguments.reads_in_order) {
      row[i] = SourceRow((first + at) * g.source_strides.pixel);
    } else {
      row[i] = SourceRow(phase, row_at[at], g.source_strides);
    }
    exists |= uint32_t(first + at < rows) << i;
  }

  const int taps[kAxes] = {phase.axis[0].taps, phase.axis[1].taps, phase.axis[2].taps};
  const int all_taps = taps[0] * taps[1] * taps[2];
  const int steps = kTapBeginsStep ? all_taps * int(ceil_div(channels, Product::kSummed))
                                   : int(ceil_div(int64_t(all_taps) * channels, Product::kSummed));
  int tap[kAxes] = {0, 0, 0};
  const auto next_tap = [&] {
    if (++tap[2] < taps[2]) return;
    tap[2] = 0;
    if (++tap[1] < taps[1]) return;
    tap[1] = 0;
    ++tap[0];
  };
  // The first channel of the step, or of this thread's chunk in it.
  int channel = kTapBeginsStep ? 0 : chunk_a * kChunk<T>;
  bool tap_is_new = true;
  // The weight's rows in a stage, and this thread's chunk of the first step, or of the tap's.
  const int64_t weight_row = kAcrossB ? g.weight_source : g.weight_destination;
  const T* first_weight = weight + row_b * weight_row + chunk_b * kChunk<T>;
  const T* own_weight = first_weight;
  const auto load = [&](Product& product, int step, int stage) {
    if constexpr (!kTapBeginsStep) {
      while (channel >= channels) {
        channel -= channels;
        next_tap();
        tap_is_new = true;
      }
    }
    if (tap_is_new) {
      tap_is_new = false;
      if constexpr (kTapBeginsStep) {
        own_weight = first_weight + phase.tap(g.kernel, tap[0], tap[1], tap[2]) * g.weight_tap;
      }
      int added[kAxes];
      int64_t pixels = 0;
#pragma unroll
      for (int a = 0; a < kAxes; ++a) {
        added[a] = tap[a] * phase.axis[a].offset_step;
        pixels = pixels * phase.axis[a].source + added[a];
      }
      tap_distance = pixels * g.source_strides.pixel;
      inside = 0;
#pragma unroll
      for (int i = 0; i < StageA::kRowsOfThread; ++i) {
        inside |= uint32_t(row[i].reaches(phase, added)) << i;
      }
      inside = tap[0] < taps[0] ? inside & exists : 0;
    }
    const int at = channel + (kTapBeginsStep ? chunk_a * kChunk<T> : 0);
    const T* from = source + (tap_distance + at);
#pragma unroll
    for (int i = 0; i < StageA::kRowsOfThread; ++i) {
      const bool copied = (inside >> i & 1) && at < channels;
      ptx::copy_async(product.stage_a(stage) + place_a + i * StageA::kNextRow, from + row[i].distance,
                      copied ? kChunkBytes : 0);
    }
    const int depth =
        kTapBeginsStep ? channel : step * Product::kSummed;  // of the weight, where the step begins
    from = own_weight + depth * (kAcrossB ? weight_row : 1);
#pragma unroll
    for (int i = 0; i < StageB::kRowsOfThread; ++i) {
      const int row = row_b + i * StageB::kRowsAtOnce, chunk = chunk_b * kChunk<T>;
      const int in = depth + (kAcrossB ? row : chunk), out = first_channel + (kAcrossB ? chunk : row);
      const bool copied =
          in < (kTapBeginsStep ? g.source_channels : all_taps * channels) && out < g.destination_channels;
      ptx::copy_async(product.stage_b(stage) + place_b + i * StageB::kNextRow,
                      from + i * (StageB::kRowsAtOnce * weight_row), copied ? kChunkBytes : 0);
    }
    channel += Product::kSummed;
    if (kTapBeginsStep && channel >= channels) {
      channel = 0;
      next_tap();
      tap_is_new = true;
    }
  };

  Product product;
  product.accumulate(steps, [&](int step, int stage) { load(product, step, stage); });

  // Through shared memory, to write whole chunks: [kM][kN], the chunks of a row permuted.
  T* result = product.memory;
  constexpr int kChunks = kN / kChunk<T>;
  const auto place = [](int row, int chunk) {
    return (row * kChunks + (chunk ^ (row & 7) * (sizeof(T) == 4 ? 2 : 1) % kChunks)) * kChunk<T>;
  };
  if (g.bias) {
    const T* bias = static_cast<const T*>(g.bias) + int64_t(group) * g.destination_channels + first_channel;
    product.add_to_rows([&](int column) {
      return to_float(
          load_if<T, 1>(first_channel + column < g.destination_channels, bias + column, {}).at[0]);
    });
  }
  product.each_pair([&](int row, int column, float x, float y) {
    Pack<T, 2> pair;
    convert(x, &pair.at[0]);
    convert(y, &pair.at[1]);
    store_shared(result + place(row, column / kChunk<T>) + column % kChunk<T>, pair);
  });
  __syncthreads();
  T* destination = static_cast<T*>(g.destination) +
                   int64_t(group) * g.destination_channels * g.destination_strides.channel;
  const int columns = g.destination_channels - first_channel;
  const auto start_of = [&](int at) {  // of a row's results
    if (arguments.writes_in_order) {
      return destination + (first + at) * g.destination_strides.pixel + first_channel;
    }
    const Row row = row_at[at];
    return destination + row.image * g.destination_strides.image +
           row.destination_pixel(phase, g.destination_extent) * g.destination_strides.pixel +
           first_channel * g.destination_strides.channel;
  };
  if (g.destination_strides.channel == 1) {
    for (int i = threadIdx.x; i < kM * kChunks; i += Product::kThreads) {
      const int at = i / kChunks, chunk = i % kChunks, channel = chunk * kChunk<T>;
      if (first + at >= rows || channel >= columns) continue;
      T* to = start_of(at) + channel;
      const T* from = result + place(at, chunk);
      if (arguments.destination_aligned) {
        store_pack(to, load_pack<T, kChunk<T>>(from));
      } else {
        for (int e = 0; e < kChunk<T> && channel + e < columns; ++e) to[e] = from[e];
      }
    }
  } else {  // a thread writes some channels of one pixel, neighbouring threads neighbouring pixels
    const int at = threadIdx.x % kM;
    if (first + at >= rows) return;
    T* to = start_of(at);
    for (int chunk = threadIdx.x / kM; chunk < kChunks; chunk += Product::kThreads / kM) {
      const Pack<T, kChunk<T>> values = load_pack<T, kChunk<T>>(result + place(at, chunk));
#pragma unroll
      for (int e = 0; e < kChunk<T>; ++e) {
        const int channel = chunk * kChunk<T> + e;
        if (channel < columns) to[channel * g.destination_strides.channel] = values.at[e];
      }
    }
  }
}

struct GemmGradWeight {
  ConvGradWeight g;  // output_group, input_group: their channels, padded
  Divisor by_input_group;
};

// Where a summed pixel is: the output's, and what the first tap of the kernel reads of the input, which may
// lie in the padding. Distances are in elements.
struct alignas(16) SummedPixel {
  int64_t output, input;  // kNowhere, if there is no such pixel
  int at[kAxes], unused;
};
constexpr int64_t kNowhere = INT64_MIN;
// As many steps' pixels are kept: those that may be read or written between two barriers, a power of two.
constexpr int kPixelSteps = 4;
template <class Product>
constexpr int kPixelBytes = kPixelSteps * Product::kSummed * int(sizeof(SummedPixel));

// grad_weight: both operands lie across the summed index, the pixels of a part. Rows are the output channels
// of a group, columns the padded input channels of one tap after the other. Grid: tiles of columns; tiles of
// rows in all groups; parts. The pixels of a step are found once, one step ahead, each by one thread.
template <class T, class Product>
CNNEXT_LAUNCH(Product::kThreads, Product::kBlocks)
conv_grad_weight_gemm(GemmGradWeight arguments) {
  if (!Product::kCompiled) return;
  static_assert(Product::kM == Product::kN && Product::kSummed <= Product::kThreads);
  constexpr int kSide = Product::kM;
  using Stage = typename Product::StageA;
  const ConvGradWeight& g = arguments.g;
  const int tiles_m = int(ceil_div(g.K, kSide)), first_column = blockIdx.x * kSide;
  const int group = blockIdx.y / tiles_m, first_k = blockIdx.y % tiles_m * kSide;

  // Each thread copies the same chunk of both operands in every step: of output channels, and of a tap's
  // input channels.
  const int chunk = threadIdx.x % Stage::kChunksInRow, first_row = threadIdx.x / Stage::kChunksInRow;
  const int place = Stage::place(first_row, chunk);
  const int k = first_k + chunk * kChunk<T>;
  uint32_t tap = first_column + chunk * kChunk<T>;
  const int c = split(tap, arguments.by_input_group);
  const bool has_k = k < g.K, has_c = tap < uint32_t(g.taps);
  int added[kAxes];  // by the tap to what the first one reads
  int64_t pixels_added = 0;
  for (int a = kAxes - 1; a >= 0; --a) {
    added[a] = int(tap % g.kernel[a]) * g.dilation[a];
    tap /= g.kernel[a];
  }
  for (int a = 0; a < kAxes; ++a) pixels_added = pixels_added * g.input_extent[a] + added[a];
  const T* grad_output = static_cast<const T*>(g.grad_output) + group * g.output_group + k;
  const T* input =
      static_cast<const T*>(g.input) + group * g.input_group + c + pixels_added * g.input_strides.pixel;

  Product product;
  const GradWeightPixels pixels(g, blockIdx.z, 0);
  SummedPixel* found = reinterpret_cast<SummedPixel*>(product.memory + Product::kBytes / int(sizeof(T)));
  const auto pixels_of = [&](int step) { return found + step % kPixelSteps * Product::kSummed; };
  const auto find_pixels = [&](int step) {
    if (threadIdx.x >= Product::kSummed) return;
    const int number = step * Product::kSummed + threadIdx.x;
    SummedPixel pixel = {kNowhere, kNowhere, {}, 0};
    if (number < pixels.count) {
      const OutputPixel o = pixels[number];
      const int64_t first = pixels.first_input(o, pixel.at);
      pixel.output = o.image * g.output_strides.image + o.pixel * g.output_strides.pixel;
      pixel.input = o.image * g.input_strides.image + first * g.input_strides.pixel;
    }
    pixels_of(step)[threadIdx.x] = pixel;
  };
  for (int step = 0; step < Product::kAhead; ++step) find_pixels(step);
  __syncthreads();
  product.accumulate(int(ceil_div(pixels.count, Product::kSummed)), [&](int step, int stage) {
#pragma unroll
    for (int i = 0; i < Stage::kRowsOfThread; ++i) {
      const SummedPixel pixel = pixels_of(step)[first_row + i * Stage::kRowsAtOnce];
      const bool exists = pixel.output != kNowhere;
      bool inside = exists && has_c;
#pragma unroll
      for (int a = 0; a < kAxes; ++a)
        inside &= unsigned(pixel.at[a] + added[a]) < unsigned(g.input_extent[a]);
      ptx::copy_async(product.stage_a(stage) + place + i * Stage::kNextRow, grad_output + pixel.output,
                      exists && has_k ? kChunkBytes : 0);
      ptx::copy_async(product.stage_b(stage) + place + i * Stage::kNextRow, input + pixel.input,
                      inside ? kChunkBytes : 0);
    }
    if (step + 1 >= Product::kAhead) find_pixels(step + 1);
  });

  float* partial = static_cast<float*>(g.partial) + blockIdx.z * g.weights();
  product.each_pair([&](int row, int column, float x, float y) {
    uint32_t tap = first_column + column;
    const int k = first_k + row, c = split(tap, arguments.by_input_group);
    if (k >= g.K || c >= g.C || tap >= uint32_t(g.taps)) return;
    float* to = partial + ((int64_t(group) * g.K + k) * g.taps + tap) * g.C + c;
    to[0] = x;
    if (c + 1 < g.C) to[1] = y;
  });
}

}  // namespace cnnext::cuda
