// Dense convolution and its gradient with respect to the input, as one blocked matrix product per phase:
//   destination[pixel, channel] = bias[channel] + sum over (tap, source channel) of gathered source * weight
// forward: source = input, destination = output; gradient: source = grad_output, destination = grad_input.
// Any stride, padding, dilation, groups and number of axes; 16-bit types are converted to float as blocks are
// packed.
//
// Channels last: pixels are the rows of a tile and output channels its vectors (weights packed as columns).
// Channels first: output channels are the rows (weights packed as rows) and pixels the vectors.
// A task is a block of pixels times a block of channels; its sums stay in the thread's scratch memory in the
// cache until the last block of the depth, whose tiles write them to the destination where these are whole.
// Each element is summed in the same order whatever the tasks and threads.
// Weights are packed before they are used by many tasks, or, where all pixels are one block, by the task that
// uses them.
#pragma once

#include "conv_in_channels_last.h"
#include "conv_regions.h"
#include "conv_sampled.h"
#include "packed_weights.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kMaxPanels = 16;       // columns of tiles in a task, channels last
constexpr int64_t kPixelPanels = 4;      // the same, channels first
constexpr int64_t kMaxChannels = 512;    // rows of a task, channels first
constexpr int64_t kRowsToPackFor = 128;  // that many threads share few pixels, channels first

// How the work is cut. Each block of channels packs the pixels again: there are no more than balance the
// threads.
template <class A>
struct Cut {
  Cut(const Regions& regions, const ConvProblem& p) : channels_last(p.layout == Layout::kChannelsLast) {
    const Phases& phases = regions.phases;
    const int64_t pixels = regions.most_pixels(),
                  most_pixels = channels_last ? kBlockRows : kPixelPanels * kCols<A>;
    const int64_t panels = ceil_div(phases.channels, kCols<A>);
    // Few pixels are one block, if the threads can share the channels alike: whole panels, or rows enough to
    // pack the pixels for.
    const bool alike =
        p.shape.groups % p.threads == 0 || (channels_last ? 17 * panels >= 16 * round_up(panels, p.threads)
                                                          : phases.channels >= kRowsToPackFor * p.threads);
    const bool one = pixels <= 3 * most_pixels && alike;
    pixel_blocks = one ? 1 : max_of(1, ceil_div(pixels, most_pixels));
    if (!one && !regions.cut)  // as many for each thread, of equal size
      pixel_blocks = max_of(pixel_blocks, min_of(round_up(pixel_blocks, p.threads), pixels / kRows));
    pixel_block = max_of(1, round_up(ceil_div(pixels, pixel_blocks), channels_last ? 1 : kCols<A>));
    pixel_blocks = max_of(1, ceil_div(pixels, pixel_block));
    packs_in_task =
        pixel_blocks == 1 && !regions.cut && (!channels_last || depth_in_parts(phases)) && !p.keeps_weight;
    const int64_t unit = channels_last ? kCols<A> : 1,
                  most = channels_last ? kMaxPanels * unit : kMaxChannels;
    const int64_t wanted =
        blocks_for(p.threads, pixel_blocks * p.shape.groups,
                   ceil_div(phases.channels, channels_last ? unit : kRows), ceil_div(phases.channels, most));
    channel_block = round_up(ceil_div(phases.channels, wanted), unit);
    channel_blocks = ceil_div(phases.channels, channel_block);
    depth_blocks = ceil_div(phases.max_depth(), kDepth);
    units_of_group = channels_last ? panels : channel_blocks * depth_blocks;
    unit_size = channels_last ? kCols<A> * phases.max_depth() : channel_block * kDepthStride;
    scratch_gathered = round_up(pixel_block * (channels_last ? kDepthStride : kDepth), 64);
    scratch_sums = round_up(pixel_block * round_up(channel_block, unit), 64);
    const int64_t weights = channels_last ? kCols<A> * kDepth : channel_block * kDepthStride;
    scratch_size = scratch_gathered + scratch_sums + (packs_in_task ? round_up(weights, 64) : 0) + 64;
  }
  bool channels_last, packs_in_task;
  int64_t pixel_block, pixel_blocks, channel_block, channel_blocks;
  int64_t depth_blocks, units_of_group;
  int64_t unit_size, scratch_gathered, scratch_sums, scratch_size;  // in elements
};

// T is the type of the tensors, S that of the elements which are multiplied: T or pairs of them.
template <class T, class S = T>
struct Gemm {
  using A = Acc<T>;
  static constexpr int64_t kWide = kCols<A>;
  static constexpr Product kProduct = std::is_same_v<S, BFloat16Pair> ? Product::kPairs : Product::kNumbers;

