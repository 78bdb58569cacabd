// Convolution as a matrix product on tensor cores (tile_sm80.cuh), by the gather of conv_gather.cuh, in
// channels last. The summed index runs over the taps of the phase, and for each over the source's channels;
// rows are the pixels of the phase in all images, columns the destination's channels. Padding is copied as
// zeros. A block computes a tile of kM x kN; blocks that share rows are neighbours.
//
// Forward: source input, weight [K, taps, C] lies along the summed index. Gradient for the input: source
// grad_output, the weight lies across it (kAcrossB).
//
// With few channels the taps of the last axis are folded into them: in a row of an image the inputs of
// neighbouring taps are neighbours in memory, and so are the weights. What of that reaches over the row's
// ends is padding.
//
// kAligned: all chunks of both operands are aligned and wholly in memory or not at all. Then the loop has no
// branches on them, and its copies are spread over the multiplications.
#pragma once

#include "conv_gather.cuh"
#include "conv_grad_weight.cuh"
#include "tile_sm80.cuh"

namespace cnnext::cuda {

struct GemmGather {
  ConvGather g;
  bool source_aligned, weight_aligned, destination_aligned;  // every chunk of 16 bytes
  int folded_row;  // elements of a row of the source where the last axis is folded, else 0

  bool is_aligned() const { return source_aligned && weight_aligned && folded_row == 0; }
};

// The chunk's elements [begin, end) that lie in a row of `folded_row` elements which starts `position` before
// it.
CNNEXT_DEVICE void clip_to_row(int64_t position, int folded_row, int* begin, int* end) {
  if (position < 0) *begin = int(-position);
  *end = int(min_of(*end, folded_row - position));
}

template <class T, int kM, int kN, bool kAcrossB, bool kAccurate, bool kAligned>
CNNEXT_LAUNCH(kTileThreads, 2)
conv_gather_gemm_sm80(GemmGather arguments) {
#if CNNEXT_SM80
  using Product = Tile<T, kM, kN, false, kAcrossB, kAccurate>;
  using StageA = typename Product::StageA;
  using StageB = typename Product::StageB;
  const ConvGather& g = arguments.g;
  const PhaseAxes& phase = g.phase[blockIdx.z];
  const int tiles = int(ceil_div(g.destination_channels, kN)), group = blockIdx.y;
  const int64_t first = int64_t(blockIdx.x / tiles) * kM, rows = g.rows(blockIdx.z);
  if (first >= rows) return;
  const int first_channel = blockIdx.x % tiles * kN;
  const Rows row_at(phase, first);
  const T* source = static_cast<const T*>(g.source) + int64_t(group) * g.source_channels;
  const T* weight =
      static_cast<const T*>(g.weight) + group * g.weight_group + first_channel * g.weight_destination;

  // Each thread copies the same chunk of the same rows in every step.
  const int chunk_a = threadIdx.x % StageA::kChunksInRow, row_a = threadIdx.x / StageA::kChunksInRow;
  const int chunk_b = threadIdx.x % StageB::kChunksInRow, row_b = threadIdx.x / StageB::kChunksInRow;
  Row row[StageA::kRowsOfThread];
  const T* pixel[StageA::kRowsOfThread];  // that the tap reads
  bool inside[StageA::kRowsOfThread];
#pragma unroll
  for (int i = 0; i < StageA::kRowsOfThread; ++i) row[i] = row_at[row_a + i * StageA::kRowsAtOnce];

  const int taps[kAxes] = {phase.axis[0].taps, phase.axis[1].taps, phase.axis[2].taps};
  const int depths = int(ceil_div(g.source_channels, kDepth<T>));
  int tap[kAxes] = {0, 0, 0}, channel = 0;
  const T* tap_weight = weight;
  const auto load = [&](Product& product, int stage) {
    if (channel == 0) {
      tap_weight = weight + phase.tap(g.kernel, tap[0], tap[1], tap[2]) * g.weight_tap;
#pragma unroll
      for (int i = 0; i < StageA::kRowsOfThread; ++i) {
        const int64_t at = !kAligned && arguments.folded_row > 0
                               ? row[i].source_row(phase, tap[0], tap[1])
                               : row[i].source_pixel(phase, tap[0], tap[1], tap[2]);
        inside[i] = at >= 0 && first + row_a + i * StageA::kRowsAtOnce < rows;
        pixel[i] =
            source + (inside[i] ? row[i].image * g.source_strides.image + at * g.source_strides.pixel : 0);
      }
    }
#pragma unroll
    for (int i = 0; i < StageA::kRowsOfThread; ++i) {
      int64_t at = channel + chunk_a * kChunk<T>;
      int begin = 0, end = inside[i] ? g.source_channels - int(at) : 0;
      if (!kAligned && arguments.folded_row > 0) {
        at += phase.axis[2].source_index(row[i].j[2], 0) * g.source_strides.pixel;
        clip_to_row(at, arguments.folded_row, &begin, &end);
      }
      copy_chunk(product.stage_a(stage) + StageA::place(row_a + i * StageA::kRowsAtOnce, chunk_a),
                 end > 0 ? pixel[i] + at : source, begin, end, kAligned || arguments.source_aligned);
    }
#pragma unroll
    for (int i = 0; i < StageB::kRowsOfThread; ++i) {
      const int row = row_b + i * StageB::kRowsAtOnce;
      const int in = channel + (kAcrossB ? row : chunk_b * kChunk<T>);  // the summed channel
      const int out = kAcrossB ? chunk_b * kChunk<T> : row;
      const int ins = g.source_channels - in, outs = g.destination_channels - first_channel - out;
      const int end = ins > 0 && outs > 0 ? (kAcrossB ? outs : ins) : 0;
      const T* from = tap_weight + (kAcrossB ? in * g.weight_source + out : out * g.weight_destination + in);
      copy_chunk(product.stage_b(stage) + StageB::place(row, chunk_b), end > 0 ? from : tap_weight, 0, end,
                 kAligned || arguments.weight_aligned);
    }
    channel += kDepth<T>;
    if (channel < g.source_channels) return;
    channel = 0;
    if (++tap[2] < taps[2]) return;
    tap[2] = 0;
    if (++tap[1] < taps[1]) return;
    tap[1] = 0;
    ++tap[0];
  };

  Product product;
  product.accumulate(taps[0] * taps[1] * taps[2] * depths, [&](int, int stage) { load(product, stage); });

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
  const bool last = g.destination_strides.channel == 1;
  for (int i = threadIdx.x; i < kM * kChunks; i += kTileThreads) {
    // In channels first neighbouring threads take neighbouring pixels.
    const int at = last ? i / kChunks : i % kM, chunk = last ? i % kChunks : i / kM;
    const int channel = first_channel + chunk * kChunk<T>, channels = g.destination_channels - channel;
    if (first + at >= rows || channels <= 0) continue;
    const Row row = row_at[at];
    T* to = destination + row.image * g.destination_strides.image +
            row.destination_pixel(phase, g.destination_extent) * g.destination_strides.pixel +
            channel * g.destination_strides.channel;
    const T* from = result + place(at, chunk);
    if (arguments.destination_aligned && last) {
      store_pack(to, load_pack<T, kChunk<T>>(from));
    } else {
      for (int e = 0; e < kChunk<T> && e < channels; ++e) to[e * g.destination_strides.channel] = from[e];
    }
  }
#endif
}

struct GemmGradWeight {
  ConvGradWeight g;
  bool output_aligned, input_aligned;
  int folded_row;

