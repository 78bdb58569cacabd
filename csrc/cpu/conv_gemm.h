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

#include "conv_gemm_cut.h"
#include "conv_in_channels_last.h"
#include "conv_sampled.h"
#include "packed_weights.h"

namespace cnnext::cpu::CNNEXT_ISA {

// T is the type of the tensors, S that of the elements which are multiplied: T or pairs of them.
template <class T, class S = T>
struct Gemm {
  using A = Acc<T>;
  static constexpr int64_t kWide = kCols<A>;
  static constexpr Product kProduct = std::is_same_v<S, BFloat16Pair> ? Product::kPairs : Product::kNumbers;

  Gemm(const ConvProblem& p, bool gradient, const ConvBuffers& b, char* workspace)
      : phases(phases_of(p, gradient, kProduct)),
        regions(phases, p.layout == Layout::kChannelsLast),
        cut(regions, p, reads_in_place()),
        operands(operands_of<T, S>(b, gradient)),
        threads(p.threads),
        packed(p, units(), cut.unit_size),
        scratch(reinterpret_cast<A*>(packed.place(b, workspace))) {}

  int64_t workspace_bytes() const { return packed.bytes() + threads * cut.scratch_size * int64_t(sizeof(A)); }
  int64_t packed_bytes() const { return packed.kept_bytes(); }
  bool applies_epilogue() const { return true; }

  // A block of a region's pixels times a block of channels, and the thread's scratch memory.
  struct Task {
    Region r;
    int64_t group;
    Range pixels, channels;
    int64_t channel_block;
    int thread;
    A *gathered, *sums, *packing;  // packing: for weights, where the task packs them
  };

  void run(const Parallel& parallel) const {
    packed.start(parallel, pack_unit());
    const int64_t each = phases.shape.groups * cut.pixels.blocks * cut.channels.blocks;
    // Regions differ in their number of taps: tasks of all of them follow each other, so that threads get
    // alike.
    parallel(regions.size() * each, [&](int64_t number, int thread) {
      const Task t = task_at(number, thread);
      if (t.pixels.size() == 0) return;
      cut.channels_last ? pixels_by_channels(t) : channels_by_pixels(t);
    });
  }
  Task task_at(int64_t number, int thread) const {
    Task t;
    t.r = regions.at(number % regions.size());
    number /= regions.size();
    t.channel_block = number % cut.channels.blocks;
    t.channels = cut.channels.at(t.channel_block);
    number /= cut.channels.blocks;
    t.pixels = pixels_at(t.r, number % cut.pixels.blocks);
    t.group = number / cut.pixels.blocks;
    t.thread = thread;
    t.gathered = scratch + thread * cut.scratch_size;
    t.sums = t.gathered + cut.gathered_size;
    t.packing = t.sums + cut.sums_size;
    return t;
  }

