// Convolution as a matrix product on tensor cores (tile_sm80.cuh, tile_sm90.cuh), by the gather of
// conv_gather.cuh, in channels last. The summed index runs over the taps of the phase, and for each over the
// source's channels; rows are the pixels of the phase in all images, columns the destination's channels.
// Padding is copied as zeros. A block computes a tile of kM x kN; blocks that share rows are neighbours.
//
// Forward: source input, weight [K, taps, C] lies along the summed index. Gradient for the input: source
// grad_output, the weight lies across it (kAcrossB).
//
// Every chunk of 16 bytes of both operands is aligned, and wholly in memory or not at all (pack.cuh).
#pragma once

#include "conv_gather.cuh"
#include "conv_grad_weight.cuh"
#include "tile_sm80.cuh"
#include "tile_sm90.cuh"

namespace cnnext::cuda {

struct GemmGather {
  ConvGather g;
  bool destination_aligned;  // every chunk of 16 bytes
};

// The chunks of the source that a thread copies in every step: the same one of kRowsOfThread rows. A row
// knows where its first tap reads; those of other taps are equally far from there in every row.
template <class T, class Stage>
struct SourceRows {
  static constexpr int kCount = Stage::kRowsOfThread;

  const T* first_tap[kCount];  // may be outside of the source
  int index[kCount][kAxes];    // of the source's pixel that it reads
  bool inside[kCount];         // whether there is what the current tap reads

  CNNEXT_DEVICE SourceRows(const ConvGather& g, const PhaseAxes& phase, const T* source, int64_t first,
                           int64_t rows) {
    const Rows row_at(phase, first);
    const Phase &d = phase.axis[0], &h = phase.axis[1], &w = phase.axis[2];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int beyond = threadIdx.x / Stage::kChunksInRow + i * Stage::kRowsAtOnce;
      const Row row = row_at[beyond];
#pragma unroll
      for (int a = 0; a < kAxes; ++a) index[i][a] = phase.axis[a].source_index(row.j[a], 0);
      first_tap[i] = source + row.image * g.source_strides.image +
                     ((int64_t(index[i][0]) * h.source + index[i][1]) * w.source + index[i][2]) *
                         g.source_strides.pixel +
                     threadIdx.x % Stage::kChunksInRow * kChunk<T>;
      if (first + beyond >= rows) index[i][0] = -d.source - d.taps * max_of(d.offset_step, -d.offset_step);
    }
  }
  // Goes to taps (z, y, x). Returns what is between the first tap and it, in elements.
  CNNEXT_DEVICE int64_t go_to(const ConvGather& g, const PhaseAxes& phase, int z, int y, int x) {
    const Phase &d = phase.axis[0], &h = phase.axis[1], &w = phase.axis[2];
    z *= d.offset_step, y *= h.offset_step, x *= w.offset_step;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      inside[i] = unsigned(index[i][0] + z) < unsigned(d.source) &&
                  unsigned(index[i][1] + y) < unsigned(h.source) &&
                  unsigned(index[i][2] + x) < unsigned(w.source);
    }
    return ((int64_t(z) * h.source + y) * w.source + x) * g.source_strides.pixel;
  }
};