  bool is_aligned() const { return output_aligned && input_aligned && folded_row == 0; }
};

// grad_weight: both operands lie across the summed index, the pixels of a part. Grid: taps times tiles of
// input channels; tiles of output channels in all groups; parts.
template <class T, int kSide, bool kAccurate, bool kAligned>
CNNEXT_LAUNCH(kTileThreads, 2)
conv_grad_weight_gemm_sm80(GemmGradWeight arguments) {
#if CNNEXT_SM80
  using Product = Tile<T, kSide, kSide, true, true, kAccurate>;
  using Stage = typename Product::StageA;
  const ConvGradWeight& g = arguments.g;
  const int tiles_n = int(ceil_div(g.C, kSide)), tiles_m = int(ceil_div(g.K, kSide));
  const int tap = blockIdx.x / tiles_n, first_c = blockIdx.x % tiles_n * kSide;
  const int group = blockIdx.y / tiles_m, first_k = blockIdx.y % tiles_m * kSide;
  const T* grad_output = static_cast<const T*>(g.grad_output) + int64_t(group) * g.K;
  const T* input = static_cast<const T*>(g.input) + int64_t(group) * g.C;
  const GradWeightPixels pixels(g, blockIdx.z, tap);
  const int chunk = threadIdx.x % Stage::kChunksInRow, first_row = threadIdx.x / Stage::kChunksInRow;

  Product product;
  product.accumulate(int(ceil_div(pixels.count, kDepth<T>)), [&](int step, int stage) {
#pragma unroll
    for (int i = 0; i < Stage::kRowsOfThread; ++i) {
      const int row = first_row + i * Stage::kRowsAtOnce, at = step * kDepth<T> + row;
      const OutputPixel o = pixels[at];
      const bool inside = at < pixels.count;
      const int k = first_k + chunk * kChunk<T>, k_end = inside ? g.K - k : 0;
      const T* from = grad_output + o.image * g.output_strides.image + o.pixel * g.output_strides.pixel + k;
      copy_chunk(product.stage_a(stage) + Stage::place(row, chunk), k_end > 0 ? from : grad_output, 0, k_end,
                 kAligned || arguments.output_aligned);
      int x, begin = 0;
      const int64_t image_row = pixels.input_row(o, &x);
      int64_t c = first_c + chunk * kChunk<T>;
      int end = inside && image_row >= 0 ? g.C - int(c) : 0;
      c += x * g.input_strides.pixel;
      if (!kAligned && arguments.folded_row > 0) {
        clip_to_row(c, arguments.folded_row, &begin, &end);
      } else if (unsigned(x) >= unsigned(g.input_extent[2])) {
        end = 0;
      }
      from = input + o.image * g.input_strides.image + image_row * g.input_strides.pixel + c;
      copy_chunk(product.stage_b(stage) + Stage::place(row, chunk), end > 0 ? from : input, begin, end,
                 kAligned || arguments.input_aligned);
    }
  });

  float* partial = static_cast<float*>(g.partial) + blockIdx.z * g.weights();
  product.each_pair([&](int row, int column, float x, float y) {
    const int k = first_k + row, c = first_c + column;
    if (k >= g.K || c >= g.C) return;
    float* to = partial + ((int64_t(group) * g.K + k) * g.taps + tap) * g.C + c;
    to[0] = x;
    if (c + 1 < g.C) to[1] = y;
  });
#endif
}

}  // namespace cnnext::cuda
