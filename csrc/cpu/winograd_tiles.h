// The tiles of a Winograd convolution: where they lie, which taps they are taken through, and how their
// pixels are read, a vector of channels at a time.
#pragma once

#include "conv_gather.h"
#include "winograd_transforms.h"

namespace cnnext::cpu::CNNEXT_ISA {

// Rounds up to an odd number of cache lines, in elements: planes at powers of two would collide in the cache.
CNNEXT_INLINE int64_t odd_lines(int64_t elements) { return (ceil_div(elements, 16) | 1) * 16; }

// The taps of a kernel in blocks that a tile takes at once. Along an axis with a stride, every stride-th tap
// reads a grid of its own, on which the stride is one; longer filters are cut, the first of three axes into
// single taps. The sum over the blocks is part of the sum over the source channels.
struct TapBlocks {
  TapBlocks(const Gather& gather, const int64_t tile_taps[kAxes]) : g(gather) {
    for (int a = 0; a < kAxes; ++a) {
      const PhaseAxis& axis = g.axis[a];
      most[a] = tile_taps[a];
      for (int64_t first = 0; first < min_of(axis.source_step, axis.taps); ++first) {
        count[a] += ceil_div(ceil_div(axis.taps - first, axis.source_step), most[a]);
      }
    }
  }
  int64_t size() const { return count[0] * count[1] * count[2]; }

  // A block as a gather of its taps.
  Gather at(int64_t index) const {
    Gather part = g;
    for (int a = kAxes - 1; a >= 0; --a) {
      take(part.axis[a], most[a], index % count[a]);
      index /= count[a];
    }
    return part;
  }

 private:
  static void take(PhaseAxis& axis, int64_t most_taps, int64_t number) {
    const int64_t step = axis.source_step;
    int64_t first = 0, taps = ceil_div(axis.taps, step);
    while (number >= ceil_div(taps, most_taps)) {
      number -= ceil_div(taps, most_taps);
      ++first;
      taps = ceil_div(axis.taps - first, step);
    }
    first += number * most_taps * step;
    axis.offset += first * axis.offset_step;
    axis.tap += first * axis.tap_step;
    axis.tap_step *= step;
    axis.taps = min_of(taps - number * most_taps, most_taps);
  }

  Gather g;
  int64_t most[kAxes], count[kAxes] = {};
};

// Tiles of a destination grid. With dilation, each residue of the position is a grid of its own.
struct TileGrid {
  TileGrid(const Gather& gather, const int64_t tile_size[kAxes]) : g(gather) {
    for (int a = 0; a < kAxes; ++a) {
      const PhaseAxis& axis = g.axis[a];
      size_of[a] = tile_size[a];
      residues[a] = axis.source_step == 1 && size_of[a] > 1 ? axis.offset_step : 1;
      tiles[a] = ceil_div(ceil_div(axis.count, residues[a]), size_of[a]);
    }
  }
  int64_t per_image() const {
    return residues[0] * residues[1] * residues[2] * tiles[0] * tiles[1] * tiles[2];
  }
  int64_t size() const { return g.images * per_image(); }
  int64_t source_pixels() const { return g.axis[0].source * g.axis[1].source * g.axis[2].source; }

  struct Tile {
    int64_t image, residue[kAxes], number[kAxes];
    int64_t first[kAxes];  // destination position; its pixels are `residues` apart
  };
  Tile at(int64_t index) const {
    Tile tile;
    for (int a = kAxes - 1; a >= 0; --a) {
      tile.number[a] = index % tiles[a];
      index /= tiles[a];
    }
    for (int a = kAxes - 1; a >= 0; --a) {
      tile.residue[a] = index % residues[a];
      index /= residues[a];
    }
    tile.image = index;
    place(tile);
    return tile;
  }
  void advance(Tile& tile) const {
    const auto carries = [](int64_t* digits, const int64_t* bases) {
      for (int a = kAxes - 1; a >= 0; --a) {
        if (++digits[a] < bases[a]) return false;
        digits[a] = 0;
      }
      return true;
    };
    if (carries(tile.number, tiles) && carries(tile.residue, residues)) ++tile.image;
    place(tile);
  }

