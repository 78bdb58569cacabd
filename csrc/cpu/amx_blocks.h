// How the pixels of a phase are cut into blocks for AMX, and where they are in the copy that a block's task
// makes of the source's rows, with their padding.
#pragma once

#include "amx_rows.h"
#include "conv_phases.h"

#if CNNEXT_VECTOR_BYTES == 64

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kAmxPixels = 512;       // of a task, about
constexpr int64_t kAmxBytes = 512 << 10;  // of the copy, and of the sums of a slice
constexpr int64_t kAmxNear = 128 << 10;   // of weights that are read again for each two strips
constexpr int64_t kAmxNarrow = 12;        // shorter rows of pixels do not fill registers
// Products of registers that are summed before they are added to the sums; as a chain does not depend on how
// the pixels are cut, nor do results. Short chains round less.
template <int Parts>
constexpr int64_t kAmxChain = Parts == 1 ? 64 : 32;

// One axis of the copy. Its positions come in runs, in each of which neighbouring pixels are neighbours: one
// for each residue of the stride, or, where that is shorter, one for each tap.
struct CopyAxis {
  CopyAxis(const PhaseAxis& x, int64_t taps, int64_t pixels, bool apart)
      : step(x.source_step), tap_step(x.offset_step), apart(apart), runs(taps), length(pixels) {
    const int64_t reach = max_of(taps - 1, 0) * tap_step, each = pixels + reach / step;
    if (apart || taps * pixels <= min_of(step, reach + 1) * each) {
      this->apart = true;
    } else {
      runs = min_of(step, reach + 1);
      length = each;
    }
  }
  int64_t size() const { return runs * length; }
  int64_t run_of(int64_t tap) const { return apart ? tap : tap * tap_step % step; }
  int64_t in_run(int64_t tap) const { return apart ? 0 : tap * tap_step / step; }
  int64_t first(int64_t run) const { return apart ? run * tap_step : run; }  // that it reads

  int64_t step, tap_step;
  bool apart;
  int64_t runs, length;
};

// How a phase is cut into blocks of pixels, and how a block is copied.
template <int Parts>
struct AmxPlan {
  // `pixel_bytes` is the distance of the source's pixels, `others` the number of times that such pixels are
  // computed.
  AmxPlan(const Gather& gather, int64_t pixel_bytes, int64_t others, int64_t threads, bool one) : g(gather) {
    const int64_t C = g.channels, across = g.axis[2].taps;
    // Few channels: the taps of a row are numbers side by side.
    joined_taps = across > 1 && 4 * ceil_div(across * C, kAmxDepth) <= 3 * across * ceil_div(C, kAmxDepth);
    for (int a = 0; a < kAxes; ++a) taps[a] = joined_taps && a == 2 ? 1 : g.axis[a].taps;
    run = joined_taps ? across * C : C;
    chunks = ceil_div(run, kAmxDepth);
    // The source's pixels may be a register's rows as they are, unless their channels are planes. Rows a
    // multiple of 4 KiB apart would push each other out of the first-level cache.
    in_place = Parts == 1 && run % kAmxDepth == 0 && pixel_bytes >= 2 * run && pixel_bytes % 4096 != 0;
    for (const PhaseAxis& x : g.axis) in_place &= is_plain(x);

    const int64_t count = max_of(1, g.axis[2].count);
    const int64_t all_lines = max_of(1, g.axis[1].count), all_planes = max_of(1, g.images * g.axis[0].count);
    pieces = ceil_div(count, kAmxPixels);
    if (pieces > 1) pieces = blocks_for(threads, others * all_planes * all_lines, count, pieces);
    width = ceil_div(count, pieces);
    pieces = ceil_div(count, width);
    // Gaps between the rows of pixels would waste more than to copy each tap's columns apart.
    const int64_t gap = max_of(taps[2] - 1, 0) * g.axis[2].offset_step / g.axis[2].source_step;
    columns_apart = 4 * gap > width || (g.axis[2].count < kAmxNarrow && g.axis[1].count > 1);
    // Sums that wait for the next slice of the depth share the cache with the copy.
    const bool waits = units() == 1 && chunks * Parts * 64 * kAmxPixels > kAmxBytes;
    const int64_t most_pixels = waits ? kAmxPixels / 2 : kAmxPixels;
    const int64_t most = one ? all_lines * width : most_pixels;
    lines = pieces > 1 ? 1 : clamp(most / width, 1, all_lines);
    while (lines > 1 && positions() * Parts * 2 * 64 > kAmxBytes) lines = ceil_div(lines, 2);
    line_blocks = ceil_div(all_lines, lines);
    plane_blocks = all_planes;
    if (line_blocks > 1 || pieces > 1) {
      line_blocks = blocks_for(threads, others * all_planes * pieces, all_lines, line_blocks);
    } else {
      const int64_t fewest = one ? 1 : ceil_div(all_planes, max_of(1, most_pixels / (lines * width)));
      plane_blocks = one ? 1 : blocks_for(threads, others, all_planes, fewest);
    }
    lines = ceil_div(all_lines, line_blocks);
    line_blocks = ceil_div(all_lines, lines);
    planes = ceil_div(all_planes, plane_blocks);
    plane_blocks = ceil_div(all_planes, planes);
    const int64_t most_chunks = kAmxBytes / max_of(1, planes * positions() * Parts * 64);
    const int64_t slices =
        in_place || joined_taps ? 1 : ceil_div(chunks, max_of(1, most_chunks / chain() * chain()));
    slice = min_of(chunks, round_up(ceil_div(chunks, slices), chain()));
    // Weights that one block needs are split as they are multiplied, so many that they stay near.
    if (Parts > 1 && blocks() == 1 && !joined_taps) slice = min_of(slice, chain());
  }

