// The tiles of a Winograd convolution: where they lie, which taps they are taken through, and how their
// pixels are read, a vector of channels at a time.
#pragma once

#include "conv_gather.h"
#include "winograd_transforms.h"

namespace cnnext::cpu::CNNEXT_ISA {

// The taps of a kernel in blocks that a tile takes at once. Along an axis with a stride that is not the
// tile's, every stride-th tap reads a grid of its own, on which the stride is one; longer filters are cut,
// the first of three axes into single taps. The sum over the blocks is part of the sum over the source
// channels.
struct TapBlocks {
  template <class Tile>
  TapBlocks(const Gather& gather, Tile) : g(gather) {
    for (int a = 0; a < kAxes; ++a) {
      const PhaseAxis& axis = g.axis[a];
      most[a] = Tile::kTapsOf[a];
      step[a] = ceil_div(axis.source_step, Tile::kStrideOf[a]);
      for (int64_t first = 0; first < min_of(step[a], axis.taps); ++first) {
        count[a] += ceil_div(ceil_div(axis.taps - first, step[a]), most[a]);
      }
    }
  }
  int64_t size() const { return count[0] * count[1] * count[2]; }

  // A block as a gather of its taps.
  Gather at(int64_t index) const {
    Gather part = g;
    for (int a = kAxes - 1; a >= 0; --a) {
      take(part.axis[a], step[a], most[a], index % count[a]);
      index /= count[a];
    }
    return part;
  }

 private:
  static void take(PhaseAxis& axis, int64_t step, int64_t most_taps, int64_t number) {
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
  int64_t most[kAxes], step[kAxes], count[kAxes] = {};
};

// Tiles of a destination grid. With dilation, each residue of the position is a grid of its own. Where tiles
// do not come out even, the last ones are short by one output, and so by a product or two: 14 pixels are 4 +
// 4 + 3 + 3, which takes 22 products instead of 24.
struct TileGrid {
  template <class Tile>
  TileGrid(const Gather& gather, Tile) : g(gather) {
    for (int a = 0; a < kAxes; ++a) {
      const PhaseAxis& axis = g.axis[a];
      size_of[a] = Tile::kSizeOf[a];
      products[a] = Tile::kProductsOf[a];
      lasts[a] = Tile::kLastsOf[a];
      source_step[a] = ceil_div(axis.source_step, Tile::kStrideOf[a]);
      residues[a] = axis.source_step == 1 && size_of[a] > 1 ? axis.offset_step : 1;
      const int64_t outputs = ceil_div(axis.count, residues[a]);
      tiles[a] = ceil_div(outputs, size_of[a]);
      full_tiles[a] = max_of(0, tiles[a] - (tiles[a] * size_of[a] - outputs));
    }
  }
  int64_t per_image() const {
    return residues[0] * residues[1] * residues[2] * tiles[0] * tiles[1] * tiles[2];
  }
  int64_t size() const { return g.images * per_image(); }
  int64_t products_per_image() const {
    int64_t count = 1;
    for (int a = 0; a < kAxes; ++a)
      count *= residues[a] * (tiles[a] * products[a] - (tiles[a] - full_tiles[a]) * lasts[a]);
    return count;
  }

  struct Tile {
    int64_t image, residue[kAxes], number[kAxes];
    int64_t first[kAxes];  // output
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

  // The first output of a tile, of those of its residue.
  int64_t output(int a, int64_t number) const {
    return number * size_of[a] - max_of(0, number - full_tiles[a]);
  }

  Gather g;
  int64_t size_of[kAxes], products[kAxes];  // of a tile: outputs, `residues` apart, and products
  int64_t lasts[kAxes];                     // products that a short tile does not have
  int64_t source_step[kAxes];               // between the source's pixels that a tile reads
  int64_t residues[kAxes], tiles[kAxes];
  int64_t full_tiles[kAxes];  // in front of the short ones

 private:
  void place(Tile& tile) const {
    for (int a = 0; a < kAxes; ++a) tile.first[a] = tile.residue[a] + output(a, tile.number[a]) * residues[a];
  }
};

// What tiles read or write: a volume, and where pixel (i, j) of a tile's box lies in it.
struct TileSpace {
  int64_t extent[kAxes], first_step[kAxes], offset[kAxes], step[kAxes];
  int64_t full_tiles[kAxes];  // in front of those whose last output is another's
  int64_t pixels_of_output[kAxes];