  Gemm(const ConvProblem& p, bool gradient, const ConvBuffers& b, char* workspace)
      : phases(phases_of(p, gradient, kProduct)),
        regions(phases, p.layout == Layout::kChannelsLast),
        cut(regions, p),
        operands(operands_of<T, S>(b, gradient)),
        threads(p.threads),
        packed(p, units(), cut.unit_size),
        scratch(reinterpret_cast<A*>(packed.place(b, workspace))) {}

  int64_t workspace_bytes() const { return packed.bytes() + threads * cut.scratch_size * int64_t(sizeof(A)); }
  int64_t packed_bytes() const { return packed.kept_bytes(); }
  bool applies_epilogue() const { return true; }

  void run(const Parallel& parallel) const {
    const int64_t groups = phases.shape.groups;
    packed.start(parallel, pack_unit());
    // Regions differ in their number of taps: tasks of all of them follow each other, so that threads get
    // alike.
    parallel(regions.size() * groups * cut.pixel_blocks * cut.channel_blocks, [&](int64_t task, int thread) {
      const Region r = regions.at(task % regions.size());
      task /= regions.size();
      const Range channels = block(task % cut.channel_blocks, cut.channel_block, phases.channels);
      task /= cut.channel_blocks;
      const Range pixels = block(task % cut.pixel_blocks, block_of(r.g.pixels()), r.g.pixels());
      if (pixels.size() == 0) return;
      A* gathered = scratch + thread * cut.scratch_size;
      A* sums = gathered + cut.scratch_gathered;
      const int64_t group = task / cut.pixel_blocks;
      if (cut.channels_last) {
        pixels_by_channels(r, group, pixels, channels, gathered, sums, sums + cut.scratch_sums, thread);
      } else {
        channels_by_pixels(r.g, group, pixels, channels, gathered, sums, sums + cut.scratch_sums, thread);
      }
    });
  }

  // Blocks of a region's pixels are of one size, if it is not the only one.
  int64_t block_of(int64_t pixels) const {
    return regions.cut ? ceil_div(pixels, max_of(1, ceil_div(pixels, cut.pixel_block))) : cut.pixel_block;
  }

  // A block of a region's depth. Where a region has some taps only, a block is of one tap.
  struct Depth : Range {
    int64_t packed;  // where its weights are, in all the phase's depth
  };
  Depth depth_block(const Region& r, int64_t d) const {
    if (!regions.cut || r.g.taps() == 0) {
      const Range depth = block(d, kDepth, r.g.depth());
      return {depth, depth.begin};
    }
    const int64_t blocks = ceil_div(r.g.channels, kDepth), tap = r.tap(d / blocks);
    const Range c = block(d % blocks, kDepth, r.g.channels);
    const int64_t first = d / blocks * r.g.channels;
    return {{first + c.begin, first + c.end}, tap * r.g.channels + c.begin};
  }
  int64_t depth_blocks(const Region& r) const {
    return regions.cut ? r.g.taps() * ceil_div(r.g.channels, kDepth) : ceil_div(r.g.depth(), kDepth);
  }

  // Packed weights come in panels of all the depth in channels last, in blocks of channels and of the depth
  // in channels first.
  int64_t units() const {
    return cut.packs_in_task ? 0 : phases.total_slots() * phases.shape.groups * cut.units_of_group;
  }
  int64_t unit_of(const Gather& g, int64_t group, int64_t part) const {
    return (phases.slot(g) * phases.shape.groups + group) * cut.units_of_group + part;
  }
  auto pack_unit() const {
    return [this](int64_t unit, A* to, int) {
      const int64_t part = unit % cut.units_of_group, group = unit / cut.units_of_group % phases.shape.groups;
      const Gather g = phases.of_slot(unit / cut.units_of_group / phases.shape.groups);
      if (g.depth() == 0) return;
      if (cut.channels_last) {
        pack_weight_panel(phases, g, operands.weight, group, block(part, kWide, phases.channels),
                          {0, g.depth()}, to);
      } else {
        pack_weight_rows(g, group, part % cut.depth_blocks,
                         block(part / cut.depth_blocks, cut.channel_block, phases.channels), to);
      }
    };
  }

