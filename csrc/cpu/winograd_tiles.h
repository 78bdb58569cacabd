// The tiles of a Winograd convolution: where they lie, which taps they are taken through, and how their
// pixels are read, a vector of channels at a time.
#pragma once

#include "conv_gather.h"
#include "winograd_transforms.h"

namespace cnnext::cpu::CNNEXT_ISA {

// Rounds up to an odd number of cache lines, in elements: planes at powers of two would collide in the cache.
CNNEXT_INLINE int64_t odd_lines(int64_t elements) { return (ceil_div(elements, 16) | 1) * 16; }

// The taps of a kernel in blocks that a tile takes at once. Along an axis with a stride, every stride-th tap
// reads a grid of its own, on which the stride is one; longer filters are cut. The sum over the blocks is
// part of the sum over the source channels.
struct TapBlocks {
  TapBlocks(const Gather& gather, const int64_t tile_taps[2]) : g(gather), most{tile_taps[0], tile_taps[1]} {
    for (int a = 0; a < 2; ++a) {
      const PhaseAxis& axis = g.axis[a + 1];
      for (int64_t first = 0; first < min_of(axis.source_step, axis.taps); ++first) {
        count[a] += ceil_div(ceil_div(axis.taps - first, axis.source_step), most[a]);
      }
    }
  }
  int64_t size() const { return count[0] * count[1]; }

  // A block as a gather of its taps.
  Gather at(int64_t index) const {
    Gather part = g;
    const int64_t number[2] = {index / count[1], index % count[1]};
    for (int a = 0; a < 2; ++a) take(part.axis[a + 1], most[a], number[a]);
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
  int64_t most[2], count[2] = {};
};

// Tiles of a destination grid. With dilation, each residue of the position is a grid of its own.
struct TileGrid {
  TileGrid(const Gather& gather, int64_t height, int64_t width) : g(gather), size_of{height, width} {
    for (int a = 0; a < 2; ++a) {
      const PhaseAxis& axis = g.axis[a + 1];
      residues[a] = axis.source_step == 1 && axis.taps > 1 ? axis.offset_step : 1;
      tiles[a] = ceil_div(ceil_div(axis.count, residues[a]), size_of[a]);
    }
  }
  int64_t per_image() const { return residues[0] * residues[1] * tiles[0] * tiles[1]; }
  int64_t size() const { return g.images * per_image(); }

  struct Tile {
    int64_t image, residue[2], number[2];
    int64_t first[2];  // destination position; its pixels are `residues` apart
  };
  Tile at(int64_t index) const {
    Tile tile;
    for (int a = 1; a >= 0; --a) {
      tile.number[a] = index % tiles[a];
      index /= tiles[a];
    }
    for (int a = 1; a >= 0; --a) {
      tile.residue[a] = index % residues[a];
      index /= residues[a];
    }
    tile.image = index;
    place(tile);
    return tile;
  }
  void advance(Tile& tile) const {
    const auto carries = [](int64_t& digit, int64_t base) {
      return ++digit == base ? (digit = 0, true) : false;
    };
    if (carries(tile.number[1], tiles[1]) && carries(tile.number[0], tiles[0]) &&
        carries(tile.residue[1], residues[1]) && carries(tile.residue[0], residues[0])) {
      ++tile.image;
    }
    place(tile);
  }

  Gather g;
  int64_t size_of[2], residues[2], tiles[2];  // pixels of a tile

 private:
  void place(Tile& tile) const {
    for (int a = 0; a < 2; ++a) tile.first[a] = tile.residue[a] + tile.number[a] * size_of[a] * residues[a];
  }
};

// What tiles read or write: a plane, and where pixel (i, j) of a tile's box lies in it.
struct TilePlane {
  int64_t extent[2], first_step[2], offset[2], step[2];

  static TilePlane destination(const TileGrid& grid) {
    return {{grid.g.extent[1], grid.g.extent[2]}, {1, 1}, {0, 0}, {grid.residues[0], grid.residues[1]}};
  }
  // Through a block of taps.
  static TilePlane source(const TileGrid& grid, const Gather& taps) {
    const PhaseAxis &h = taps.axis[1], &w = taps.axis[2];
    return {{h.source, w.source},
            {h.source_step, w.source_step},
            {h.offset, w.offset},
            {grid.residues[0] * h.source_step, grid.residues[1] * w.source_step}};
  }

  int64_t position(const TileGrid::Tile& tile, int a, int64_t i) const {
    return tile.first[a] * first_step[a] + offset[a] + i * step[a];
  }
  // The pixels' numbers in memory, -1 outside the plane.
  template <int Height, int Width>
  void pixels(const TileGrid::Tile& tile, int64_t* pixel) const {
    for (int i = 0; i < Height; ++i) {
      const int64_t h = position(tile, 0, i);
      for (int j = 0; j < Width; ++j) {
        const int64_t w = position(tile, 1, j);
        const bool inside = h >= 0 && h < extent[0] && w >= 0 && w < extent[1];
        pixel[i * Width + j] = inside ? h * extent[1] + w : -1;
      }
    }
  }
};

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
    TileGrid::Tile tile = grid.at(tiles.begin);
    for (int64_t t = tiles.begin; t < tiles.end; ++t, grid.advance(tile)) {
      int64_t pixel[Height * Width];
      plane.pixels<Height, Width>(tile, pixel);
      const T* image = from + tile.image * s.image;
      for (int64_t c = channels.begin; c < channels.end; c += L) {
        const int64_t count = min_of(L, channels.end - c);
        Vec<A> d[Height * Width];
        for (int n = 0; n < Height * Width; ++n) {
          d[n] = pixel[n] < 0 ? Vec<A>{} : load_some(image + pixel[n] * s.pixel + c, count);
        }
        visit(t, c, d, Width);
      }
    }
  }

  // Strips of tiles in a row are turned to channels last first.
  template <class Visit>
  void channels_first(Range tiles, Range channels, Visit&& visit) const {
    constexpr int64_t kMostWidth = 36;
    const int64_t shift = grid.size_of[1], strip_tiles = (kMostWidth - Width) / shift + 1;
    Vec<A> strip[Height * kMostWidth];
    for (int64_t t = tiles.begin; t < tiles.end;) {
      const TileGrid::Tile tile = grid.at(t);
      const int64_t row_end = t + grid.tiles[1] - t % grid.tiles[1];
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
    const int64_t step = plane.step[1], h = plane.position(tile, 0, i), w = plane.position(tile, 1, 0);
    const bool inside = h >= 0 && h < plane.extent[0];
    const int64_t low = inside ? clamp(ceil_div(max_of(-w, 0), step), 0, width) : width;
    const int64_t high = inside ? clamp(ceil_div(max_of(plane.extent[1] - w, 0), step), low, width) : width;
    fill_zero(to, low * L);
    if (count < L) fill_zero(to + low * L, (high - low) * L);
    if (low < high) {
      const T* row = channel + h * plane.extent[1] + w + low * step;
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
  TilePlane plane;
  const T* from;
  Strides s;
};

}  // namespace cnnext::cpu::CNNEXT_ISA
