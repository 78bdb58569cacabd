// The tiles of a Winograd convolution: where they lie, and how their pixels are read, a vector of channels at
// a time.
#pragma once

#include "conv_gather.h"
#include "winograd_transforms.h"

namespace cnnext::cpu::CNNEXT_ISA {

// Rounds up to an odd number of cache lines, in elements: planes at powers of two would collide in the cache.
CNNEXT_INLINE int64_t odd_lines(int64_t elements) { return (ceil_div(elements, 16) | 1) * 16; }

// Tiles of a destination grid.
struct TileGrid {
  explicit TileGrid(const Gather& gather) : g(gather) {
    for (int a = 0; a < 2; ++a) {
      const PhaseAxis& axis = g.axis[a + 1];
      residues[a] = axis.offset_step;
      tiles[a] = ceil_div(ceil_div(axis.count, residues[a]), kOutputs);
    }
  }
  int64_t per_image() const { return residues[0] * residues[1] * tiles[0] * tiles[1]; }
  int64_t size() const { return g.images * per_image(); }

  struct Tile {
    int64_t image, first[2];  // destination position; its pixels are `residues` apart
  };
  Tile at(int64_t index) const {
    Tile tile;
    for (int a = 1; a >= 0; --a) {
      const int64_t t = index % tiles[a];
      index /= tiles[a];
      tile.first[a] = t * kOutputs * residues[a];
    }
    for (int a = 1; a >= 0; --a) {
      tile.first[a] += index % residues[a];
      index /= residues[a];
    }
    tile.image = index;
    return tile;
  }

  // Calls visit(n, pixel) for a box of size x size positions in memory order, pixel = -1 outside the plane.
  template <class Visit>
  void for_each(const Tile& tile, int size, const int64_t offset[2], const int64_t extent[2],
                Visit&& visit) const {
    for (int i = 0; i < size; ++i) {
      const int64_t h = tile.first[0] + offset[0] + i * residues[0];
      for (int j = 0; j < size; ++j) {
        const int64_t w = tile.first[1] + offset[1] + j * residues[1];
        const bool inside = h >= 0 && h < extent[0] && w >= 0 && w < extent[1];
        visit(i * size + j, inside ? h * extent[1] + w : -1);
      }
    }
  }

  Gather g;
  int64_t residues[2], tiles[2];
};

// Reads a box of Size x Size pixels for each tile, `offset` from the tile's first position.
template <class T, int Size>
struct TileReader {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

  TileReader(const TileGrid& tile_grid, const T* source, Strides strides, const int64_t first[2],
             const int64_t plane[2])
      : grid(tile_grid), from(source), s(strides), offset{first[0], first[1]}, extent{plane[0], plane[1]} {}

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
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const TileGrid::Tile tile = grid.at(t);
      int64_t pixel[Size * Size];
      grid.for_each(tile, Size, offset, extent, [&](int n, int64_t at) { pixel[n] = at; });
      const T* image = from + tile.image * s.image;
      for (int64_t c = channels.begin; c < channels.end; c += L) {
        const int64_t count = min_of(L, channels.end - c);
        Vec<A> d[Size * Size];
        for (int n = 0; n < Size * Size; ++n) {
          d[n] = pixel[n] < 0 ? Vec<A>{} : load_some(image + pixel[n] * s.pixel + c, count);
        }
        visit(t, c, d, Size);
      }
    }
  }

  // Strips of tiles in a row are turned to channels last first.
  template <class Visit>
  void channels_first(Range tiles, Range channels, Visit&& visit) const {
    constexpr int64_t kStripTiles = 8, kStripWidth = kStripTiles * kOutputs + Size - kOutputs;
    Vec<A> strip[Size * kStripWidth];
    for (int64_t t = tiles.begin; t < tiles.end;) {
      const TileGrid::Tile tile = grid.at(t);
      const int64_t row_end = t + grid.tiles[1] - t % grid.tiles[1];
      const int64_t end = min_of(min_of(row_end, tiles.end), t + kStripTiles);
      const int64_t width = (end - t) * kOutputs + Size - kOutputs;
      for (int64_t c = channels.begin; c < channels.end; c += L) {
        const int64_t count = min_of(L, channels.end - c);
        for (int i = 0; i < Size; ++i) {
          load_row(from + tile.image * s.image + c * s.channel, tile, i, width, count,
                   reinterpret_cast<A*>(strip + i * width));
        }
        for (int64_t at = t; at < end; ++at) visit(at, c, strip + (at - t) * kOutputs, width);
      }
      t = end;
    }
  }

  // Row i of a strip, to[w][L].
  void load_row(const T* plane, const TileGrid::Tile& tile, int i, int64_t width, int64_t count,
                A* to) const {
    const int64_t step = grid.residues[1];
    const int64_t h = tile.first[0] + offset[0] + i * grid.residues[0], w = tile.first[1] + offset[1];
    const bool inside = h >= 0 && h < extent[0];
    const int64_t low = inside ? clamp(ceil_div(max_of(-w, 0), step), 0, width) : width;
    const int64_t high = inside ? clamp(ceil_div(max_of(extent[1] - w, 0), step), low, width) : width;
    fill_zero(to, low * L);
    if (count < L) fill_zero(to + low * L, (high - low) * L);
    const T* row = plane + h * extent[1] + w + low * step;
    if (step == 1) {
      transpose_block(row, s.channel, count, high - low, [&](int64_t j) { return to + (low + j) * L; });
    } else {
      for (int64_t lane = 0; lane < count; ++lane) {
        for (int64_t j = low; j < high; ++j)
          to[j * L + lane] = load_one(row + lane * s.channel + (j - low) * step);
      }
    }
    fill_zero(to + high * L, (width - high) * L);
  }

  TileGrid grid;
  const T* from;
  Strides s;
  int64_t offset[2], extent[2];
};

}  // namespace cnnext::cpu::CNNEXT_ISA