  // Channels first: a block of kDepth columns, to[channel][kDepthStride].
  void pack_weight_rows(const Gather& g, int64_t group, int64_t depth_block, Range channels, A* to) const {
    const Range depth = block(depth_block, kDepth, g.depth());
    const ColumnOrder order = column_order(g);
    const S* from = operands.weight + group * phases.weight_group + channels.begin * phases.weight_channel;
    if (as_in_memory()) {
      for (int64_t k = 0; k < channels.size(); ++k) {
        copy_run(from + k * phases.weight_channel + depth.begin, to + k * kDepthStride, depth.size());
      }
      return;
    }
    for (int64_t m = 0; m < g.taps(); ++m) {
      const S* tap = from + phases.weight_offset(g, m);
      A* out = to + m * g.channels - depth.begin;
      const Range source = channels_in(depth, order, m, g.channels);
      if (phases.weight_channel == 1) {  // the channels are neighbours in memory
        transpose_block(tap + source.begin * phases.weight_source, phases.weight_source, source.size(),
                        channels.size(), [&](int64_t k) { return out + source.begin + k * kDepthStride; });
        continue;
      }
      for (int64_t c = source.begin; c < source.end; ++c) {
        const S* w = tap + c * phases.weight_source;
        for (int64_t k = 0; k < channels.size(); ++k) {
          out[k * kDepthStride + c] = load_one(w + k * phases.weight_channel);
        }
      }
    }
  }
  // Channels first: forward, the order of the weight in memory; for a gradient, source channels fastest.
  ColumnOrder column_order(const Gather& g) const {
    return as_in_memory() ? ColumnOrder{1, g.taps()} : taps_outside(g);
  }
  bool as_in_memory() const { return phases.weight_tap == 1 && !phases.gradient; }

  // `packing` is scratch memory for weights, where they are packed by the task.
  void pixels_by_channels(const Region& r, int64_t group, Range pixels, Range channels, A* gathered, A* sums,
                          A* packing, int thread) const {
    const Gather& g = r.g;
    const S* from = operands.source + group * g.channels * phases.source.channel;
    const int64_t depth_blocks = this->depth_blocks(r);
    const bool in_order = g.covers_destination(), in_rows = g.axis[2].count >= kRows;
    const bool read_in_place = in_place(g);
    const Range next = {pixels.end, min_of(pixels.end + pixels.size(), g.pixels())};
    if (depth_blocks == 0) fill_zero(sums, round_up(channels.size(), kWide) * pixels.size());
    for (int64_t d = 0; d < max_of(depth_blocks, 1); ++d) {
      const Depth depth = depth_block(r, d);
      const bool last_block = d + 1 >= depth_blocks;
      if (depth.size() > 0 && !read_in_place)
        pack_pixels(from, phases.source, g, pixels, depth, gathered, kDepthStride);
      const int64_t calls = ceil_div(channels.size(), kWide) * fetch_calls(pixels.size(), depth.size());
      Ahead ahead = {last_block
                         ? fetched_pixels(from, phases.source, g, next, depth_block(r, 0), calls)
                         : fetched_pixels(from, phases.source, g, pixels, depth_block(r, d + 1), calls)};
      for (Range panel = {channels.begin, 0}; panel.begin < channels.end; panel.begin += kWide) {
        panel.end = min_of(panel.begin + kWide, channels.end);
        A* c = sums + (panel.begin - channels.begin) * pixels.size();
        const bool direct =
            last_block && depth.size() > 0 && (in_order || in_rows) && fills_tiles<A>(panel.size());
        if (depth.size() > 0) {
          if (cut.packs_in_task) pack_weight_panel(phases, g, operands.weight, group, panel, depth, packing);
          const bool end = panel.end == channels.end;
          const int64_t first = end ? channels.begin : panel.end;
          ahead.weights = fetched_panel(g, group, {first, min_of(first + kWide, channels.end)},
                                        end ? (last_block ? Depth() : depth_block(r, d + 1)) : depth,
                                        fetch_calls(pixels.size(), depth.size()), thread);
          const A* b = cut.packs_in_task
                           ? packing
                           : packed.get(unit_of(g, group, panel.begin / kWide), thread, pack_unit()) +
                                 depth.packed * kWide;
          const auto multiply = [&](int64_t at, int64_t count, auto out) {
            if constexpr (kInPlace) {
              if (read_in_place) {
                const int64_t stride = phases.source.pixel;
                const S* first = from + (pixels.begin + at) * stride + depth.begin;
                return tile_column<0, 1, kWide, kProduct>(count, depth.size(), panel.size(), first, b, out,
                                                          &ahead, stride);
              }
            }
            tile_column<kDepthStride, 1, kWide, kProduct>(count, depth.size(), panel.size(),
                                                          gathered + at * kDepthStride, b, out, &ahead);
          };
          if (direct) {
            const int64_t first = group * phases.channels + panel.begin;
            A add[kWide];
            if (operands.bias) copy_run(operands.bias + first, add, panel.size());
            const auto write = [&](int64_t at, int64_t image, int64_t pixel, int64_t step, int64_t count) {
              const Strides& s = phases.destination;
              multiply(
                  at, count,
                  TileOutput<T, kProduct>{operands.destination + image * s.image + pixel * s.pixel + first,
                                          step * s.pixel, d > 0 ? c + at * kWide : nullptr,
                                          operands.bias ? add : nullptr, nullptr, operands.any_epilogue()});
            };
            in_order ? write(0, 0, pixels.begin, 1, pixels.size()) : for_each_run(g, pixels, write);
          } else {
            multiply(0, pixels.size(), TileSums<A>{c, d > 0});
          }
        }
        if (last_block && !direct) store_pixels(g, group, pixels, panel, c);
      }
    }
  }

