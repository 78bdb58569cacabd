// What launchers and the table of kernels must agree on: into how many parts a sum is cut. It depends on the
// shape alone, so that a result is the same bit by bit on every GPU. No CUDA here.
#pragma once

#include "kernel.h"

namespace cnnext::cuda {

constexpr int64_t kMostPartialBytes = 64 << 20;  // of workspace
// Two for each multiprocessor of a large GPU; tests change it to reach all tiles.
inline int64_t blocks_wanted = 264;

// Pixels are numbered in 32 bits, from the first of an image to the last of a part that starts in it.
constexpr int64_t kMostPartPixels = int64_t{1} << 26,
                  kMostPixels = (int64_t{1} << 31) - kMostPartPixels - 1024;

// How many parts the sum over `pixels` is cut into, where `blocks` blocks compute one part: as many as run at
// once on a large GPU, or `waves` times as many, each of at least `least` pixels.
inline int64_t parts_of(int64_t pixels, int64_t least, int64_t blocks, int64_t bytes_of_one,
                        int64_t waves = 1) {
  const int64_t wanted = waves * blocks_wanted / blocks, most = max_of(1, kMostPartialBytes / bytes_of_one);
  const int64_t parts = max_of(1, min_of(min_of(wanted, most), pixels / least));
  return max_of(parts, ceil_div(pixels, kMostPartPixels));
}

inline int64_t accumulator_bytes(const ConvProblem& p) { return p.dtype == DType::kFloat64 ? 8 : 4; }
inline int64_t all_output_pixels(const ConvProblem& p) { return p.shape.N * p.shape.output_pixels(); }

inline int64_t direct_parts(const ConvProblem& p) {
  const ConvShape& s = p.shape;
  const int64_t blocks = s.taps() * ceil_div(s.C_per_group(), s.C_per_group() > 16 ? 64 : 16) *
                         ceil_div(s.K_per_group(), 64) * s.groups;
  return parts_of(all_output_pixels(p), 512, blocks, s.weights() * accumulator_bytes(p));
}

// The tile of taps that one pass of the depthwise gradient for the weight sums at once, and how many there
// are.
inline int depthwise_tile(const ConvProblem& p) {
  const int64_t kernel = max_of(p.shape.axis[1].kernel, p.shape.axis[2].kernel);
  return kernel <= 3 ? 3 : kernel <= 5 ? 5 : 7;
}
inline int64_t depthwise_tap_tiles(const ConvProblem& p, int tile) {
  const Window* axis = p.shape.axis;
  return axis[0].kernel * ceil_div(axis[1].kernel, tile) * ceil_div(axis[2].kernel, tile);
}
// Tiles of at most 32 pairs of channels, of a depthwise convolution that slides (conv_depthwise_slide.cuh).
inline int64_t slide_tiles(int64_t channels) { return ceil_div(channels, 64); }
inline int64_t depthwise_parts(const ConvProblem& p) {
  const ConvShape& s = p.shape;
  const bool last = p.layout == Layout::kChannelsLast;
  const int64_t tiles = depthwise_tap_tiles(p, depthwise_tile(p)), bytes = s.weights() * accumulator_bytes(p);
  return last ? parts_of(all_output_pixels(p), 512, slide_tiles(s.C) * tiles, bytes, 5)
              : parts_of(all_output_pixels(p), 4096, ceil_div(s.C * tiles, 4), bytes);
}

inline int64_t grad_bias_parts(const ConvProblem& p) {
  // Of a block.
  const int64_t channels = p.layout == Layout::kChannelsLast ? 128 / element_bytes(p.dtype) : 1;
  return parts_of(all_output_pixels(p), 1024, ceil_div(ceil_div(p.shape.K, channels), 4),
                  p.shape.K * accumulator_bytes(p));
}

// Blocks of max unpooling, each of which keeps the owners of one plane's elements at a time.
inline int64_t unpool_blocks(const PoolProblem& p) {
  const int64_t planes = p.shape.N * p.shape.C, bytes = p.shape.input_pixels() * 4;
  return max_of(1, min_of(min_of(planes, 8 * blocks_wanted), kMostPartialBytes / bytes));
}

// Matrix products on tensor cores read chunks of 16 bytes, which lie along the channels of a group. What is
// laid out otherwise, is not aligned or ends in part of a chunk is packed into the workspace (pack.cuh), in
// the order of these functions: each tells the bytes of one operand there, 0 where it is read as it is.
// A group's channels in whole chunks.
inline int64_t padded_channels(const ConvProblem& p, int64_t channels) {
  return round_up(channels, 16 / element_bytes(p.dtype));
}
inline int64_t packed_bytes(const ConvProblem& p, bool moves, int64_t rows, int64_t channels) {
  const int64_t padded = padded_channels(p, channels);
  if (!moves && p.aligned && padded == channels) return 0;
  return round_up(rows * padded * element_bytes(p.dtype), kAlignment);
}
inline int64_t packed_input_bytes(const ConvProblem& p) {
  const ConvShape& s = p.shape;
  const bool moves = p.layout == Layout::kChannelsFirst && s.input_pixels() > 1;
  return packed_bytes(p, moves, s.N * s.input_pixels() * s.groups, s.C_per_group());
}
inline int64_t packed_output_bytes(const ConvProblem& p) {
  const ConvShape& s = p.shape;
  const bool moves = p.layout == Layout::kChannelsFirst && s.output_pixels() > 1;
  return packed_bytes(p, moves, s.N * s.output_pixels() * s.groups, s.K_per_group());
}
inline int64_t packed_weight_bytes(const ConvProblem& p) {
  const ConvShape& s = p.shape;
  const bool moves = p.weight_layout == Layout::kChannelsFirst && s.taps() > 1;
  return packed_bytes(p, moves, s.K * s.taps(), s.C_per_group());
}

// The weight for Hopper's products of floats, which round none: packed into [K, taps, C], for the gradient
// for the input into [C, taps, K] or [taps, C, K].
inline int64_t rounded_weight_bytes(const ConvProblem& p, Direction direction) {
  const ConvShape& s = p.shape;
  const bool forward = direction == Direction::kForward;
  const int64_t along = padded_channels(p, forward ? s.C : s.K), rows = (forward ? s.K : s.C) * s.taps();
  return round_up(rows * along * element_bytes(p.dtype), kAlignment);
}

// grad_weight is a product of K rows and a column for each channel of each tap. The side of a tile, and into
// how many parts the sum is cut. `accurate`: float32 by three products.
inline int64_t gemm_grad_weight_columns(const ConvProblem& p) {
  return p.shape.taps() * padded_channels(p, p.shape.C_per_group());
}
inline int gemm_grad_weight_side(const ConvProblem& p, bool accurate) {
  return !accurate && min_of(gemm_grad_weight_columns(p), p.shape.K_per_group()) > 64 ? 128 : 64;
}
inline int64_t gemm_grad_weight_parts(const ConvProblem& p, bool accurate) {
  const ConvShape& s = p.shape;
  const int side = gemm_grad_weight_side(p, accurate);
  const int64_t blocks =
      ceil_div(gemm_grad_weight_columns(p), side) * ceil_div(s.K_per_group(), side) * s.groups;
  return parts_of(all_output_pixels(p), 512, blocks, s.weights() * 4);
}

}  // namespace cnnext::cuda
