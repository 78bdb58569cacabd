// Convolution by Winograd's algorithm in narrow groups, of one or two vectors of channels. A group's source
// is copied with its padding, pixels close to each other: in place they fall on a few sets of the cache. A
// few tiles at a time are transformed, multiplied in the place of their patches and transformed back. Two
// groups of half a vector are joined: side by side they are transformed as one, and only the products tell
// them apart. Channels first are computed as channels last from the copy, and turned at the end of a block.
#pragma once

#include "conv_group_rows.h"
#include "winograd_steps.h"

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
template <class V, int Vectors, int64_t Row>
auto tile_in_place_of(int64_t rows) {
  return with_count<kRows>(rows, [](auto n) { return &tile_in_place<V, Vectors, Row, n>; });
}

constexpr int64_t kNarrowTiles = kFewBlockTiles;  // at a time
constexpr int64_t kCopiedElements = 32 << 10;     // of a band at most

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
                           : grid.tiles[1] / bands * grid.size_of[1] * grid.g.axis[1].step * extent[2];
      return;
    }
  }
  TileSpace padded = {};
  int64_t images = 0, tiles = 0, results = 0;  // results: destination pixels of an image
};

// The destination pixels of a block of tiles: some of each of its images, from the first on.
struct BlockPixels {
  BlockPixels(const TileGrid& grid, Range tiles) {
    const int64_t* extent = grid.g.extent;
    const TileGrid::Tile tile = grid.at(tiles.begin);
    image = tile.image;
    images = ceil_div(tiles.size(), grid.per_image());
    pixels = extent[0] * extent[1] * extent[2];
    if (tiles.size() < grid.per_image()) {  // a band
      const PhaseAxis& rows = grid.g.axis[1];
      const auto row = [&](int64_t number) {
        return clamp(rows.start + grid.output(1, number) * rows.step, 0, extent[1]);
      };
      first = row(tile.number[1]) * extent[2];
      pixels = row(tile.number[1] + tiles.size() / grid.tiles[2]) * extent[2] - first;
    }
  }
  int64_t image, images, first = 0, pixels;
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

template <class T, class Tile>
struct WinogradGroups : WinogradSteps<T, Tile> {
  using Steps = WinogradSteps<T, Tile>;
  using Steps::kProducts, Steps::kWeights, Steps::L;
  using Steps::phases, Steps::grid, Steps::groups, Steps::block_tiles, Steps::shared_panels,
      Steps::weights_plane;
  using typename Steps::A, typename Steps::Order, typename Steps::Reader, typename Steps::Target;
  static constexpr bool kCopies = std::is_same_v<T, A>;  // other types are read in place

  static bool takes(const ConvProblem& p, bool gradient) {
    const Phases phases = winograd_phases(p, gradient);
    const int64_t C = phases.source_channels;
    return p.shape.groups > 1 && C == phases.channels && (C == L || C == 2 * L) &&
           TapBlocks(gather_for<Tile>(phases), Tile()).size() == 1;
  }

  WinogradGroups(const ConvProblem& p, bool gradient, const ConvBuffers& b, char* workspace)
      : Steps(p, gradient, b) {
    const int64_t C = phases.channels;
    if (kCopies) copy = GroupCopy(grid, TileSpace::source(grid, this->taps.at(0)), Tile::kInputsOf, C);
    this->cut_tiles(p, copy.images > 0 ? copy.tiles : this->even_tiles());
    tiles_at_once = ceil_div(block_tiles, ceil_div(block_tiles, kNarrowTiles));
    planes = {C, odd_lines(tiles_at_once * C)};
    scratch_patches = kProducts * planes.plane;
    scratch_copy = round_up(scratch_patches + this->scratch_weights, 64);
    scratch_results = round_up(scratch_copy + copy.images * copy.padded.pixels() * C, 64);
    this->set_memory(b, workspace, scratch_results + (turned() ? copy.images * copy.results * C : 0));
    if (turned()) this->operands.epilogue = {};  // what tiles write is scratch memory
  }
  bool applies_epilogue() const { return !turned(); }

  void run(const Parallel& parallel) const {
    this->start_weights(parallel);
    parallel(groups * this->tile_blocks, [&](int64_t task, int thread) {
      const int64_t group = task % groups;  // neighbours in memory follow each other
      compute(group, block(task / groups, block_tiles, grid.size()),
              this->scratch + thread * this->scratch_size, thread);
    });
  }