  // Whether the source's pixels are the rows of a as they are. Rows a multiple of 4 KiB apart would push each
  // other out of the first-level cache.
  static constexpr bool kInPlace = sizeof(S) == sizeof(A);
  bool in_place(const Gather& g) const {
    bool plain = kInPlace && phases.source.pixel * int64_t(sizeof(S)) % 4096 != 0;
    for (const PhaseAxis& x : g.axis) plain &= is_plain(x);
    return plain;
  }

  // The weights of a panel that comes next, as they are or packed.
  FetchedRows fetched_panel(const Gather& g, int64_t group, Range panel, const Depth& depth, int64_t calls,
                            int thread) const {
    if (cut.packs_in_task) return fetched_weights(phases, g, operands.weight, group, panel, depth, calls);
    const A* packed_panel = packed.at(unit_of(g, group, panel.begin / kWide), thread) + depth.packed * kWide;
    return {packed_panel, depth.size() * kWide, {1, 0}, {1, 0}, calls};
  }

  // sums[pixel][kWide] to the destination, channels last.
  void store_pixels(const Gather& g, int64_t group, Range pixels, Range panel, const A* sums) const {
    const int64_t first = group * phases.channels + panel.begin;
    A add[kWide] = {};
    if (operands.bias) copy_run(operands.bias + first, add, panel.size());
    for_each_run(g, pixels, [&](int64_t at, int64_t image, int64_t pixel, int64_t step, int64_t count) {
      T* to =
          operands.destination + image * phases.destination.image + pixel * phases.destination.pixel + first;
      const A* from = sums + at * kWide;
      for (; count > 0; --count, from += kWide, to += step * phases.destination.pixel) {
        if (panel.size() == kWide) {
          for (int64_t k = 0; k < kWide; k += kLanes<A>)
            store(to + k, operands.epilogue(to + k, load(from + k) + load(add + k)));
        } else {
          for (int64_t k = 0; k < panel.size(); ++k)
            store_one(to + k, operands.epilogue.one(to + k, from[k] + add[k]));
        }
      }
    });
  }