  static TileSpace destination(const TileGrid& grid) {
    TileSpace space;
    for (int a = 0; a < kAxes; ++a) {
      const PhaseAxis& axis = grid.g.axis[a];
      space.extent[a] = grid.g.extent[a];
      space.first_step[a] = axis.step;
      space.offset[a] = axis.start;
      space.step[a] = grid.residues[a];
      space.full_tiles[a] = grid.full_tiles[a];
      space.pixels_of_output[a] = axis.step;
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
      space.step[a] = grid.residues[a] * grid.source_step[a];
      space.full_tiles[a] = grid.tiles[a];
      space.pixels_of_output[a] = 1;
    }
    return space;
  }

  // The same for the first rows of tiles, with all the padding that they read.
  TileSpace padded(const TileGrid& grid, const int64_t patch[kAxes], int64_t rows) const {
    TileSpace space = *this;
    for (int a = 1; a < kAxes; ++a) {
      const int64_t tiles = a == 1 ? rows : grid.tiles[a];
      const int64_t last = grid.residues[a] * (grid.output(a, tiles - 1) + 1) - 1;
      space.offset[a] = 0;
      space.extent[a] = last * first_step[a] + (patch[a] - 1) * step[a] + 1;
    }
    return space;
  }
  int64_t pixels() const { return extent[0] * extent[1] * extent[2]; }

  int64_t position(const TileGrid::Tile& tile, int a, int64_t i) const {
    return tile.first[a] * first_step[a] + offset[a] + i * step[a];
  }
  // The number of the first pixel of row i, of so many, -1 outside the volume.
  int64_t row(const TileGrid::Tile& tile, int64_t i, int64_t height) const {
    const int64_t d = position(tile, 0, 0), h = position(tile, 1, i);
    const bool inside = d >= 0 && d < extent[0] && h >= 0 && h < extent[1] && i < height - cut(tile, 1);
    return inside ? (d * extent[1] + h) * extent[2] : -1;
  }

  // A tile's box of pixels: number `first + i * row + j * column` is pixel (i, j), if it lies inside the
  // volume.
  struct Box {
    int64_t first, row, column;
    Range rows, columns;  // inside
    bool inside;
  };
  Box box(const TileGrid::Tile& tile, int64_t height, int64_t width) const {
    const int64_t d = position(tile, 0, 0);
    Box b = {(d * extent[1] + position(tile, 1, 0)) * extent[2] + position(tile, 2, 0),
             step[1] * extent[2],
             step[2],
             inside(tile, 1, height),
             inside(tile, 2, width),
             false};
    if (d < 0 || d >= extent[0]) b.rows = {0, 0};
    b.inside = b.rows.size() == height && b.columns.size() == width;
    return b;
  }
  // Pixels at its end that are another tile's.
  int64_t cut(const TileGrid::Tile& tile, int a) const {
    return tile.number[a] >= full_tiles[a] ? pixels_of_output[a] : 0;
  }
  Range inside(const TileGrid::Tile& tile, int a, int64_t size) const {
    Range range = {0, size - cut(tile, a)};
    while (range.size() > 0 && position(tile, a, range.begin) < 0) ++range.begin;
    while (range.size() > 0 && position(tile, a, range.end - 1) >= extent[a]) --range.end;
    return range;
  }
};

constexpr int64_t kBlockTiles = 72 / kRows * kRows;     // at most, whole tiles of products,
constexpr int64_t kFewBlockTiles = 28 / kRows * kRows;  // where transformed weights are kept,
constexpr int64_t kLineTiles = 6;                       // and so many times as many along one axis

// Where the tiles of a block lie in the planes of their products, of which short tiles have none at the last
// point of an axis: first those short along the width, then full ones, short along the height, along both.
// The tiles that have a product are then neighbours.
template <class WinogradTile>
class TileOrder {
 public:
  TileOrder(const TileGrid& grid, Range block) : tiles(block) {
    constexpr int kKindOf[2][2] = {{1, 0}, {2, 3}};  // [short along the height][along the width]
    int kind[kMost];
    int64_t next[kKinds + 1] = {};
    TileGrid::Tile tile = grid.at(tiles.begin);
    for (int64_t t = 0; t < tiles.size(); ++t, grid.advance(tile)) {
      kind[t] = kKindOf[tile.number[1] >= grid.full_tiles[1]][tile.number[2] >= grid.full_tiles[2]];
      ++next[kind[t] + 1];
    }
    for (int k = 0; k < kKinds; ++k) next[k + 1] += next[k];
    for (int n = 0; n < WinogradTile::kProducts; ++n) {
      const bool last_row = H::last(n / W::kProducts), last_column = W::last(n % W::kProducts);
      having[n] = {next[last_column ? 1 : 0], next[last_row ? 2 : last_column ? 3 : 4]};
    }
    for (int64_t t = 0; t < tiles.size(); ++t) place[t] = int(next[kind[t]]++);
  }