  int64_t blocks() const { return pieces * line_blocks * plane_blocks; }
  int64_t chain() const { return max_of(1, kAmxChain<Parts> / max_of(1, units())); }
  int64_t units() const { return taps[0] * taps[1] * taps[2]; }
  int64_t pitch() const { return odd_lines(slice * Parts * 16) * 4; }  // bytes from a position to the next
  CopyAxis rows(int64_t count) const { return CopyAxis(g.axis[1], taps[1], count, false); }
  CopyAxis columns(int64_t count) const { return CopyAxis(g.axis[2], taps[2], count, columns_apart); }
  int64_t positions(int64_t block_lines, int64_t block_width) const {  // for a plane of pixels
    return taps[0] * rows(block_lines).size() * columns(block_width).size();
  }
  int64_t positions() const { return positions(lines, width); }
  int64_t copy_bytes() const { return in_place ? 0 : planes * positions() * pitch(); }
  // A line of positions that pixels have one behind the other in the copy: a plane, with the gaps between its
  // rows, or all planes.
  int64_t line(int64_t block_planes, int64_t block_lines, int64_t block_width) const {
    if (units() == 1) return block_planes * block_lines * block_width;
    return (block_lines - 1) * columns(block_width).length + block_width;
  }
  int64_t strips() const {
    return (units() == 1 ? 1 : planes) * ceil_div(line(planes, lines, width), kAmxRows);
  }
  int64_t places() const { return (units() == 1 ? 1 : planes) * line(planes, lines, width); }

  Gather g;
  bool joined_taps, in_place, columns_apart;
  int64_t taps[kAxes];
  int64_t run, chunks, slice;  // numbers that a tap multiplies; chunks of them, in all and in a slice
  int64_t width, lines, planes, pieces, line_blocks, plane_blocks;
};

// Destination positions for which a tap lies inside of the source.
struct Inside {
  Range axis[kAxes];
};

// Pixels that are the rows of a register: where they are in the copy, which is the first, the rows and
// columns that they belong to, and whether all taps lie inside of the source for them.
struct Strip {
  int64_t copy, place;
  Range axis[kAxes];
  bool inside;
};

// A block of pixels times some panels of channels.
template <int Parts>
struct AmxTask {
  AmxPlan<Parts> plan;
  int thread;
  int64_t group;
  Range panels, columns, lines, planes;
  int64_t pixels() const { return columns.size() * lines.size() * planes.size(); }

