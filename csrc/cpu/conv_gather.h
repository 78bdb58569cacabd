// One phase of a convolution (geometry.h) as a matrix, and how blocks of it are packed.
//
// The matrix has a row for each destination pixel (image, j0, j1, j2) and a column for each (tap, source
// channel), the channel fastest; its elements are those of the source, zero in the padding. Packing copies a
// block of it into a small buffer in the cache, converting 16-bit types to float; the matrix as a whole never
// exists.
#pragma once

#include "copy.h"
#include "fetch_ahead.h"
#include "range.h"

namespace cnnext::cpu::CNNEXT_ISA {

struct Gather {
  PhaseAxis axis[kAxes];
  int64_t extent[kAxes];     // of the destination
  int64_t images, channels;  // of the source, in one group

  int64_t pixels() const { return images * axis[0].count * axis[1].count * axis[2].count; }
  int64_t taps() const { return axis[0].taps * axis[1].taps * axis[2].taps; }
  int64_t depth() const { return taps() * channels; }
  bool covers_destination() const {  // so that pixels are numbered as in the destination
    bool all = true;
    for (int a = 0; a < kAxes; ++a)
      all &= axis[a].start == 0 && axis[a].step == 1 && axis[a].count == extent[a];
    return all;
  }
};

constexpr PhaseAxis kUnitAxis = {0, 1, 1, 1, 1, 1, 0, 1, 0, 1};

// An axis without a window may be joined with the next one, so that rows are long: a 1x1 convolution is one
// product.
CNNEXT_INLINE bool is_plain(const PhaseAxis& x) {
  return x.taps == 1 && x.tap == 0 && x.offset == 0 && x.source_step == 1 && x.step == 1 &&
         x.count == x.source;
}
CNNEXT_INLINE Gather joined(Gather g) {
  for (int a = kAxes - 1; a > 0; --a) {
    if (!is_plain(g.axis[a]) || !is_plain(g.axis[a - 1])) continue;
    g.axis[a].count = g.axis[a].source = g.extent[a] = g.axis[a].count * g.axis[a - 1].count;
    for (int b = a - 1; b > 0; --b) g.axis[b] = g.axis[b - 1], g.extent[b] = g.extent[b - 1];
    g.axis[0] = kUnitAxis;
    g.extent[0] = 1;
  }
  return g;
}

// A destination pixel.
struct Pixel {
  int64_t image, j[kAxes];
};

CNNEXT_INLINE Pixel pixel_at(const Gather& g, int64_t index) {
  Pixel p;
  for (int a = kAxes - 1; a >= 0; --a) {
    p.j[a] = index % g.axis[a].count;
    index /= g.axis[a].count;
  }
  p.image = index;
  return p;
}

CNNEXT_INLINE void advance(const Gather& g, Pixel& p, int64_t by) {  // by at most to the end of the last axis
  p.j[2] += by;
  for (int a = kAxes - 1; a >= 0 && p.j[a] == g.axis[a].count; --a) {
    p.j[a] = 0;
    ++(a > 0 ? p.j[a - 1] : p.image);
  }
}

// Taps of destination position j that fall inside the source.
CNNEXT_INLINE Range taps_inside(const PhaseAxis& x, int64_t j) {
  const int64_t first = x.source_index(j, 0);
  const int64_t begin = min_of(x.taps, ceil_div(max_of(0, -first), x.offset_step));
  return {begin, max_of(begin, min_of(x.taps, ceil_div(max_of(0, x.source - first), x.offset_step)))};
}

// Destination positions for which tap m falls inside the source.
CNNEXT_INLINE Range positions_inside(const PhaseAxis& x, int64_t m) {
  const int64_t first = x.source_index(0, m);
  const int64_t begin = min_of(x.count, ceil_div(max_of(0, -first), x.source_step));
  return {begin, max_of(begin, min_of(x.count, ceil_div(max_of(0, x.source - first), x.source_step)))};
}

// The positions of every n-th destination pixel along an axis, from a first one on.
inline PhaseAxis every_nth(PhaseAxis x, int64_t first, int64_t n) {
  x.start += first * x.step;
  x.offset += first * x.source_step;
  x.step *= n;
  x.source_step *= n;
  x.count = ceil_div(max_of(0, x.count - first), n);
  return x;
}

// Those of its positions that lie in a range of destination pixels.
inline Range positions_in(const PhaseAxis& x, int64_t begin, int64_t end) {
  const int64_t first = min_of(x.count, ceil_div(max_of(0, begin - x.start), x.step));
  return {first, max_of(first, min_of(x.count, ceil_div(max_of(0, end - x.start), x.step)))};
}

// Pairs of a destination position and a tap that falls inside the source.
CNNEXT_INLINE int64_t products_inside_axis(const PhaseAxis& x) {
  int64_t inside = 0;
  for (int64_t m = 0; m < x.taps; ++m) inside += positions_inside(x, m).size();
  return inside;
}
// The same of pixels of one image.
CNNEXT_INLINE int64_t products_inside(const Gather& g) {
  return products_inside_axis(g.axis[0]) * products_inside_axis(g.axis[1]) * products_inside_axis(g.axis[2]);
}

// Source position along the first two axes, or -1 in the padding.
CNNEXT_INLINE int64_t source_row(const Gather& g, const Pixel& p, int64_t m0, int64_t m1) {
  const int64_t i0 = g.axis[0].source_index(p.j[0], m0), i1 = g.axis[1].source_index(p.j[1], m1);
  const bool inside = i0 >= 0 && i0 < g.axis[0].source && i1 >= 0 && i1 < g.axis[1].source;
  return inside ? i0 * g.axis[1].source + i1 : -1;
}

// to[pixel][column], for a source with channels last. Where the taps of the last axis read neighbours, all
// their channels are one run in memory. Each row of `to` has room for a vector behind its last column.
template <class T>
void pack_pixels(const T* source, Strides s, const Gather& g, Range pixels, Range columns, Acc<T>* to,
                 int64_t stride) {
  constexpr int64_t L = kLanes<Acc<T>>;
  const PhaseAxis& w = g.axis[2];
  const bool neighbours = w.offset_step == 1 && s.pixel == g.channels;
  const int64_t run_taps = neighbours ? w.taps : 1, run = run_taps * g.channels;
  const int64_t runs_per_row = w.taps / run_taps;
  const int64_t source_pixels = g.axis[0].source * g.axis[1].source * w.source;
  Pixel p = pixel_at(g, pixels.begin);
  for (int64_t at = 0; at < pixels.size();) {  // a row of pixels at a time
    const int64_t count = min_of(pixels.size() - at, w.count - p.j[2]);
    for (int64_t r = columns.begin / run; r * run < columns.end; ++r) {
      const Range part = {max_of(columns.begin - r * run, 0), min_of(columns.end - r * run, run)};
      const int64_t m = r / runs_per_row;
      const int64_t row = source_row(g, p, m / g.axis[1].taps, m % g.axis[1].taps);
      const int64_t first = w.source_index(p.j[2], r % runs_per_row);
      Acc<T>* out = to + at * stride + r * run + part.begin - columns.begin;
      // Pixels in [low, high) read the whole run, without leaving the plane if a vector is read instead.
      int64_t low = count, high = count;
      if (row >= 0) {
        int64_t last = w.source - run_taps;
        if (part.size() < L) {
          const int64_t behind = ceil_div(max_of(part.begin + L - g.channels, 0), s.pixel);
          last = min_of(last, source_pixels - 1 - behind - row * w.source);
        }
        low = clamp(ceil_div(max_of(-first, 0), w.source_step), 0, count);
        high = last < first ? low : clamp((last - first) / w.source_step + 1, low, count);
      }
      const T* from = source + p.image * s.image + (row * w.source + first) * s.pixel;
      const auto at_border = [&](int64_t n) {
        Acc<T>* border = out + n * stride - part.begin;
        int64_t begin = part.end, end = part.end;  // what is not padding
        if (row >= 0) {
          const int64_t position = first + n * w.source_step;
          begin = clamp(clamp(-position, 0, run_taps) * g.channels, part.begin, part.end);
          end = clamp(clamp(w.source - position, 0, run_taps) * g.channels, begin, part.end);
        }
        fill_zero(border + part.begin, begin - part.begin);
        if (begin < end) copy_run(from + n * w.source_step * s.pixel + begin, border + begin, end - begin);
        fill_zero(border + end, part.end - end);
      };
      for (int64_t n = 0; n < low; ++n) at_border(n);
      copy_runs(from + low * w.source_step * s.pixel + part.begin, w.source_step * s.pixel,
                out + low * stride, stride, part.size(), high - low);
      for (int64_t n = high; n < count; ++n) at_border(n);
    }
    at += count;
    advance(g, p, count);
  }
}

// Source pixel that a destination pixel reads through a tap, or the one at the edge next to it.
CNNEXT_INLINE int64_t nearest_source(const Gather& g, const Pixel& p, int64_t tap) {
  const PhaseAxis &h = g.axis[1], &w = g.axis[2];
  const int64_t row = source_row(g, p, tap / w.taps / h.taps, tap / w.taps % h.taps);
  return max_of(row, 0) * w.source + max_of(w.source_index(p.j[2], tap % w.taps), 0);
}

// What pack_pixels is going to read, as far as it is regular: the first run of each pixel.
template <class T>
FetchedRows fetched_pixels(const T* source, Strides s, const Gather& g, Range pixels, Range columns,
                           int64_t calls) {
  if (pixels.size() <= 0 || columns.size() <= 0) return {};
  const PhaseAxis &h = g.axis[1], &w = g.axis[2];
  const int64_t run = (w.offset_step == 1 && s.pixel == g.channels ? w.taps : 1) * g.channels;
  const int64_t tap = columns.begin / g.channels, channel = columns.begin % g.channels;
  const Pixel p = pixel_at(g, pixels.begin);
  return {source + p.image * s.image + nearest_source(g, p, tap) * s.pixel + channel,
          min_of(columns.size(), run - columns.begin % run),
          {min_of(pixels.size(), w.count), w.source_step * s.pixel},
          {ceil_div(pixels.size(), w.count), h.source_step * w.source * s.pixel},
          calls};
}

// Columns in another order: number tap * order.tap + channel * order.channel.
struct ColumnOrder {
  int64_t tap, channel;
};

// Channels of a tap whose columns fall into the range.
CNNEXT_INLINE Range channels_in(Range columns, ColumnOrder order, int64_t tap, int64_t channels) {
  const int64_t first = tap * order.tap;
  return {min_of(channels, ceil_div(max_of(columns.begin - first, 0), order.channel)),
          min_of(channels, ceil_div(max_of(columns.end - first, 0), order.channel))};
}

// The taps that have columns in the range: so many from the first on, the last one being followed by tap 0.
struct SomeTaps {
  int64_t first, count;
};
CNNEXT_INLINE SomeTaps taps_in(Range columns, ColumnOrder order, int64_t taps) {
  if (order.tap == 1) return {columns.begin % taps, min_of(columns.size(), taps)};
  const int64_t first = columns.begin / order.tap;
  return {first, ceil_div(columns.end, order.tap) - first};
}

// to[column][pixel], for a source with channels first: runs along the last axis.
template <class T>
void pack_columns(const T* source, Strides s, const Gather& g, Range pixels, Range columns, ColumnOrder order,
                  Acc<T>* to, int64_t stride) {
  constexpr int64_t L = kLanes<Acc<T>>;
  const int64_t width = g.axis[2].source, step = g.axis[2].source_step, taps = g.taps();
  if (columns.size() <= 0) return;  // there may be no taps either
  const SomeTaps some = taps_in(columns, order, taps);
  Pixel first_tap = {0, {0, 0, some.first}};  // its position
  for (int a = kAxes - 1; a > 0; --a) {
    first_tap.j[a - 1] = first_tap.j[a] / g.axis[a].taps;
    first_tap.j[a] %= g.axis[a].taps;
  }
  Pixel p = pixel_at(g, pixels.begin);
  for (int64_t at = 0; at < pixels.size();) {
    const int64_t count = min_of(pixels.size() - at, g.axis[2].count - p.j[2]);
    Pixel m = first_tap;
    for (int64_t n = 0, tap = some.first; n < some.count; ++n, tap = tap + 1 < taps ? tap + 1 : 0) {
      const int64_t row = source_row(g, p, m.j[0], m.j[1]);
      const int64_t first = g.axis[2].source_index(p.j[2], m.j[2]);
      const int64_t low = row < 0 ? count : clamp(ceil_div(max_of(-first, 0), step), 0, count);
      const int64_t high = row < 0 ? count : clamp(ceil_div(max_of(width - first, 0), step), low, count);
      const Range channels = channels_in(columns, order, tap, g.channels);
      const int64_t position = row * width + first + low * step;
      const T* from = source + p.image * s.image + position;
      Acc<T>* out = to + (tap * order.tap - columns.begin) * stride + at;
      // A vector may be written where the next runs will be, and read up to the end of the last channel.
      const bool room = at + low + L <= pixels.size();
      const int64_t behind = g.channels * s.channel - position - 2 * L;
      const int64_t last = room && behind >= 0 ? behind / s.channel + 1 : 0;
      for (int64_t c = channels.begin; c < channels.end; ++c) {
        Acc<T>* run = out + c * order.channel * stride;
        fill_zero(run, low);
        if (low < high) copy_strided(from + c * s.channel, step, run + low, high - low, c < last);
        fill_zero(run + high, count - high);
      }
      for (int a = kAxes - 1; a >= 0 && ++m.j[a] == g.axis[a].taps; --a) m.j[a] = 0;
    }
    at += count;
    advance(g, p, count);
  }
}

// What pack_columns is going to read, as far as it is regular: the pixels of the first tap.
template <class T>
FetchedRows fetched_columns(const T* source, Strides s, const Gather& g, Range pixels, Range columns,
                            ColumnOrder order, int64_t calls) {
  if (pixels.size() <= 0 || columns.size() <= 0) return {};
  const int64_t tap = order.channel == 1 ? columns.begin / order.tap : 0;
  const Range channels = channels_in(columns, order, tap, g.channels);
  const Pixel p = pixel_at(g, pixels.begin);
  return {source + p.image * s.image + channels.begin * s.channel + nearest_source(g, p, tap),
          pixels.size() * g.axis[1].source_step * g.axis[2].source_step,
          {channels.size(), s.channel},
          {1, 0},
          calls};
}

// Calls body(at, image, first, step, count) for each run of destination pixels in the range: `at` from its
// start, the first pixel's number in the destination, and the distance and number of pixels of the run.
template <class Body>
CNNEXT_INLINE void for_each_run(const Gather& g, Range pixels, Body&& body) {
  Pixel p = pixel_at(g, pixels.begin);
  for (int64_t at = 0; at < pixels.size();) {
    const int64_t count = min_of(pixels.size() - at, g.axis[2].count - p.j[2]);
    int64_t i[kAxes];
    for (int a = 0; a < kAxes; ++a) i[a] = g.axis[a].start + p.j[a] * g.axis[a].step;
    body(at, p.image, (i[0] * g.extent[1] + i[1]) * g.extent[2] + i[2], g.axis[2].step, count);
    at += count;
    advance(g, p, count);
  }
}

}  // namespace cnnext::cpu::CNNEXT_ISA
