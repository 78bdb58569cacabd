// How a blocked matrix product of a convolution is cut into tasks, and the memory that a task takes.
#pragma once

#include "conv_gemm_few.h"
#include "conv_regions.h"
#include "conv_splits.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kMaxPanels = 16;             // columns of tiles in a task, channels last
constexpr int64_t kPixelPanels = 4;            // the same, channels first
constexpr int64_t kPackedPanels = 4;           // at once
constexpr int64_t kMaxChannels = 512;          // rows of a task, channels first
constexpr int64_t kRowsToPackFor = 128;        // at least; fewer multiply pixels in place, channels first
constexpr int64_t kGatheredBytes = 448 << 10;  // of all the depth, at most

template <class A>
struct GemmCut {
  GemmCut(const Regions& regions, const ConvProblem& p, bool read_in_place)
      : channels_last(p.layout == Layout::kChannelsLast),
        in_place(read_in_place),
        pixels(regions.most_pixels(), channels_last ? 1 : pixel_unit(regions.most_pixels(), p.threads)),
        channels(regions.phases.channels, channels_last ? kLanes<A> : 1),
        depth_blocks(ceil_div(regions.phases.max_depth(), kDepth)) {
    cut_pixels(regions, p);
    packs_in_task = pixels.blocks == 1 && !regions.cut && !p.keeps_weight &&
                    (!channels_last || depth_in_parts(regions.phases));
    few =
        std::is_same_v<A, float> && packs_in_task && channels_last && takes_few(regions.phases, pixels.size);
    if (few) in_place = false;
    cut_channels(p);
    const int64_t max_depth = regions.phases.max_depth();
    units_of_group = channels_last ? ceil_div(channels.size, kCols<A>) : channels.blocks * depth_blocks;
    unit_size = channels_last ? kCols<A> * max_depth : channels.block_size * kDepthStride;
    const int64_t block_pixels =
        few ? rounded_few(pixels.size) : round_up(pixels.block_size, channels_last ? 1 : kCols<A>);
    const int64_t block_channels = channels_last ? kCols<A> * most_panels() : channels.block_size;
    gathered_size = round_up(block_pixels * (channels_last ? kDepthStride : kDepth), 64);
    packed_panels = packs_panels(regions.phases) ? kPackedPanels : 1;
    panels_first =
        few || (packs_in_task && channels_last && packed_panels == 1 && !in_place && depth_blocks > 1 &&
                depth_blocks * gathered_size * int64_t(sizeof(A)) <= kGatheredBytes);
    if (panels_first) gathered_size *= depth_blocks;
    sums_size = round_up(block_pixels * block_channels, 64);
    const int64_t weights = few && regions.phases.gradient ? block_pixels * few_stride()
                            : channels_last                ? packed_panels * kCols<A> * kDepth
                                                           : channels.block_size * kDepthStride;
    scratch_size = gathered_size + sums_size + (packs_in_task ? round_up(weights, 64) : 0) + 64;
  }

  // Channels first: whole panels of pixels, or vectors where threads would not get alike.
  static int64_t pixel_unit(int64_t pixels, int64_t threads) {
    return pixels < 16 * threads * kCols<A> ? kLanes<A> : kCols<A>;
  }

  // Few pixels are one block, if the threads can share the channels alike: whole vectors, or rows enough to
  // pack the pixels for; where they are not packed, two tiles.
  void cut_pixels(const Regions& regions, const ConvProblem& p) {
    const int64_t most = channels_last ? kBlockRows : kPixelPanels * kCols<A>;
    const int64_t vectors = ceil_div(channels.size, kLanes<A>), rows = in_place ? 2 * kRows : kRowsToPackFor;
    const bool alike =
        p.shape.groups % p.threads == 0 || (channels_last ? 17 * vectors >= 16 * round_up(vectors, p.threads)
                                                          : channels.size >= rows * p.threads);
    if (pixels.size <= 3 * max_of(most, kBlockRows) && alike) return;
    int64_t blocks = max_of(1, ceil_div(pixels.size, most));
    if (!regions.cut)  // as many for each thread, of equal size
      blocks = max_of(blocks, min_of(round_up(blocks, p.threads), pixels.size / kRows));
    pixels.cut(blocks);
  }
  // Each block of channels packs the pixels again: there are no more than balance the threads.
  void cut_channels(const ConvProblem& p) {
    const int64_t least = channels_last ? kLanes<A> : kRows,
                  most = channels_last ? kMaxPanels * kCols<A> : kMaxChannels;
    channels.cut(blocks_for(p.threads, pixels.blocks * p.shape.groups, ceil_div(channels.size, least),
                            ceil_div(channels.size, most)));
  }

  // Whether a task packs several panels for pixels that are not many: long rows of weights, each in a page of
  // its own, are read in longer runs. Panels then come from the second-level cache.
  bool packs_panels(const Phases& phases) const {
    constexpr int64_t kMostPixels = 32, kLongRow = 8 << 10;  // bytes
    return packs_in_task && channels_last && pixels.size <= kMostPixels && phases.weight_channel == 1 &&
           phases.weight_source * int64_t(sizeof(A)) >= kLongRow;
  }
  // Of a few pixels' sums of all channels of a task; a panel may begin at any vector.
  int64_t few_stride() const { return channels.block_size + kCols<A>; }
  // Of packed weights, that a block of channels has a part in. Channels last.
  int64_t most_panels() const {
    const int64_t vectors = channels.block_size / kLanes<A>;
    return channels.blocks == 1 ? ceil_div(vectors, kVectors) : ceil_div(vectors - 1, kVectors) + 1;
  }

  bool channels_last, in_place, packs_in_task;
  bool few;           // pixels, for which weights are read where they lie
  bool panels_first;  // and then the depth: each row of weights is read at once, and a panel's sums stay near
  CutAxis pixels, channels;
  int64_t packed_panels;  // at once by a task
  int64_t depth_blocks;
  int64_t units_of_group;                                     // of packed weights
  int64_t unit_size, gathered_size, sums_size, scratch_size;  // in elements
};

}  // namespace cnnext::cpu::CNNEXT_ISA