  // Of several regions, small ones have fewer blocks.
  Range pixels_at(const Region& r, int64_t index) const {
    CutAxis pixels(r.g.pixels(), cut.pixels.unit);
    pixels.cut(regions.cut ? ceil_div(pixels.size, cut.pixels.block_size) : cut.pixels.blocks);
    return index < pixels.blocks ? pixels.at(index) : Range{};
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
        pack_weight_rows(g, group, part % cut.depth_blocks, cut.channels.at(part / cut.depth_blocks), to);
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
  // What it is going to read for a task.
  FetchedRows fetched_rows(const Task& t, Range depth, int64_t calls) const {
    if (!as_in_memory())
      return fetched_weights(phases, t.r.g, operands.weight, t.group, t.channels, depth, calls);
    const S* from = operands.weight + t.group * phases.weight_group +
                    t.channels.begin * phases.weight_channel + depth.begin;
    return {from, depth.size(), {t.channels.size(), phases.weight_channel}, {1, 0}, calls};
  }
  // Channels first: forward, the order of the weight in memory; for a gradient, source channels fastest.
  ColumnOrder column_order(const Gather& g) const {
    return as_in_memory() ? ColumnOrder{1, g.taps()} : taps_outside(g);
  }
  bool as_in_memory() const { return phases.weight_tap == 1 && !phases.gradient; }

  // Channels last: pixels are the rows, channels the panels.
  void pixels_by_channels(const Task& t) const {
    const Gather& g = t.r.g;
    const int64_t depth_blocks = this->depth_blocks(t.r);
    if (cut.panels_first && depth_blocks > 0) return panels_by_depth(t, depth_blocks);
    const S* from = source_of(t);
    const Range next = {t.pixels.end, min_of(t.pixels.end + t.pixels.size(), g.pixels())};
    if (depth_blocks == 0) {
      fill_zero(t.sums, cut.sums_size);
      for_each_panel(t, [&](Range panel, A* c) { store_pixels(g, t.group, t.pixels, panel, c); });
    }
    for (int64_t d = 0; d < depth_blocks; ++d) {
      const Depth depth = depth_block(t.r, d);
      const bool last = d + 1 == depth_blocks;
      if (!cut.in_place) pack_pixels(from, phases.source, g, t.pixels, depth, t.gathered, kDepthStride);
      const int64_t panel_calls = fetch_calls(t.pixels.size(), depth.size());
      const int64_t calls = ceil_div(t.channels.size(), kWide) * panel_calls;
      Ahead ahead;
      ahead.source = last ? fetched_pixels(from, phases.source, g, next, depth_block(t.r, 0), calls)
                          : fetched_pixels(from, phases.source, g, t.pixels, depth_block(t.r, d + 1), calls);
      for_each_panel(t, [&](Range panel, A* c) {
        if (packed_number(t, panel) == 0) {
          const int64_t behind = packed_with(t, panel).end;
          const bool end = behind == t.channels.end;
          ahead.weights = fetched_panels(t, packed_with(t, panel_of(t, end ? t.channels.begin : behind)),
                                         end ? (last ? Depth() : depth_block(t.r, d + 1)) : depth,
                                         cut.packed_panels * panel_calls);
        }
        multiply_panel(t, depth, panel, t.gathered, c, {d > 0, last}, ahead);
      });
    }
  }
  // The same where all the depth of few pixels is packed beforehand.
  void panels_by_depth(const Task& t, int64_t depth_blocks) const {
    const int64_t size = cut.gathered_size / cut.depth_blocks;  // of packed pixels
    for (int64_t d = 0; d < depth_blocks; ++d) {
      A* to = t.gathered + d * size;
      pack_pixels(source_of(t), phases.source, t.r.g, t.pixels, depth_block(t.r, d), to, kDepthStride);
      if (cut.few) fill_zero(to + t.pixels.size() * kDepthStride, size - t.pixels.size() * kDepthStride);
    }
    if (cut.few && phases.gradient) return few_by_rows(t, depth_blocks, size);
    Ahead ahead;
    for_each_panel(t, [&](Range panel, A*) {
      if (cut.few && fills_tiles<A>(panel.size())) return few_by_columns(t, panel, depth_blocks, size);
      for (int64_t d = 0; d < depth_blocks; ++d) {
        const Depth depth = depth_block(t.r, d);
        const bool last = d + 1 == depth_blocks;
        ahead.weights =
            fetched_panels(t, last ? panel_of(t, panel.end) : panel, depth_block(t.r, last ? 0 : d + 1),
                           fetch_calls(t.pixels.size(), depth.size()));
        multiply_panel(t, depth, panel, t.gathered + d * size, t.sums, {d > 0, last}, ahead);
      }
    });
  }
  // Few pixels: the sums of a vector of channels along all the depth, so that rows of weights are read to
  // their end; processors fetch so many of them ahead themselves.
  void few_by_columns(const Task& t, Range panel, int64_t depth_blocks, int64_t size) const {
    const S* weights = operands.weight + t.group * phases.weight_group;
    for (int64_t k = panel.begin; k < panel.end; k += kLanes<A>) {
      for (int64_t d = 0; d < depth_blocks; ++d) {
        multiply_turned<kProduct>(phases, t.r.g, weights + k * phases.weight_channel, depth_block(t.r, d),
                                  t.pixels.size(), t.gathered + d * size, t.sums + k - panel.begin, d > 0);
      }
    }
    store_pixels(t.r.g, t.group, t.pixels, panel, t.sums);
  }
  // Few pixels of a gradient: rows of weights of all the task's channels are added up.
  void few_by_rows(const Task& t, int64_t depth_blocks, int64_t size) const {
    const int64_t stride = cut.few_stride();
    A* sums = t.packing;  // of a block of the depth
    for (int64_t d = 0; d < depth_blocks; ++d) {
      multiply_rows<kProduct>(phases, t.r.g, operands.weight,
                              t.group * phases.weight_group + t.channels.begin, t.channels.size(),
                              depth_block(t.r, d), t.pixels.size(), t.gathered + d * size, sums, stride);
      for_each_panel(t, [&](Range panel, A* c) {
        add_panel(sums + panel.begin - t.channels.begin, stride, t.pixels.size(), c, d > 0);
        if (d + 1 == depth_blocks) store_pixels(t.r.g, t.group, t.pixels, panel, c);
      });
    }
  }

  // visit(panel, its sums [pixel][kWide]) for all of a task.
  template <class Visit>
  void for_each_panel(const Task& t, const Visit& visit) const {
    A* c = t.sums;
    for (Range panel = panel_of(t, t.channels.begin); panel.size() > 0;
         panel = panel_of(t, panel.end), c += t.pixels.size() * kWide) {
      visit(panel, c);
    }
  }

  // The products of a panel and a block of the depth, whose pixels are packed unless they are in place, added
  // to the sums c of blocks before, and written to the destination after the last.
  struct Place {
    bool add, last;
  };
  void multiply_panel(const Task& t, const Depth& depth, Range panel, const A* pixels, A* c, Place place,
                      Ahead& ahead) const {
    const Gather& g = t.r.g;
    if (cut.packs_in_task && packed_number(t, panel) == 0) {
      pack_weight_panels(phases, g, operands.weight, t.group, packed_with(t, panel), depth, t.packing);
    }
    const A* b = cut.packs_in_task
                     ? t.packing + packed_number(t, panel) * kWide * depth.size()
                     : packed.get(unit_of(g, t.group, panel.begin / kWide), t.thread, pack_unit()) +
                           depth.packed * kWide + panel.begin % kWide;
    const auto multiply = [&](int64_t at, int64_t count, auto out) {
      if constexpr (kMayReadInPlace) {
        if (cut.in_place) {
          const int64_t stride = phases.source.pixel;
          const S* rows = source_of(t) + (t.pixels.begin + at) * stride + depth.begin;
          return tile_column<0, 1, kWide, kProduct>(count, depth.size(), panel.size(), rows, b, out, &ahead,
                                                    {stride, 1, kWide});
        }
      }
      tile_column<kDepthStride, 1, kWide, kProduct>(count, depth.size(), panel.size(),
                                                    pixels + at * kDepthStride, b, out, &ahead);
    };
    const bool long_runs = g.covers_destination() || g.axis[2].count >= kRows;
    if (place.last && long_runs && fills_tiles<A>(panel.size()))
      return write_pixels(t, panel, place.add ? c : nullptr, multiply);
    multiply(0, t.pixels.size(), tile_sums(c, place.add));
    if (place.last) store_pixels(g, t.group, t.pixels, panel, c);
  }

  // What a task has of the panel of packed weights in which a channel is.
  Range panel_of(const Task& t, int64_t channel) const {
    return {channel, min_of(round_up(channel + 1, kWide), t.channels.end)};
  }

  // Of those that a task packs at once, a panel's number, and all from it on.
  int64_t packed_number(const Task& t, Range panel) const {
    return (panel.begin / kWide - t.channels.begin / kWide) % cut.packed_panels;
  }
  Range packed_with(const Task& t, Range panel) const {
    return {panel.begin, min_of((panel.begin / kWide + cut.packed_panels) * kWide, t.channels.end)};
  }

  // Channel 0 of the group in the source.
  const S* source_of(const Task& t) const {
    return operands.source + t.group * t.r.g.channels * phases.source.channel;
  }

  // Channels last: multiply(first pixel, count, output) for runs of the task's pixels, to the destination.
  template <class Multiply>
  void write_pixels(const Task& t, Range panel, const A* sums, const Multiply& multiply) const {
    const Strides& s = phases.destination;
    const int64_t first = t.group * phases.channels + panel.begin;
    A add[kWide];
    if (operands.bias) copy_run(operands.bias + first, add, panel.size());
    const auto write = [&](int64_t at, int64_t image, int64_t pixel, int64_t step, int64_t count) {
      T* to = operands.destination + image * s.image + pixel * s.pixel + first;
      multiply(at, count,
               TileOutput<T, kProduct>{to, step * s.pixel, sums ? sums + at * kWide : nullptr,
                                       operands.bias ? add : nullptr, nullptr, operands.any_epilogue()});
    };
    if (t.r.g.covers_destination()) {
      write(0, 0, t.pixels.begin, 1, t.pixels.size());
    } else {
      for_each_run(t.r.g, t.pixels, write);
    }
  }

  // Whether the source is a factor of the product as it is. Pixels a multiple of 4 KiB apart would push each
  // other out of the first-level cache.
  static constexpr bool kMayReadInPlace = sizeof(S) == sizeof(float);
  bool reads_in_place() const {
    bool plain = kMayReadInPlace && phases.size() == 1;
    plain &= phases.source.pixel * int64_t(sizeof(S)) % 4096 != 0;
    for (const PhaseAxis& x : phases.at(0).axis) plain &= is_plain(x);
    return plain;
  }

  // The weights of panels that come next, as they are or, of one, packed.
  FetchedRows fetched_panels(const Task& t, Range panel, const Depth& depth, int64_t calls) const {
    const Gather& g = t.r.g;
    if (cut.packs_in_task) return fetched_weights(phases, g, operands.weight, t.group, panel, depth, calls);
    const A* packed_panel =
        packed.at(unit_of(g, t.group, panel.begin / kWide), t.thread) + depth.packed * kWide;
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

  // Channels first: channels are the rows, pixels the panels.
  void channels_by_pixels(const Task& t) const {
    const Gather& g = t.r.g;
    const S* from = source_of(t);
    const int64_t panel_sums = t.channels.size() * kWide, depth_blocks = ceil_div(g.depth(), kDepth);
    const int64_t panels = ceil_div(t.pixels.size(), kWide), image_pixels = g.pixels() / g.images;
    const Range next = {t.pixels.end, min_of(t.pixels.end + t.pixels.size(), g.pixels())};
    const auto pixels_of = [&](int64_t panel) {
      const int64_t begin = t.pixels.begin + panel * kWide;
      return Range{begin, min_of(begin + kWide, t.pixels.end)};
    };
    // Whole vectors of an image's pixels.
    const auto are_vectors = [&](Range pixels) {
      return fills_tiles<A>(pixels.size()) && pixels.begin % image_pixels + pixels.size() <= image_pixels;
    };
    constexpr bool kMayReadColumns = std::is_same_v<S, float>;
    const bool few_rows = kMayReadColumns && cut.in_place && t.channels.size() <= kRowsToPackFor;
    if (g.depth() == 0) fill_zero(t.sums, panels * panel_sums);
    for (int64_t d = 0; d < max_of(depth_blocks, 1); ++d) {
      const Range depth = block(d, kDepth, g.depth());
      for (int64_t panel = 0; depth.size() > 0 && panel < panels; ++panel) {
        A* b = t.gathered + panel * kWide * kDepth;
        if (few_rows && are_vectors(pixels_of(panel))) continue;
        if (pixels_of(panel).size() < kWide) fill_zero(b, depth.size() * kWide);
        pack_columns(from, phases.source, g, pixels_of(panel), depth, column_order(g), b, kWide);
      }
      const bool last_block = d + 1 >= depth_blocks;
      const int64_t calls = panels * fetch_calls(t.channels.size(), depth.size());
      Ahead ahead;
      ahead.source =
          fetched_columns(from, phases.source, g, last_block ? next : t.pixels,
                          block(last_block ? 0 : d + 1, kDepth, g.depth()), column_order(g), calls);
      if (cut.packs_in_task && !last_block)
        ahead.weights = fetched_rows(t, block(d + 1, kDepth, g.depth()), calls);
      if (cut.packs_in_task) pack_weight_rows(g, t.group, d, t.channels, t.packing);
      const int64_t part = t.channel_block * cut.depth_blocks + d;
      const A* rows = cut.packs_in_task || depth.size() == 0
                          ? t.packing
                          : packed.get(unit_of(g, t.group, part), t.thread, pack_unit());
      for (int64_t panel = 0; panel < panels; ++panel) {
        const Range wide = pixels_of(panel);
        A* c = t.sums + panel * panel_sums;
        const int64_t image = wide.begin / image_pixels, pixel = wide.begin % image_pixels;
        const bool vectors = are_vectors(wide);
        const auto multiply = [&](auto out) {
          if constexpr (kMayReadColumns) {
            if (few_rows && vectors) {
              const int64_t stride = phases.source.channel;
              const S* b = from + image * phases.source.image + depth.begin * stride + pixel;
              return tile_column<kDepthStride, 1, 0, kProduct>(t.channels.size(), depth.size(), wide.size(),
                                                               rows, b, out, &ahead,
                                                               {kDepthStride, 1, stride});
            }
          }
          tile_column<kDepthStride, 1, kWide, kProduct>(t.channels.size(), depth.size(), wide.size(), rows,
                                                        t.gathered + panel * kWide * kDepth, out, &ahead);
        };
        const bool direct = last_block && depth.size() > 0 && g.covers_destination() && vectors;
        if (direct) {
          const Strides& s = phases.destination;
          const int64_t first = t.group * phases.channels + t.channels.begin;
          T* to = operands.destination + image * s.image + first * s.channel + pixel;
          multiply(TileOutput<T, kProduct>{to, s.channel, d > 0 ? c : nullptr, nullptr,
                                           operands.bias ? operands.bias + first : nullptr,
                                           operands.any_epilogue()});
        } else {
          if (depth.size() > 0) multiply(tile_sums(c, d > 0));
          if (last_block) store_columns(g, t.group, wide, t.channels, c);
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
  GemmCut<A> cut;
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
