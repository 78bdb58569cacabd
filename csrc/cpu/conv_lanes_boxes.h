// How convolution with a lane for each group (conv_lanes.h) is cut into tasks: groups into blocks of as many
// as a vector has lanes, pixels into boxes.
#pragma once

#include "range.h"

namespace cnnext::cpu::CNNEXT_ISA {

// Blocks of groups. Where the last is not full it overlaps the one before; both are of one task then.
template <class A>
struct LaneBlocks {
  explicit LaneBlocks(int64_t groups)
      : groups(groups), lanes(min_of(kLanes<A>, groups)), count(ceil_div(groups, lanes)) {}
  int64_t first(int64_t block) const { return min_of(block * lanes, groups - lanes); }  // group
  int64_t parts(int64_t size) const { return ceil_div(groups / lanes, size); }
  Range part(int64_t index, int64_t size) const {
    return {index * size, index + 1 == parts(size) ? count : (index + 1) * size};
  }
  int64_t neighbours(int64_t block, int64_t end) const {  // from a block on that do not overlap
    return max_of(min_of(end, groups / lanes) - block, 1);
  }
  int64_t groups, lanes, count;
};

// Pixels [begin, end) along each axis.
struct Box {
  int64_t begin[kAxes], end[kAxes];
  void set(int a, Range r) {
    begin[a] = r.begin;
    end[a] = r.end;
  }
  int64_t size(int a) const { return end[a] - begin[a]; }
  int64_t pixels() const { return size(0) * size(1) * size(2); }
};

// An activation whose channels are those of groups.
struct GroupedLayout {
  GroupedLayout(Layout layout, int64_t all_channels, int64_t groups, const int64_t* extents)
      : channels_last(layout == Layout::kChannelsLast),
        channels(all_channels / groups),
        extent{extents[0], extents[1], extents[2]},
        strides(strides_of(layout, all_channels, extents[0] * extents[1] * extents[2])) {}
  bool channels_last;
  int64_t channels, extent[kAxes];  // channels of a group
  Strides strides;
};

inline GroupedLayout grouped_layout(const ConvProblem& p, bool of_input) {
  int64_t extent[kAxes];
  for (int a = 0; a < kAxes; ++a) extent[a] = of_input ? p.shape.axis[a].input : p.shape.axis[a].output;
  return {p.layout, of_input ? p.shape.C : p.shape.K, p.shape.groups, extent};
}

// How destination pixels and blocks of groups are cut into tasks: a box of an image times a part of the
// blocks.
template <class A>
struct LaneBoxes {
  static constexpr int64_t kFewTasks = 16;

  LaneBoxes(const ConvShape& s, bool is_gradient, const GroupedLayout& source, const GroupedLayout& result)
      : shape(s),
        gradient(is_gradient),
        blocks(s.groups),
        source_channels(source.channels),
        channels(result.channels),
        extent{result.extent[0], result.extent[1], result.extent[2]},
        size{extent[0], extent[1], extent[2]} {}

  int64_t count(int a) const { return ceil_div(extent[a], size[a]); }
  int64_t count() const { return count(0) * count(1) * count(2); }  // of an image
  int64_t pixels() const { return size[0] * size[1] * size[2]; }    // of a box
  int64_t parts() const { return blocks.parts(part_blocks); }
  int64_t tasks() const { return shape.N * count() * parts(); }
  Range part(int64_t index) const { return blocks.part(index, part_blocks); }
  // Takes a box's number off that of a task, of which the image's is left.
  Box take(int64_t& number) const {
    Box box;
    for (int a = kAxes - 1; a >= 0; number /= count(a), --a)
      box.set(a, block(number % count(a), size[a], extent[a]));
    return box;
  }
  // What its pixels read.
  Box source_of(const Box& box) const {
    Box read;
    for (int a = 0; a < kAxes; ++a)
      read.set(a, source_range(shape.axis[a], gradient, box.begin[a], box.end[a]));
    return read;
  }

  // Scratch memory of a block where a box is copied: of the source, and of both.
  int64_t source_elements() const {
    int64_t elements = source_channels * kLanes<A>;
    for (int a = 0; a < kAxes; ++a) elements *= source_extent(shape.axis[a], gradient, size[a]);
    return elements;
  }
  int64_t elements() const { return source_elements() + channels * pixels() * kLanes<A>; }

  // Where boxes are copied: so small that they stay in the cache, and that there are tasks enough. Blocks of
  // one cache line are of one part.
  void cut_to_fit(int64_t blocks_of_line) {
    constexpr int64_t kFewPixels = 512;
    part_blocks = blocks_of_line;
    for (int a = 0; a < kAxes; ++a) {
      while (size[a] > 1 &&
             (part_blocks * elements() > kElements || (tasks() < kFewTasks && pixels() > kFewPixels))) {
        size[a] = ceil_div(size[a], 2);
      }
    }
  }
  // Then, parts of more blocks, where these are small: they share what is done once for a row. There are
  // still tasks enough, `each` of a part.
  void join_small(int64_t each) {
    constexpr int64_t kMostBlocks = 8;
    while (part_blocks < kMostBlocks && 2 * part_blocks * elements() <= kElements / 4 &&
           each * parts() >= 2 * kFewTasks) {
      part_blocks *= 2;
    }
  }

  ConvShape shape;
  bool gradient;
  LaneBlocks<A> blocks;
  int64_t source_channels, channels, extent[kAxes];
  int64_t size[kAxes], part_blocks = 1;

 private:
  static constexpr int64_t kElements = (192 << 10) / sizeof(A);  // of a part, where rows are short
};

}  // namespace cnnext::cpu::CNNEXT_ISA