  // Where the pixels of a block are in the destination, by their positions; gaps between rows are negative.
  int64_t place_pixels(Strides destination, int64_t* places) const {
    const Gather& g = plan.g;
    const int64_t width = columns.size(), gap = plan.columns(width).length - width;
    int64_t count = 0;
    for (int64_t plane = planes.begin; plane < planes.end; ++plane) {
      const int64_t image = plane / g.axis[0].count, j0 = plane % g.axis[0].count;
      for (int64_t line = lines.begin; line < lines.end; ++line) {
        if (line > lines.begin) {
          for (int64_t n = 0; n < gap; ++n) places[count++] = -1;
        }
        const int64_t row =
            (g.axis[0].start + j0 * g.axis[0].step) * g.extent[1] + g.axis[1].start + line * g.axis[1].step;
        const int64_t first =
            image * destination.image + (row * g.extent[2] + g.axis[2].start) * destination.pixel;
        for (int64_t x = columns.begin; x < columns.end; ++x)
          places[count++] = first + x * g.axis[2].step * destination.pixel;
      }
    }
    return count;
  }

  Inside inside(int64_t m) const {
    const int64_t tap[] = {m / plan.taps[2] / plan.taps[1], m / plan.taps[2] % plan.taps[1],
                           m % plan.taps[2]};
    Inside positions;
    for (int a = 0; a < kAxes; ++a) positions.axis[a] = positions_inside(plan.g.axis[a], tap[a]);
    if (plan.joined_taps) positions.axis[2] = {0, plan.g.axis[2].count};
    return positions;
  }

  // Lines are cut into strips of one height; the last one may begin inside the one before.
  int64_t find_strips(int64_t places, int64_t length, int64_t height, const Inside* inside_of,
                      Strip* strip) const {
    const int64_t row = plan.columns(columns.size()).length;
    const int64_t positions = plan.positions(lines.size(), columns.size());
    int64_t count = 0;
    for (int64_t line = 0; line < places / length; ++line) {
      for (int64_t at = 0; at < length; at += height) {
        Strip& s = strip[count++];
        const int64_t first = min_of(at, length - height), last = first + height - 1;
        const int64_t plane = plan.units() == 1 ? 0 : (planes.begin + line) % plan.g.axis[0].count;
        const Range rows = {first / row, last / row + 1};
        s.place = line * length + first;
        s.copy = line * positions + first;
        s.axis[0] = {plane, plane + 1};
        s.axis[1] = {lines.begin + rows.begin, lines.begin + rows.end};
        s.axis[2] = columns;
        if (rows.size() == 1)
          s.axis[2] = {columns.begin + first % row, min_of(columns.begin + last % row + 1, columns.end)};
        s.inside = true;
        for (int64_t m = 0; m < plan.units() && plan.units() > 1; ++m) {
          for (int a = 0; a < kAxes; ++a)
            s.inside &=
                s.axis[a].begin >= inside_of[m].axis[a].begin && s.axis[a].end <= inside_of[m].axis[a].end;
        }
      }
    }
    return count;
  }

  // The distances of all taps in the copy, and in panels with `chunks` of each tap, of which the slice begins
  // with `first_chunk`.
  void find_taps(int64_t first_chunk, int64_t chunks, int64_t pitch, Tap* tap) const {
    const CopyAxis across = plan.columns(columns.size()), down = plan.rows(lines.size());
    for (int64_t m = 0; m < plan.units(); ++m) {
      const int64_t m0 = m / plan.taps[2] / plan.taps[1], m1 = m / plan.taps[2] % plan.taps[1],
                    m2 = m % plan.taps[2];
      const int64_t row = down.run_of(m1) * down.length + down.in_run(m1);
      const int64_t run = m0 * across.runs + across.run_of(m2);
      tap[m].copy = ((run * down.size() + row) * across.length + across.in_run(m2)) * pitch;
      tap[m].panel = (m * chunks + first_chunk) * Parts * kChunkBytes;
    }
  }
};

// Those taps that lie inside of the source for some pixel.
inline Windows used_taps(const Windows& all, const Inside* inside_of, const Strip* strip, int64_t strips,
                         Tap* used) {
  Windows some = all;
  some.tap = used;
  some.taps = 0;
  for (int64_t m = 0; m < all.taps; ++m) {
    bool reads = false;
    for (int64_t s = 0; s < strips; ++s) {
      bool meets = true;
      for (int a = 0; a < kAxes; ++a) {
        const Range x = strip[s].axis[a], y = inside_of[m].axis[a];
        meets &= x.begin < y.end && y.begin < x.end;
      }
      reads |= meets;
    }
    used[some.taps] = all.tap[m];
    some.taps += reads;
  }
  return some;
}

}  // namespace cnnext::cpu::CNNEXT_ISA

#endif  // AVX-512