  // The row of the tile with that number in the block.
  int64_t operator[](int64_t number) const { return place[number]; }
  // The rows of the tiles that have a product.
  Range rows(int product) const { return having[product]; }
  // All products' rows in parts of that size.
  int64_t parts(int64_t size) const {
    int64_t count = 0;
    for (const Range& range : having) count += ceil_div(range.size(), size);
    return count;
  }

  static constexpr int64_t kMost = kLineTiles * kBlockTiles;
  const Range tiles;

 private:
  using H = typename WinogradTile::H;
  using W = typename WinogradTile::W;
  static constexpr int kKinds = 4;
  int place[kMost];
  Range having[WinogradTile::kProducts];
};

// What tiles with boxes of that size read or write of some channels: the columns from the first to the last
// where the tiles are neighbours in a row, else whole rows of pixels. Nothing where a large dilation spreads
// them over many more pixels than they have.
template <class T>
FetchedRows fetched_tiles(const T* from, Strides s, const TileGrid& grid, const TileSpace& space, Range tiles,
                          int64_t height, int64_t width, Range channels, int64_t calls) {
  if (tiles.size() <= 0) return {};
  const int64_t* extent = space.extent;
  const auto row_of = [&](const TileGrid::Tile& tile, int64_t i) {
    const int64_t d = clamp(space.position(tile, 0, 0), 0, extent[0] - 1);
    return (tile.image * extent[0] + d) * extent[1] + clamp(space.position(tile, 1, i), 0, extent[1]);
  };
  const TileGrid::Tile first = grid.at(tiles.begin), last = grid.at(tiles.end - 1);
  const Range rows = {row_of(first, 0), row_of(last, height)};
  Range columns = {0, extent[2]};
  if (last.number[2] - first.number[2] == tiles.size() - 1) {
    columns = {clamp(space.position(first, 2, 0), 0, extent[2]),
               clamp(space.position(last, 2, width - 1) + 1, 0, extent[2])};
  }
  const int64_t pixels = rows.size() * columns.size();
  if (pixels <= 0 || pixels > 4 * tiles.size() * height * width) return {};
  if (s.channel == 1) {
    return {from + (rows.begin * extent[2] + columns.begin) * s.pixel + channels.begin,
            channels.size(),
            {columns.size(), s.pixel},
            {rows.size(), extent[2] * s.pixel},
            calls};
  }
  const int64_t above = first.image * extent[0] * extent[1];  // rows of other images
  const int64_t count = min_of(rows.end - above, extent[0] * extent[1]) - (rows.begin - above);
  const bool whole_rows = columns.size() == extent[2];  // which follow each other
  return {from + first.image * s.image + channels.begin * s.channel + (rows.begin - above) * extent[2] +
              columns.begin,
          whole_rows ? count * extent[2] : columns.size(),
          {whole_rows ? 1 : count, extent[2]},
          {channels.size(), s.channel},
          calls};
}

// Pixels of a box, L channels of each.
template <class T>
struct BoxPixels {
  const T* first;
  int64_t row, column;  // elements from one to the next
  __attribute__((always_inline)) Vec<Acc<T>> operator()(int i, int j) const {
    return load(first + i * row + j * column);
  }
};

// Reads a box of Height x Width pixels for each tile.
template <class T, int Height, int Width>
struct TileReader {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