  Gather g;
  int64_t size_of[kAxes], residues[kAxes], tiles[kAxes];  // pixels of a tile

 private:
  void place(Tile& tile) const {
    for (int a = 0; a < kAxes; ++a)
      tile.first[a] = tile.residue[a] + tile.number[a] * size_of[a] * residues[a];
  }
};

// What tiles read or write: a volume, and where pixel (i, j) of a tile's box lies in it.
struct TileSpace {
  int64_t extent[kAxes], first_step[kAxes], offset[kAxes], step[kAxes];

  static TileSpace destination(const TileGrid& grid) {
    TileSpace space;
    for (int a = 0; a < kAxes; ++a) {
      space.extent[a] = grid.g.extent[a];
      space.first_step[a] = 1;
      space.offset[a] = 0;
      space.step[a] = grid.residues[a];
    }
    return space;
  }
  // Through a block of taps.
  static TileSpace source(const TileGrid& grid, const Gather& taps) {
    TileSpace space;
    for (int a = 0; a < kAxes; ++a) {
      const PhaseAxis& axis = taps.axis[a];
      space.extent[a] = axis.source;
      space.first_step[a] = axis.source_step;
      space.offset[a] = axis.offset;
      space.step[a] = grid.residues[a] * axis.source_step;
    }
    return space;
  }

  int64_t position(const TileGrid::Tile& tile, int a, int64_t i) const {
    return tile.first[a] * first_step[a] + offset[a] + i * step[a];
  }
  // The number of the first pixel of row i, -1 outside the volume.
  int64_t row(const TileGrid::Tile& tile, int64_t i) const {
    const int64_t d = position(tile, 0, 0), h = position(tile, 1, i);
    const bool inside = d >= 0 && d < extent[0] && h >= 0 && h < extent[1];
    return inside ? (d * extent[1] + h) * extent[2] : -1;
  }
  // The pixels' numbers in memory, -1 outside the volume.
  template <int Height, int Width>
  void pixels(const TileGrid::Tile& tile, int64_t* pixel) const {
    for (int i = 0; i < Height; ++i) {
      const int64_t first = row(tile, i);
      for (int j = 0; j < Width; ++j) {
        const int64_t w = position(tile, 2, j);
        pixel[i * Width + j] = first >= 0 && w >= 0 && w < extent[2] ? first + w : -1;
      }
    }
  }
};

// What tiles with boxes of that height read or write of some channels: whole rows of pixels, from the first
// tile's to the last one's.
template <class T>
FetchedRows fetched_tiles(const T* from, Strides s, const TileGrid& grid, const TileSpace& space, Range tiles,
                          int64_t height, Range channels, int64_t calls) {
  if (tiles.size() <= 0) return {};
  const int64_t* extent = space.extent;
  const int64_t pixels = extent[0] * extent[1] * extent[2];
  const auto row_of = [&](const TileGrid::Tile& tile, int64_t i) {
    const int64_t d = clamp(space.position(tile, 0, 0), 0, extent[0] - 1);
    const int64_t h = clamp(space.position(tile, 1, i), 0, extent[1]);
    return tile.image * pixels + (d * extent[1] + h) * extent[2];
  };
  const TileGrid::Tile first_tile = grid.at(tiles.begin);
  const int64_t begin = row_of(first_tile, 0), end = row_of(grid.at(tiles.end - 1), height);
  if (end <= begin) return {};
  if (s.channel == 1) {
    return {from + begin * s.pixel + channels.begin, channels.size(), {end - begin, s.pixel}, {1, 0}, calls};
  }
  const int64_t image = first_tile.image, first = begin - image * pixels;
  return {from + image * s.image + channels.begin * s.channel + first,
          min_of(end - begin, pixels - first),
          {channels.size(), s.channel},
          {1, 0},
          calls};
}

// Reads a box of Height x Width pixels for each tile.
template <class T, int Height, int Width>
struct TileReader {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