template <class T, class Product, bool kAcrossB>
CNNEXT_LAUNCH(Product::kThreads, Product::kBlocks)
conv_gather_gemm(GemmGather arguments) {
  if (!Product::kCompiled) return;
  constexpr int kM = Product::kM, kN = Product::kN;
  using StageA = typename Product::StageA;
  using StageB = typename Product::StageB;
  const ConvGather& g = arguments.g;
  const PhaseAxes& phase = g.phase[blockIdx.z];
  const int tiles = int(ceil_div(g.destination_channels, kN)), group = blockIdx.y;
  const int64_t first = int64_t(blockIdx.x / tiles) * kM, rows = g.rows(blockIdx.z);
  if (first >= rows) return;
  const int first_channel = blockIdx.x % tiles * kN;

  SourceRows<T, StageA> source(g, phase, static_cast<const T*>(g.source) + group * g.source_group, first,
                               rows);
  const int chunk_a = threadIdx.x % StageA::kChunksInRow, row_a = threadIdx.x / StageA::kChunksInRow;
  const int chunk_b = threadIdx.x % StageB::kChunksInRow, row_b = threadIdx.x / StageB::kChunksInRow;
  const int columns = g.destination_channels - first_channel;
  const int place_a = StageA::place(row_a, chunk_a), place_b = StageB::place(row_b, chunk_b);
  // Rows of the weight's stage are destination channels, or across the summed index source channels.
  const int64_t weight_row = kAcrossB ? g.weight_source : g.weight_destination;
  const T* weight = static_cast<const T*>(g.weight) + group * g.weight_group +
                    first_channel * g.weight_destination + row_b * weight_row + chunk_b * kChunk<T>;

  int tap[kAxes] = {0, 0, 0}, channel = 0;
  int64_t source_tap = 0;
  const T* tap_weight = weight;
  const auto load = [&](Product& product, int stage) {
    if (channel == 0) {
      source_tap = source.go_to(g, phase, tap[0], tap[1], tap[2]);
      tap_weight = weight + phase.tap(g.kernel, tap[0], tap[1], tap[2]) * g.weight_tap;
    }
    const bool is_channel = channel + chunk_a * kChunk<T> < g.source_channels;
#pragma unroll
    for (int i = 0; i < StageA::kRowsOfThread; ++i) {
      ptx::copy_async(product.stage_a(stage) + place_a + i * StageA::kNextRow,
                      source.first_tap[i] + (source_tap + channel),
                      source.inside[i] && is_channel ? kChunkBytes : 0);
    }
    const T* from = tap_weight + channel * g.weight_source;
#pragma unroll
    for (int i = 0; i < StageB::kRowsOfThread; ++i) {
      const int row = row_b + i * StageB::kRowsAtOnce;
      const bool inside = kAcrossB ? channel + row < g.source_channels && chunk_b * kChunk<T> < columns
                                   : row < columns && channel + chunk_b * kChunk<T> < g.source_channels;
      ptx::copy_async(product.stage_b(stage) + place_b + i * StageB::kNextRow,
                      from + i * StageB::kRowsAtOnce * weight_row, inside ? kChunkBytes : 0);
    }
    channel += Product::kSummed;
    if (channel < g.source_channels) return;
    channel = 0;
    if (++tap[2] < phase.axis[2].taps) return;
    tap[2] = 0;
    if (++tap[1] < phase.axis[1].taps) return;
    tap[1] = 0;
    ++tap[0];
  };

  Product product;
  const int taps = phase.axis[0].taps * phase.axis[1].taps * phase.axis[2].taps;
  product.accumulate(taps * int(ceil_div(g.source_channels, Product::kSummed)),
                     [&](int, int stage) { load(product, stage); });

  // Through shared memory, to write whole chunks: [kM][kN], the chunks of a row permuted.
  T* result = product.memory;
  constexpr int kChunks = kN / kChunk<T>;
  const auto place = [](int row, int chunk) {
    return (row * kChunks + (chunk ^ (row & 7) * (sizeof(T) == 4 ? 2 : 1) % kChunks)) * kChunk<T>;
  };
  if (g.bias) {
    const T* bias = static_cast<const T*>(g.bias) + int64_t(group) * g.destination_channels + first_channel;
    product.add_to_rows(
        [&](int column) { return to_float(load_if<T, 1>(column < columns, bias + column, {}).at[0]); });
  }
  product.each_pair([&](int row, int column, float x, float y) {
    Pack<T, 2> pair;
    convert(x, &pair.at[0]);
    convert(y, &pair.at[1]);
    store_shared(result + place(row, column / kChunk<T>) + column % kChunk<T>, pair);
  });
  __syncthreads();
  const Rows row_at(phase, first);
  T* destination = static_cast<T*>(g.destination) +
                   int64_t(group) * g.destination_channels * g.destination_strides.channel;
  const bool last = g.destination_strides.channel == 1;
  for (int i = threadIdx.x; i < kM * kChunks; i += Product::kThreads) {
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
}

// Where the two operands of grad_weight have a summed pixel, in elements; kNowhere, aligned as the others
// are, where there is none.
constexpr int64_t kNowhere = -16;
struct alignas(16) PixelPlaces {
  int64_t output, input;
};
// As many steps' places are kept: those that may be read or written between two barriers, a power of two.
constexpr int kPlaceSteps = 4;
template <class Product>
constexpr int kPlacesBytes = kPlaceSteps * Product::kSummed * int(sizeof(PixelPlaces));

// grad_weight: both operands lie across the summed index, the pixels of a part. Grid: taps times tiles of
// input channels; tiles of output channels in all groups; parts. The places of a step's pixels are found
// once, one step ahead, each by one thread.
template <class T, class Product>
CNNEXT_LAUNCH(Product::kThreads, Product::kBlocks)
conv_grad_weight_gemm(ConvGradWeight g) {
  if (!Product::kCompiled) return;
  static_assert(Product::kM == Product::kN && Product::kSummed <= Product::kThreads);
  constexpr int kSide = Product::kM;
  using Stage = typename Product::StageA;
  const int tiles_n = int(ceil_div(g.C, kSide)), tiles_m = int(ceil_div(g.K, kSide));
  const int tap = blockIdx.x / tiles_n, first_c = blockIdx.x % tiles_n * kSide;
  const int group = blockIdx.y / tiles_m, first_k = blockIdx.y % tiles_m * kSide;
  const GradWeightPixels pixels(g, blockIdx.z, tap);
  const int chunk = threadIdx.x % Stage::kChunksInRow, first_row = threadIdx.x / Stage::kChunksInRow;
  const int k = first_k + chunk * kChunk<T>, c = first_c + chunk * kChunk<T>;
  const int place = Stage::place(first_row, chunk);
  const T* grad_output = static_cast<const T*>(g.grad_output) + group * g.output_group + k;
  const T* input = static_cast<const T*>(g.input) + group * g.input_group + c;

  Product product;
  PixelPlaces* places = reinterpret_cast<PixelPlaces*>(product.memory + Product::kBytes / int(sizeof(T)));
  const auto places_of = [&](int step) { return places + step % kPlaceSteps * Product::kSummed; };
  const auto find_places = [&](int step) {
    if (threadIdx.x >= Product::kSummed) return;
    const int at = step * Product::kSummed + threadIdx.x;
    const OutputPixel o = pixels[at];
    const int64_t pixel = pixels.input_pixel(o);
    PixelPlaces found = {kNowhere, kNowhere};
    if (at < pixels.count) {
      found.output = o.image * g.output_strides.image + o.pixel * g.output_strides.pixel;
      if (pixel >= 0) found.input = o.image * g.input_strides.image + pixel * g.input_strides.pixel;
    }
    places_of(step)[threadIdx.x] = found;
  };
  for (int step = 0; step < Product::kAhead; ++step) find_places(step);
  __syncthreads();
  product.accumulate(int(ceil_div(pixels.count, Product::kSummed)), [&](int step, int stage) {
#pragma unroll
    for (int i = 0; i < Stage::kRowsOfThread; ++i) {
      const PixelPlaces from = places_of(step)[first_row + i * Stage::kRowsAtOnce];
      ptx::copy_async(product.stage_a(stage) + place + i * Stage::kNextRow, grad_output + from.output,
                      from.output != kNowhere && k < g.K ? kChunkBytes : 0);
      ptx::copy_async(product.stage_b(stage) + place + i * Stage::kNextRow, input + from.input,
                      from.input != kNowhere && c < g.C ? kChunkBytes : 0);
    }
    if (step + 1 >= Product::kAhead) find_places(step + 1);
  });

  float* partial = static_cast<float*>(g.partial) + blockIdx.z * g.weights();
  product.each_pair([&](int row, int column, float x, float y) {
    const int k = first_k + row, c = first_c + column;
    if (k >= g.K || c >= g.C) return;
    float* to = partial + ((int64_t(group) * g.K + k) * g.taps + tap) * g.C + c;
    to[0] = x;
    if (c + 1 < g.C) to[1] = y;
  });
}

}  // namespace cnnext::cuda