  // visit(tile, channel, pixels) for each tile and each L channels from the first. Pixels are zero outside
  // the plane and beyond the last channel.
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
    // Columns that the tile before does not read.
    const int64_t fresh = near ? Width : Width - grid.size_of[2] * columns_of_output();
    TileGrid::Tile tile = grid.at(tiles.begin);
    TileSpace::Box box = space.box(tile, Height, Width);
    BoxPixels<T> pixels = pixels_of(tile, box);
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      grid.advance(tile);
      const TileSpace::Box next = space.box(tile, Height, Width);  // which is fetched meanwhile
      const BoxPixels<T> ahead = pixels_of(tile, next);
      for (int64_t c = channels.begin; c < channels.end; c += L) {
        for (int64_t i = next.rows.begin; i < next.rows.end; ++i) {
          for (int64_t j = max_of(next.columns.begin, fresh); j < next.columns.end; ++j)
            __builtin_prefetch(ahead.first + i * ahead.row + j * ahead.column + c);
        }
        const int64_t count = min_of(L, channels.end - c);
        if (box.inside && count == L) {
          visit(t, c, BoxPixels<T>{pixels.first + c, pixels.row, pixels.column});
          continue;
        }
        Vec<A> d[Height * Width] = {};
        for (int64_t i = box.rows.begin; i < box.rows.end; ++i) {
          for (int64_t j = box.columns.begin; j < box.columns.end; ++j)
            d[i * Width + j] = load_part(pixels.first + i * pixels.row + j * pixels.column + c, count);
        }
        visit(t, c, BoxPixels<A>{reinterpret_cast<const A*>(d), Width * L, L});
      }
      box = next;
      pixels = ahead;
    }
  }
  BoxPixels<T> pixels_of(const TileGrid::Tile& tile, const TileSpace::Box& box) const {
    return {from + tile.image * s.image + box.first * s.pixel, box.row * s.pixel, box.column * s.pixel};
  }

  // Strips of tiles in a row are turned to channels last first.
  template <class Visit>
  void channels_first(Range tiles, Range channels, Visit&& visit) const {
    constexpr int64_t kMostWidth = 36;
    const int64_t strip_tiles = (kMostWidth - Width) / (grid.size_of[2] * columns_of_output()) + 1;
    Vec<A> strip[Height * kMostWidth];
    for (int64_t t = tiles.begin; t < tiles.end;) {
      const TileGrid::Tile tile = grid.at(t);
      const int64_t row_end = t + grid.tiles[2] - t % grid.tiles[2];
      const int64_t end = min_of(min_of(row_end, tiles.end), t + strip_tiles);
      const auto column = [&](int64_t at) {
        return (grid.output(2, tile.number[2] + at - t) - grid.output(2, tile.number[2])) *
               columns_of_output();
      };
      const int64_t width = column(end - 1) + Width;
      for (int64_t c = channels.begin; c < channels.end; c += L) {
        const int64_t count = min_of(L, channels.end - c);
        for (int i = 0; i < Height; ++i) {
          load_row(from + tile.image * s.image + c * s.channel, tile, i, width, count,
                   reinterpret_cast<A*>(strip + i * width));
        }
        for (int64_t at = end; at-- > t;) {
          Vec<A>* first = strip + column(at);
          if (tile.number[2] + at - t >= space.full_tiles[2]) {  // the last column was the next tile's
            for (int i = 0; i < Height; ++i) first[i * width + Width - 1] = Vec<A>{};
          }
          visit(at, c, BoxPixels<A>{reinterpret_cast<const A*>(first), width * L, L});
        }
      }
      t = end;
    }
  }

  // Columns of the box from an output to the next.
  int64_t columns_of_output() const { return grid.residues[2] * space.first_step[2] / space.step[2]; }

  // Row i of a strip, to[w][L].
  void load_row(const T* channel, const TileGrid::Tile& tile, int i, int64_t width, int64_t count,
                A* to) const {
    const int64_t step = space.step[2], first = space.row(tile, i, Height), w = space.position(tile, 2, 0);
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
  bool near = false;  // in the cache: nothing is fetched
};

}  // namespace cnnext::cpu::CNNEXT_ISA