  // visit(tile, channel, d, step) for each tile and each L channels from the first: pixel (i, j) of the box
  // is d[i * step + j], zero outside the plane and beyond the last channel.
  template <class Visit>
  void operator()(Range tiles, Range channels, Visit&& visit) const {
    if (s.channel == 1) {
      channels_last(tiles, channels, visit);
    } else {
      channels_first(tiles, channels, visit);
    }
  }

  template <class Visit>
  void channels_last(Range tiles, Range channels, Visit&& visit) const {
    struct Box {
      const T* image;
      int64_t pixel[Height * Width];
    };
    TileGrid::Tile tile = grid.at(tiles.begin);
    const auto place = [&](Box& box) {
      box.image = from + tile.image * s.image;
      space.pixels<Height, Width>(tile, box.pixel);
    };
    Box box, next;  // which is fetched meanwhile
    place(box);
    for (int64_t t = tiles.begin; t < tiles.end; ++t, box = next) {
      grid.advance(tile);
      place(next);
      for (int64_t c = channels.begin; c < channels.end; c += L) {
        const int64_t count = min_of(L, channels.end - c);
        Vec<A> d[Height * Width];
        for (int n = 0; n < Height * Width; ++n) {
          d[n] = box.pixel[n] < 0 ? Vec<A>{} : load_some(box.image + box.pixel[n] * s.pixel + c, count);
          __builtin_prefetch(next.image + next.pixel[n] * s.pixel + c);
        }
        visit(t, c, d, Width);
      }
    }
  }

  // Strips of tiles in a row are turned to channels last first.
  template <class Visit>
  void channels_first(Range tiles, Range channels, Visit&& visit) const {
    constexpr int64_t kMostWidth = 36;
    const int64_t shift = grid.size_of[2], strip_tiles = (kMostWidth - Width) / shift + 1;
    Vec<A> strip[Height * kMostWidth];
    for (int64_t t = tiles.begin; t < tiles.end;) {
      const TileGrid::Tile tile = grid.at(t);
      const int64_t row_end = t + grid.tiles[2] - t % grid.tiles[2];
      const int64_t end = min_of(min_of(row_end, tiles.end), t + strip_tiles);
      const int64_t width = (end - t - 1) * shift + Width;
      for (int64_t c = channels.begin; c < channels.end; c += L) {
        const int64_t count = min_of(L, channels.end - c);
        for (int i = 0; i < Height; ++i) {
          load_row(from + tile.image * s.image + c * s.channel, tile, i, width, count,
                   reinterpret_cast<A*>(strip + i * width));
        }
        for (int64_t at = t; at < end; ++at) visit(at, c, strip + (at - t) * shift, width);
      }
      t = end;
    }
  }

  // Row i of a strip, to[w][L].
  void load_row(const T* channel, const TileGrid::Tile& tile, int i, int64_t width, int64_t count,
                A* to) const {
    const int64_t step = space.step[2], first = space.row(tile, i), w = space.position(tile, 2, 0);
    const bool inside = first >= 0;
    const int64_t low = inside ? clamp(ceil_div(max_of(-w, 0), step), 0, width) : width;
    const int64_t high = inside ? clamp(ceil_div(max_of(space.extent[2] - w, 0), step), low, width) : width;
    fill_zero(to, low * L);
    if (count < L) fill_zero(to + low * L, (high - low) * L);
    if (low < high) {
      const T* row = channel + first + w + low * step;
      A skipped[L];
      if (step <= 2) {
        transpose_block(row, s.channel, count, (high - low - 1) * step + 1, [&](int64_t j) {
          return j & (step - 1) ? skipped : to + (low + (j >> (step - 1))) * L;
        });
      } else {
        for (int64_t lane = 0; lane < count; ++lane) {
          for (int64_t j = low; j < high; ++j)
            to[j * L + lane] = load_one(row + lane * s.channel + (j - low) * step);
        }
      }
    }
    fill_zero(to + high * L, (width - high) * L);
  }

  const TileGrid& grid;
  TileSpace space;
  const T* from;
  Strides s;
};

}  // namespace cnnext::cpu::CNNEXT_ISA
