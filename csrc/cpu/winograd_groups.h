// What Winograd's algorithm does apart for narrow groups, of one or two vectors of channels: a copy of the
// source in which pixels are close to each other, and products in the place of the patches. Two groups of
// half a vector are joined: side by side they are transformed as one, and only the products tell them apart.
#pragma once

#include "conv_group_rows.h"
#include "winograd_tiles.h"

namespace cnnext::cpu::CNNEXT_ISA {

// A tile of the product of a narrow group's patches, [Rows][Row], and as many weights as it has channels, in
// the place of the patches.
template <class V, int Vectors, int64_t Row, int Rows>
void tile_in_place(const float* weights, float* patches) {
  constexpr int L = sizeof(V) / sizeof(float);
  V sum[Rows][Vectors] = {};
#pragma GCC unroll 1
  for (int d = 0; d < Vectors * L; ++d, weights += kCols<float>) {
    V y[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) y[v] = load_unaligned<V>(weights + v * L);
#pragma GCC unroll 14
    for (int r = 0; r < Rows; ++r) {
      const V x = patches[r * Row + d] - V{};
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sum[r][v] += x * y[v];
    }
  }
#pragma GCC unroll 14
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) store_unaligned(patches + r * Row + v * L, sum[r][v]);
  }
}
template <class V, int Vectors, int64_t Row, int Rows = kRows>
auto tile_in_place_of(int64_t rows) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return tile_in_place_of<V, Vectors, Row, Rows - 1>(rows);
  }
  return &tile_in_place<V, Vectors, Row, Rows>;
}

constexpr int64_t kNarrowTiles = 2 * kRows;    // at a time
constexpr int64_t kCopiedElements = 32 << 10;  // of a band at most

// What a block of tiles copies of its group: one or more images, or a band of one. No images if that is too
// much.
struct GroupCopy {
  GroupCopy() = default;
  GroupCopy(const TileGrid& grid, const TileSpace& space, const int64_t patch[kAxes], int64_t channels) {
    const bool may_be_cut = grid.per_image() == grid.tiles[1] * grid.tiles[2] && space.extent[0] == 1;
    for (int64_t bands = 1; bands <= (may_be_cut ? grid.tiles[1] : 1); ++bands) {
      if (grid.tiles[1] % bands != 0) continue;
      padded = space.padded(grid, patch, grid.tiles[1] / bands);
      if (padded.pixels() * channels > kCopiedElements) continue;
      images = bands == 1 ? max_of(1, kNarrowTiles / grid.per_image()) : 1;
      tiles = grid.per_image() / bands * images;
      const int64_t* extent = grid.g.extent;
      results = bands == 1 ? extent[0] * extent[1] * extent[2]
                           : grid.tiles[1] / bands * grid.size_of[1] * extent[2];
      return;
    }
  }
  TileSpace padded = {};
  int64_t images = 0, tiles = 0, results = 0;  // results: destination pixels of an image
};

// The destination pixels of a block of tiles: some of each of its images, from the first on.
struct BlockPixels {
  BlockPixels(const GroupCopy& copy, const TileGrid& grid, Range tiles) {
    const TileGrid::Tile tile = grid.at(tiles.begin);
    image = tile.image;
    images = ceil_div(tiles.size(), grid.per_image());
    first = tile.first[1] * grid.g.extent[2];
    pixels = min_of(copy.results, grid.g.extent[0] * grid.g.extent[1] * grid.g.extent[2] - first);
  }
  int64_t image, images, first, pixels;
};

// Some channels of an image with zeros for the padding, to[padded's pixel][channel]: `padded` is `space` from
// another row on, and with its padding.
template <class T>
T* copy_padded(const T* image, const Strides& s, const TileSpace& space, const TileSpace& padded,
               int64_t channels, T* to) {
  const GroupRows row(space.offset[2], padded.extent[2]);
  const int64_t first = space.offset[1] - padded.offset[1], all = padded.extent[1];  // rows
  const int64_t above = clamp(-first, 0, all), end = clamp(space.extent[1] - first, above, all);
  const Range rows = {first + above, first + end};
  const auto fill = [&](int64_t count) {
    fill_zero(to, count * row.size() * channels);
    to += count * row.size() * channels;
  };
  for (int64_t d = 0; d < padded.extent[0]; ++d, image += space.extent[1] * space.extent[2] * s.pixel) {
    fill(above);
    if (s.channel == 1) {
      copy_group_rows(image, s.pixel, space.extent[2], rows, row, channels, channels, channels, to);
    } else {
      turn_group_rows(image, s.channel, space.extent[2], rows, row, channels, channels, to);
    }
    to += rows.size() * row.size() * channels;
    fill(all - end);
  }
  return to;
}

}  // namespace cnnext::cpu::CNNEXT_ISA