  void compute(int64_t group, Range tiles, A* patches, int thread) const {
    A* own = patches + scratch_patches;  // weights
    if (!shared_panels) this->transform_weights(group, 0, 0, own + kWeights * weights_plane, own);
    const A* weights = shared_panels ? this->transformed(group, 0, thread, own) : own;
    Reader read = this->reader(group);
    Target target = this->target(group);
    const Target planes_of_group = target;
    const BlockPixels pixels(grid, tiles);
    A* results = patches + scratch_results;
    Ahead ahead;
    if constexpr (kCopies) {
      if (turned()) {
        const int64_t C = phases.channels;
        ahead = planes_ahead(group, pixels, read, target);
        target = {results - (pixels.image * copy.results + pixels.first) * C, {copy.results * C, 1, C}};
      }
      if (copy.images > 0) read_copy(read, tiles, patches + scratch_copy);
    }
    for (int64_t first = tiles.begin; first < tiles.end; first += tiles_at_once) {
      const Order order(grid, {first, min_of(first + tiles_at_once, tiles.end)});
      this->transform_patches(read, order, {0, phases.channels}, planes, patches);
      if (!turned()) ahead = tiles_ahead(read, target, order);
      for (int n = 0; n < kProducts; ++n) {
        const Range rows = order.rows(n);
        multiply_in_place(rows.size(), weights + Tile::weight(n) * weights_plane,
                          patches + n * planes.plane + rows.begin * phases.channels, ahead);
      }
      this->store_tiles(group, order, 0, patches, planes, target);
    }
    if constexpr (kCopies) {
      if (turned()) store_planes(pixels, results, planes_of_group);
    }
  }

  // The tiles' destination and, where it is not a copy, the next tiles' source.
  Ahead tiles_ahead(const Reader& read, const Target& target, const Order& order) const {
    const Range tiles = order.tiles;
    const int64_t calls = order.parts(kRows);
    const Range channels = {0, phases.channels};
    Ahead ahead;
    if (!read.near) {
      const Range next = {tiles.end, min_of(tiles.end + tiles_at_once, grid.size())};
      ahead.source = fetched_tiles(read.from, read.s, grid, read.space, next, Tile::H::kInputs,
                                   Tile::W::kInputs, channels, calls);
    }
    ahead.destination = fetched_tiles(target.first, target.s, grid, TileSpace::destination(grid), tiles,
                                      Tile::H::kOutputs, Tile::W::kOutputs, channels, calls);
    return ahead;
  }

  // Lets a block's tiles be read from a copy of their group.
  void read_copy(Reader& read, Range tiles, A* to) const {
    const int64_t C = phases.source_channels, image = copy.padded.pixels() * C;
    const TileGrid::Tile first = grid.at(tiles.begin);
    TileSpace padded = copy.padded;
    padded.offset[1] = -first.first[1] * padded.first_step[1];
    const A* from = read.from + first.image * read.s.image;
    read.from = to - first.image * image;
    for (int64_t left = tiles.size(); left > 0; left -= grid.per_image(), from += read.s.image) {
      to = copy_padded(from, read.s, read.space, padded, C, to);
    }
    read.space = padded;
    read.s = {image, 1, C};
    read.near = true;
  }

  // Channels first: meanwhile the planes that the next group reads and this one writes are fetched.
  bool turned() const { return copy.images > 0 && phases.destination.channel != 1; }
  Ahead planes_ahead(int64_t group, const BlockPixels& b, const Reader& read, const Target& planes) const {
    const int64_t C = phases.channels, calls = Tile::kLeast * ceil_div(copy.tiles, kRows);
    const int64_t pixels = min_of(b.pixels, read.space.pixels() - b.first);
    const T* next = read.from + C * read.s.channel + b.image * read.s.image + b.first;
    T* to = planes.first + b.image * planes.s.image + b.first;
    Ahead ahead;
    if (group + 1 < groups)
      ahead.source = {next, pixels, {C, read.s.channel}, {b.images, read.s.image}, calls};
    ahead.destination = {to, b.pixels, {C, planes.s.channel}, {b.images, planes.s.image}, calls};
    return ahead;
  }
  void store_planes(const BlockPixels& b, const A* results, const Target& planes) const {
    T* to = planes.first + b.image * planes.s.image + b.first;
    for (int64_t n = 0; n < b.images; ++n, to += planes.s.image, results += copy.results * phases.channels) {
      store_group_planes(results, phases.channels, b.pixels, planes.s.channel, to);
    }
  }

  // A narrow group's product takes the place of its patches.
  void multiply_in_place(int64_t tiles, const A* weights, A* patches, Ahead& ahead) const {
    for (int64_t parts = ceil_div(tiles, kRows); parts > 0; --parts) {
      ahead.fetch();
      const int64_t rows = ceil_div(tiles, parts);
      if (phases.joined_groups > 1) {
        const auto run = tile_in_place_of<HalfVec, 1, L>(rows);
        run(weights, patches);
        run(weights + kHalfGroup, patches + kHalfGroup);
      } else if (phases.channels == L) {
        tile_in_place_of<Vec<A>, 1, L>(rows)(weights, patches);
      } else {
        tile_in_place_of<Vec<A>, 2, 2 * L>(rows)(weights, patches);
      }
      patches += rows * phases.channels;
      tiles -= rows;
    }
  }

  GroupCopy copy;
  TilePlanes planes;
  int64_t tiles_at_once, scratch_patches, scratch_copy, scratch_results;
};

}  // namespace cnnext::cpu::CNNEXT_ISA
