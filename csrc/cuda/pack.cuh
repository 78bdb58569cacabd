// What matrix products read, in whole chunks of 16 bytes: to[n][pixel][group][Cp] = from[n, group * C + c,
// pixel], from channels first or last. Cp is C rounded up to a chunk, with zeros beyond C. A weight is packed
// so too: its rows are images, its taps pixels.
//
// A thread makes one chunk of four pixels. kWide is 4 where planes let it read the four at once; it swaps
// rows and columns in registers. Of a warp's lanes the next chunks come first, then the next pixels, so that
// both sides move whole sectors of 32 bytes.
#pragma once

#include "ptx.cuh"

namespace cnnext::cuda {

constexpr int kPackThreads = 256, kPackWarps = kPackThreads / 32, kPackPixels = 4;

struct PackPlan {
  const void* from;
  void* to;
  Strides strides;  // of `from`
  int64_t images;
  int pixels, channels, chunks;  // channels of a group, chunks of a pixel
  int chunk_bits, warp_bits;  // 2^chunk_bits lanes lie along the chunks, 2^warp_bits warps along the pixels
  Divisor by_chunk_blocks, by_pixel_blocks, by_group;  // by_group: the chunks of a group
};

template <class Word, int kWide, bool kToTf32>
CNNEXT_LAUNCH(kPackThreads, 2)
pack(PackPlan plan) {
  constexpr int kChunk = kPerVector<Word>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint32_t rest = blockIdx.x;
  const int chunk_block = split(rest, plan.by_chunk_blocks), pixel_block = split(rest, plan.by_pixel_blocks);
  const int64_t image = int64_t(rest) * (kPackWarps >> plan.warp_bits) + (warp >> plan.warp_bits);
  const int chunk = (chunk_block << plan.chunk_bits) + (lane & ((1 << plan.chunk_bits) - 1));
  if (image >= plan.images || chunk >= plan.chunks) return;
  const int lanes = 32 >> plan.chunk_bits, step = kWide > 1 ? 1 : lanes;  // of the thread's pixels
  const int warps_before = (pixel_block << plan.warp_bits) + (warp & ((1 << plan.warp_bits) - 1));
  const int first =
      warps_before * lanes * kPackPixels + (lane >> plan.chunk_bits) * (kWide > 1 ? kPackPixels : 1);

  uint32_t group = chunk;
  const int channel = split(group, plan.by_group) * kChunk;
  const Word* from = static_cast<const Word*>(plan.from) + image * plan.strides.image +
                     (int64_t(group) * plan.channels + channel) * plan.strides.channel;
  using Read = std::conditional_t<kWide == 1, Word, uint32_t>;  // by words, or loads wait for each other
  constexpr int kInRead = sizeof(Read) / sizeof(Word), kReads = kWide / kInRead;
  Pack<Read, kReads> read[kChunk][kPackPixels / kWide];
#pragma unroll
  for (int c = 0; c < kChunk; ++c) {
#pragma unroll
    for (int j = 0; j < kPackPixels / kWide; ++j) {
      const int pixel = first + j * step;
      const Word* at = from + c * plan.strides.channel + pixel * plan.strides.pixel;
      read[c][j] = load_if<Read, kReads>(channel + c < plan.channels && pixel < plan.pixels,
                                         reinterpret_cast<const Read*>(at), {});
    }
  }
  Word* to = static_cast<Word*>(plan.to) + (image * plan.pixels * plan.chunks + chunk) * kChunk;
#pragma unroll
  for (int j = 0; j < kPackPixels; ++j) {
    const int pixel = first + j * step;
    if (pixel >= plan.pixels) break;
    Pack<Word, kChunk> made;
#pragma unroll
    for (int c = 0; c < kChunk; ++c) {
      const Read bits = read[c][j / kWide].at[j % kWide / kInRead];
      made.at[c] = Word(bits >> (j % kInRead * 8 * sizeof(Word)));
      if constexpr (kToTf32) made.at[c] = ptx::round_to_tf32(made.at[c]);
    }
    store_pack(to + int64_t(pixel) * plan.chunks * kChunk, made);
  }
}

// The bits of the smallest power of two that is not below n, at most `most`.
inline int bits_for(int64_t n, int most) {
  int bits = 0;
  while (bits < most && (int64_t{1} << bits) < n) ++bits;
  return bits;
}

// For any type of the elements' size. `channels` are those of a group. kToTf32: floats are rounded.
template <class T, bool kToTf32 = false>
void start_pack(const void* from, const Strides& strides, int64_t images, int64_t pixels, int64_t groups,
                int64_t channels, void* to, const Stream& stream) {
  using Word = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
  const int64_t chunks_of_group = ceil_div(channels, kPerVector<Word>), chunks = groups * chunks_of_group;
  const bool planes = strides.pixel == 1 && strides.channel == pixels;
  // With one chunk a pixel, single pixels make whole sectors of what is written.
  const bool wide = planes && chunks > 1 && pixels % kPackPixels == 0 &&
                    reinterpret_cast<uintptr_t>(from) % (kPackPixels * sizeof(Word)) == 0;
  const int chunk_bits = bits_for(chunks, planes && !wide ? 2 : 3);
  const int64_t warp_pixels = (32 >> chunk_bits) * kPackPixels;
  const int warp_bits = bits_for(ceil_div(pixels, warp_pixels), bits_for(kPackWarps, 31));
  const int64_t chunk_blocks = ceil_div(chunks, int64_t{1} << chunk_bits);
  const int64_t pixel_blocks = ceil_div(pixels, warp_pixels << warp_bits);
  const PackPlan plan = {from,
                         to,
                         strides,
                         images,
                         int(pixels),
                         int(channels),
                         int(chunks),
                         chunk_bits,
                         warp_bits,
                         Divisor(chunk_blocks),
                         Divisor(pixel_blocks),
                         Divisor(chunks_of_group)};
  launch(wide ? pack<Word, kPackPixels, kToTf32> : pack<Word, 1, kToTf32>,
         {chunk_blocks * pixel_blocks * ceil_div(images, kPackWarps >> warp_bits)}, kPackThreads, 0, stream,
         plan);
}

// A matrix turned and rounded to TF32, by tiles of kTurn x kTurn through shared memory: to[column][Rp] =
// from[row][column], where Rp is the number of rows in whole chunks, with zeros beyond.
template <class T>
struct TurnPlan {
  const T* from;
  T* to;
  int rows, padded_rows, columns;
};
constexpr int kTurn = 32, kTurnThreads = 256, kTurnAtOnce = kTurnThreads / kTurn;

template <class T>
CNNEXT_LAUNCH(kTurnThreads, 2)
turn_to_tf32(TurnPlan<T> plan) {
  T* tile = shared_memory<T>();  // [kTurn][kTurn + 1]
  const int first_column = blockIdx.x * kTurn, first_row = blockIdx.y * kTurn;
  const int inner = threadIdx.x % kTurn, outer = threadIdx.x / kTurn;
#pragma unroll
  for (int i = outer; i < kTurn; i += kTurnAtOnce) {
    const int row = first_row + i, column = first_column + inner;
    const bool inside = row < plan.rows && column < plan.columns;
    tile[i * (kTurn + 1) + inner] =
        load_if<T, 1>(inside, plan.from + int64_t(row) * plan.columns + column, {}).at[0];
  }
  __syncthreads();
#pragma unroll
  for (int i = outer; i < kTurn; i += kTurnAtOnce) {
    const int row = first_row + inner, column = first_column + i;
    if (row >= plan.padded_rows || column >= plan.columns) continue;
    const uint32_t bits = ptx::as_bits(tile[inner * (kTurn + 1) + i]);
    const Pack<T, 1> rounded = {ptx::as_float(ptx::round_to_tf32(bits))};
    store_pack(plan.to + int64_t(column) * plan.padded_rows + row, rounded);
  }
}

template <class T>
void start_turn(const TurnPlan<T>& plan, const Stream& stream) {
  launch(turn_to_tf32<T>, {ceil_div(plan.columns, kTurn), ceil_div(plan.padded_rows, kTurn)}, kTurnThreads,
         kTurn * (kTurn + 1) * int(sizeof(T)), stream, plan);
}

}  // namespace cnnext::cuda