  void channels_by_pixels(const Gather& g, int64_t group, Range pixels, Range channels, A* gathered, A* sums,
                          A* packing, int thread) const {
    const S* from = operands.source + group * g.channels * phases.source.channel;
    const int64_t panel_sums = channels.size() * kWide, depth_blocks = ceil_div(g.depth(), kDepth);
    const bool in_order = g.covers_destination();
    const int64_t image_pixels = g.pixels() / g.images;
    const Range next = {pixels.end, min_of(pixels.end + pixels.size(), g.pixels())};
    if (g.depth() == 0) fill_zero(sums, ceil_div(pixels.size(), kWide) * panel_sums);
    for (int64_t d = 0; d < max_of(depth_blocks, 1); ++d) {
      const Range depth = block(d, kDepth, g.depth());
      for (int64_t panel = 0; depth.size() > 0 && panel * kWide < pixels.size(); ++panel) {
        const int64_t begin = pixels.begin + panel * kWide;
        const Range wide = {begin, min_of(begin + kWide, pixels.end)};
        A* b = gathered + panel * kWide * kDepth;
        if (wide.size() < kWide) fill_zero(b, depth.size() * kWide);
        pack_columns(from, phases.source, g, wide, depth, column_order(g), b, kWide);
      }
      const bool last_block = d + 1 >= depth_blocks;
      const int64_t calls = ceil_div(pixels.size(), kWide) * fetch_calls(channels.size(), depth.size());
      Ahead ahead = {fetched_columns(from, phases.source, g, last_block ? next : pixels,
                                     block(last_block ? 0 : d + 1, kDepth, g.depth()), column_order(g),
                                     calls)};
      if (cut.packs_in_task) pack_weight_rows(g, group, d, channels, packing);
      const int64_t part = channels.begin / cut.channel_block * cut.depth_blocks + d;
      const A* rows = cut.packs_in_task || depth.size() == 0
                          ? packing
                          : packed.get(unit_of(g, group, part), thread, pack_unit());
      for (int64_t panel = 0; panel * kWide < pixels.size(); ++panel) {
        const int64_t begin = pixels.begin + panel * kWide;
        const Range wide = {begin, min_of(begin + kWide, pixels.end)};
        const int64_t image = begin / image_pixels, pixel = begin % image_pixels;
        const bool direct = last_block && depth.size() > 0 && in_order && fills_tiles<A>(wide.size()) &&
                            pixel + wide.size() <= image_pixels;
        A* c = sums + panel * panel_sums;
        const auto multiply = [&](auto out) {
          tile_column<kDepthStride, 1, kWide, kProduct>(channels.size(), depth.size(), wide.size(), rows,
                                                        gathered + panel * kWide * kDepth, out, &ahead);
        };
        if (direct) {
          const int64_t first = group * phases.channels + channels.begin;
          T* to = operands.destination + image * phases.destination.image +
                  first * phases.destination.channel + pixel;
          multiply(TileOutput<T, kProduct>{to, phases.destination.channel, d > 0 ? c : nullptr, nullptr,
                                           operands.bias ? operands.bias + first : nullptr,
                                           operands.any_epilogue()});
        } else {
          if (depth.size() > 0) multiply(TileSums<A>{c, d > 0});
          if (last_block) store_columns(g, group, wide, channels, c);
        }
      }
    }
  }

  // sums[channel][kWide pixels] to the destination, channels first.
  void store_columns(const Gather& g, int64_t group, Range pixels, Range channels, const A* sums) const {
    for_each_run(g, pixels, [&](int64_t at, int64_t image, int64_t pixel, int64_t step, int64_t count) {
      for (int64_t k = channels.begin; k < channels.end; ++k) {
        const int64_t channel = group * phases.channels + k;
        const A* from = sums + (k - channels.begin) * kWide + at;
        T* to = operands.destination + image * phases.destination.image +
                channel * phases.destination.channel + pixel;
        const A add = operands.bias ? load_one(operands.bias + channel) : A(-0.0);  // keeps the sign of zeros
        int64_t i = 0;
        if (step == 1) {
          for (; i + kLanes<A> <= count; i += kLanes<A>)
            store(to + i, operands.epilogue(to + i, load(from + i) + add));
        }
        for (; i < count; ++i) store_one(to + i * step, operands.epilogue.one(to + i * step, from[i] + add));
      }
    });
  }

  Phases phases;
  Regions regions;
  Cut<A> cut;
  Operands<T, S> operands;
  int64_t threads;
  PackedWeights<A> packed;
  A* scratch;
};

// Whether channels first are turned to channels last: where the destination is cut into regions, and where
// few destination channels would be all that a packed pixel is multiplied for, in rows too short for vectors.
template <bool Gradient>
bool turns_to_channels_last(const ConvProblem& p) {
  constexpr int64_t kFewChannels = 32, kFewTaps = 4, kShortRow = 32;
  if (p.layout == Layout::kChannelsLast) return false;
  const Phases phases(p, Gradient);
  const bool costly = phases.channels <= kFewChannels && phases.source_channels >= lanes_of(p.dtype) &&
                      phases.max_taps >= kFewTaps && phases.at(0).axis[2].count <= kShortRow;
  return costly || Regions(phases).cut;
}

template <class T>
using GemmOf = Gemm<T>;
template <bool Gradient>
constexpr ConvOp kOpOf = Gradient ? ConvOp::kGradInput : ConvOp::kForward;
template <bool Gradient>
using GemmClasses =
    MaySample<MayTurn<ByType<GemmOf, Gradient>, kOpOf<Gradient>, false, turns_to_channels_last<Gradient>>,
              kOpOf<Gradient>>;

constexpr ConvKernel kConvGemm = entry<GemmClasses<false>>("gemm", "blocked implicit matrix product",
                                                           accepts_all, packed_of<GemmClasses<false>>);
constexpr ConvKernel kConvGradInputGemm =
    entry<GemmClasses<true>>("gemm", "blocked implicit matrix product, one for each residue of the stride",
                             accepts_all, packed_of<GemmClasses<true>>);

}  // namespace cnnext::cpu::CNNEXT_ISA
