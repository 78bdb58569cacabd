// Convolution, forward and gradient with respect to the input, by Winograd's minimal filtering: a quarter of
// the multiplications for 3x3, about half along one axis or with a stride (winograd_transforms.h has the
// algorithm and its points).
//
// The destination is cut into tiles. A task is a block of tiles times a range of channels. It transforms the
// tiles' patches for all source channels once (V, private to the thread), then for each panel of kCols
// channels sums a small matrix product for each element of a patch and transforms them back. Weights are
// transformed for all tasks beforehand where many blocks of tiles use them and they fit the cache, else in
// each task as it goes, a chunk at a time: they never reach memory. Narrow groups are read from a copy and
// computed a few tiles at a time, in one place (winograd_groups.h).
#pragma once

#include "conv_gemm.h"
#include "winograd_choice.h"
#include "winograd_groups.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kChunk = 64;  // source channels, or channels times blocks of taps, summed at a time
constexpr int64_t kChunkStride = kChunk + 16;

// The depth of the matrix products, (block of taps, source channel), in chunks: of many blocks where there
// are few channels, else of the channels of one block.
struct WinogradDepth {
  WinogradDepth(int64_t tap_blocks, int64_t source_channels)
      : blocks(tap_blocks),
        channels(source_channels),
        whole(blocks * channels <= kChunk),
        per_block(whole ? 1 : ceil_div(channels, kChunk)) {}
  int64_t total() const { return blocks * channels; }
  int64_t chunks() const { return whole ? 1 : blocks * per_block; }
  Range blocks_of(int64_t chunk) const {
    return whole ? Range{0, blocks} : Range{chunk / per_block, chunk / per_block + 1};
  }
  Range channels_of(int64_t chunk) const {
    return whole ? Range{0, channels} : block(chunk % per_block, kChunk, channels);
  }
  int64_t size_of(int64_t chunk) const { return blocks_of(chunk).size() * channels_of(chunk).size(); }
  int64_t before(int64_t chunk) const { return blocks_of(chunk).begin * channels + channels_of(chunk).begin; }

  int64_t blocks, channels;
  bool whole;
  int64_t per_block;
};

template <class T, class Tile>
struct Winograd {
  using A = Acc<T>;
  using H = typename Tile::H;
  using W = typename Tile::W;
  static constexpr int64_t L = kLanes<A>, kWide = kCols<A>;
  using Reader = TileReader<T, H::kPatch, W::kPatch>;
  static constexpr int kProducts = Tile::kProducts;
  struct Target {  // where a group's results go: channel 0 of the first pixel
    T* first;
    Strides s;
  };

  Winograd(const ConvProblem& p, bool gradient, const ConvBuffers& b, char* workspace)
      : phases(winograd_phases(p, gradient)),
        taps(phases.at(0), Tile::kTapsOf),
        grid(phases.at(0), Tile::kSizeOf),
        depth(taps.size(), phases.summed_channels()),
        groups(p.shape.groups / phases.joined_groups),
        source(static_cast<const T*>(gradient ? b.output : b.input)),
        weight(static_cast<const T*>(b.weight)),
        bias(static_cast<const T*>(b.bias)),
        destination(static_cast<T*>(gradient ? b.input : b.output)) {
    panels = ceil_div(phases.channels, kWide);
    const int64_t C = phases.source_channels;
    narrow = p.shape.groups > 1 && C == phases.channels && (C == L || C == 2 * L) && taps.size() == 1;
    if (narrow && std::is_same_v<T, A>) {
      copy = GroupCopy(grid, TileSpace::source(grid, taps.at(0)), Tile::kPatchOf, C);
    }
    tile_blocks = ceil_div(grid.size(), most_tiles_of<Tile>(depth.total()));
    block_tiles = copy.images > 0 ? copy.tiles : ceil_div(grid.size(), tile_blocks);
    tile_blocks = ceil_div(grid.size(), block_tiles);
    tiles_at_once = narrow ? ceil_div(block_tiles, ceil_div(block_tiles, kNarrowTiles)) : block_tiles;
    tile_stride = narrow ? C : kChunkStride;
    product_stride = narrow ? C : kWide;
    const int64_t all_weights = groups * panels * kProducts * depth.total() * kWide;
    shared = tile_blocks > 2 && all_weights * int64_t(sizeof(A)) <= kSharedBytes;
    weights_plane = odd_lines((shared ? depth.total() : kChunk) * kWide);
    weights_size = shared ? groups * panels * kProducts * weights_plane : 0;
    // Each block of panels transforms the patches again.
    panel_blocks = blocks_for(p.threads, tile_blocks * groups, panels);
    task_panels = ceil_div(panels, panel_blocks);
    plane = odd_lines(tiles_at_once * tile_stride);
    products_plane = odd_lines(tiles_at_once * product_stride);
    scratch_patches = depth.chunks() * kProducts * plane;
    scratch_weights = (Tile::kTaps + 1) * kChunk * kWide + (shared ? 0 : kProducts * weights_plane);
    scratch_copy =
        round_up(scratch_patches + scratch_weights + (narrow ? 0 : kProducts * products_plane), 64);
    scratch_results = round_up(scratch_copy + copy.images * copy.padded.pixels() * C, 64);
    scratch_size = scratch_results + round_up(turned() ? copy.images * copy.results * C : 0, 64) + 64;
    packed = reinterpret_cast<A*>(workspace);
    scratch = packed + round_up(weights_size, 64);
  }

  static int64_t workspace(const ConvProblem& p, bool gradient) {
    const Winograd self(p, gradient, {}, nullptr);
    return (round_up(self.weights_size, 64) + p.threads * self.scratch_size) * sizeof(A);
  }

  void run(const Parallel& parallel) const {
    if (shared) {
      parallel(groups * panels, [&](int64_t task, int thread) {
        for (int64_t chunk = 0; chunk < depth.chunks(); ++chunk) {
          transform_weights(task / panels, task % panels, chunk, scratch + thread * scratch_size,
                            transformed(task / panels, task % panels, chunk));
        }
      });
    }
    parallel(groups * tile_blocks * panel_blocks, [&](int64_t task, int thread) {
      const Range part = block(task % panel_blocks, task_panels, panels);
      task /= panel_blocks;
      const int64_t group = task % groups;  // neighbours in memory follow each other
      const Range tiles = block(task / groups, block_tiles, grid.size());
      A* patches = scratch + thread * scratch_size;
      A* weights = patches + scratch_patches;
      Reader read = {grid, TileSpace::source(grid, taps.at(0)),
                     source + group * phases.source_channels * phases.source.channel, phases.source};
      const Target whole = {destination + group * phases.channels * phases.destination.channel,
                            phases.destination};
      Target target = whole;
      Ahead ahead;
      const BlockPixels pixels(copy, grid, tiles);
      A* results = patches + scratch_results;
      if constexpr (std::is_same_v<T, A>) {
        if (turned()) {
          const int64_t C = phases.channels;
          ahead = planes_ahead(group, pixels, read, whole);
          target = {results - (pixels.image * copy.results + pixels.first) * C, {copy.results * C, 1, C}};
        }
        if (copy.images > 0) read_copy(read, tiles, patches + scratch_copy);
      }
      if (narrow && !shared) transform_weights(group, 0, 0, weights + kProducts * weights_plane, weights);
      for (int64_t first = tiles.begin; first < tiles.end; first += tiles_at_once)
        compute(group, {first, min_of(first + tiles_at_once, tiles.end)}, part, read, target, patches, ahead);
      if constexpr (std::is_same_v<T, A>) {
        if (turned()) store_planes(pixels, results, whole);
      }
    });
  }

  // Some tiles of a block, for some panels.
  void compute(int64_t group, Range tiles, Range part, const Reader& read, const Target& target, A* patches,
               Ahead& ahead) const {
    A* weights = patches + scratch_patches;
    A* products = narrow ? patches : weights + scratch_weights;
    for (int64_t chunk = 0; chunk < depth.chunks(); ++chunk) {
      transform_patches(read, tiles, chunk, patches + chunk * kProducts * plane);
    }
    const int64_t calls = kProducts * fetch_calls(tiles.size(), narrow ? 1 : depth.total());  // for a panel
    const Range next = {tiles.end, min_of(tiles.end + tiles_at_once, grid.size())};
    if (!read.near) {
      ahead.source = fetched_tiles(read.from, read.s, grid, read.space, next, H::kPatch,
                                   {0, phases.source_channels}, part.size() * calls);
    }
    for (int64_t panel = part.begin; panel < part.end; ++panel) {
      const Range channels = block(panel, kWide, phases.channels);
      if (!turned()) {
        ahead.destination = fetched_tiles(target.first, target.s, grid, TileSpace::destination(grid), tiles,
                                          H::kOutputs, channels, calls);
      }
      multiply(group, tiles.size(), panel, patches, weights, products, ahead);
      store_tiles(group, tiles, panel, products, target);
    }
  }

  A* transformed(int64_t group, int64_t panel, int64_t chunk) const {
    return packed + (group * panels + panel) * kProducts * weights_plane + depth.before(chunk) * kWide;
  }

  // to[product][block of taps, source channel][kWide], products `weights_plane` apart; `raw` is scratch
  // memory.
  void transform_weights(int64_t group, int64_t panel, int64_t chunk, A* raw, A* to) const {
    const Range channels = depth.channels_of(chunk), blocks = depth.blocks_of(chunk);
    A* zeros = raw + Tile::kTaps * kChunk * kWide;
    const bool fewer = taps.size() * Tile::kTaps > phases.max_taps;  // than a tile has, in some block
    fill_zero(zeros, fewer ? channels.size() * kWide : 0);
    for (int64_t index = blocks.begin; index < blocks.end; ++index, to += channels.size() * kWide) {
      Gather part = taps.at(index);
      part.channels = channels.size();
      pack_weight_panel(phases, part, weight + channels.begin * phases.weight_source, group,
                        block(panel, kWide, phases.channels), {0, part.depth()}, raw);
      const A* tap[Tile::kTaps];  // a block at the end of the kernel may have fewer
      const int64_t height = part.axis[1].taps, width = part.axis[2].taps, size = channels.size() * kWide;
      for (int n = 0; n < Tile::kTaps; ++n) {
        const int h = n / W::kTaps, w = n % W::kTaps;
        tap[n] = h < height && w < width ? raw + (h * width + w) * size : zeros;
      }
      const bool one = phases.channels - panel * kWide <= L;  // vector of them
      for (int64_t i = 0; i < size; i += one ? kWide : L) {
        transform_tile<A, Transform::kWeight, Tile>(
            [&](int h, int w) { return load(tap[h * W::kTaps + w] + i); },
            [&](int n, Vec<A> u) { store(to + n * weights_plane + i, u); });
      }
    }
  }

  // The weights of a chunk, or of the next panel's first.
  FetchedRows fetched_chunk(int64_t group, int64_t panel, int64_t chunk, int64_t calls) const {
    if (chunk == depth.chunks()) chunk = 0, ++panel;
    const Range channels = depth.channels_of(chunk);
    Gather part = taps.at(depth.blocks_of(chunk).begin);
    part.channels = channels.size();
    return fetched_weights(phases, part, weight + channels.begin * phases.weight_source, group,
                           block(panel, kWide, phases.channels), {0, part.depth()}, calls);
  }

  // patches[product][tile][tile_stride], `plane` apart
  void transform_patches(Reader read, Range tiles, int64_t chunk, A* patches) const {
    const Range blocks = depth.blocks_of(chunk);
    const Range channels = narrow ? Range{0, phases.source_channels} : depth.channels_of(chunk);
    for (int64_t index = blocks.begin; index < blocks.end; ++index, patches += channels.size()) {
      if (!read.near) read.space = TileSpace::source(grid, taps.at(index));
      read(tiles, channels, [&](int64_t t, int64_t c, auto pixels) {
        A* to = patches + (t - tiles.begin) * tile_stride + c - channels.begin;
        transform_tile<A, Transform::kInput, Tile>(pixels,
                                                   [&](int n, Vec<A> v) { store(to + n * plane, v); });
      });
    }
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

  // Channels first are computed as channels last from a copy, and turned at the end of a block. Meanwhile the
  // planes that the next group reads and this one writes are fetched.
  bool turned() const { return copy.images > 0 && phases.destination.channel != 1; }
  Ahead planes_ahead(int64_t group, const BlockPixels& b, const Reader& read, const Target& planes) const {
    const int64_t C = phases.channels, calls = kProducts * ceil_div(copy.tiles, kRows);
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

  // products[product][tile][product_stride] = patches * weights, summed over all chunks; `products_plane`
  // apart. Sums in halves of a chunk would round a fifth less and take 3 % longer. Channels first has them:
  // direct sums are as short there, and the error shall be of that size.
  void multiply(int64_t group, int64_t tiles, int64_t panel, const A* patches, A* weights, A* products,
                Ahead& ahead) const {
    if (narrow) {
      const A* b = shared ? transformed(group, panel, 0) : weights;
      for (int64_t n = 0; n < kProducts; ++n)
        multiply_in_place(tiles, b + n * weights_plane, products + n * plane, ahead);
      return;
    }
    const int64_t cols = min_of(kWide, phases.channels - panel * kWide);
    const int64_t chain = phases.source.channel == 1 ? kChunk : kChunk / 2;
    for (int64_t chunk = 0; chunk < depth.chunks(); ++chunk) {
      const A* b = shared ? transformed(group, panel, chunk) : weights;
      if (!shared) {
        transform_weights(group, panel, chunk, weights + kProducts * weights_plane, weights);
        ahead.weights =
            fetched_chunk(group, panel, chunk + 1, kProducts * fetch_calls(tiles, depth.size_of(chunk)));
      }
      for (int64_t n = 0; n < kProducts; ++n) {
        for (int64_t begin = 0, end = depth.size_of(chunk); begin < end; begin += chain) {
          const TileSums<A> sums = {products + n * products_plane, chunk > 0 || begin > 0};
          tile_column<kChunkStride, 1, kWide>(tiles, min_of(chain, end - begin), cols, patches + begin,
                                              b + begin * kWide, sums, &ahead);
        }
        patches += plane;
        b += weights_plane;
      }
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

  void store_tiles(int64_t group, Range tiles, int64_t panel, const A* products, const Target& target) const {
    // Pixels of a tile; a row takes kRow of them, so that it lies in one vector after they are transposed.
    constexpr int kRow = W::kOutputs == 1 ? 1 : W::kOutputs == 2 ? 2 : W::kOutputs <= 4 ? 4 : 8;
    constexpr int64_t kPadded = round_up(H::kOutputs * kRow, L);
    const Range channels = block(panel, kWide, phases.channels);
    const TileSpace space = TileSpace::destination(grid);
    const Strides& s = target.s;
    A add[kWide] = {};
    if (bias) copy_run(bias + group * phases.channels + channels.begin, add, channels.size());
    TileGrid::Tile tile = grid.at(tiles.begin);
    for (int64_t t = 0; t < tiles.size(); ++t, grid.advance(tile)) {
      const TileSpace::Box box = space.box(tile, H::kOutputs, W::kOutputs);
      T* to = target.first + tile.image * s.image + channels.begin * s.channel + box.first * s.pixel;
      const int64_t row = box.row * s.pixel, column = box.column * s.pixel;
      for (int64_t k = 0; k < channels.size(); k += L) {
        const A* m = products + t * product_stride + k;
        const int64_t count = min_of(L, channels.size() - k);
        T* out = to + k * s.channel;
        Vec<A> y[kPadded] = {};
        transform_tile<A, Transform::kOutput, Tile>(
            [&](int i, int j) { return load(m + (i * W::kPatch + j) * products_plane); },
            [&](int n, Vec<A> sum) { y[n / W::kOutputs * kRow + n % W::kOutputs] = sum + load(add + k); });
        if (s.channel == 1) {
#pragma GCC unroll 6
          for (int i = 0; i < H::kOutputs; ++i) {
#pragma GCC unroll 6
            for (int j = 0; j < W::kOutputs; ++j) {
              if (i < box.rows.end && j < box.columns.end)
                store_some(out + i * row + j * column, y[i * kRow + j], count);
            }
          }
          continue;
        }
        for (int64_t n = 0; n < kPadded; n += L) transpose<A>(y + n);  // y[n + channel][pixel - n]
        const bool whole = box.whole && column == 1;
        for (int64_t lane = 0; lane < count; ++lane) {
          T* channel = out + lane * s.channel;
          for (int i = 0; i < H::kOutputs; ++i, channel += row) {
            const int n = i * kRow;
            const auto values = reinterpret_cast<const A*>(y + n / L * L + lane) + n % L;
            if (std::is_same_v<T, A> && kRow <= L && whole) {
              __builtin_memcpy(channel, values, W::kOutputs * sizeof(A));
              continue;
            }
            for (int j = 0; j < W::kOutputs; ++j) {
              const int at = n + j;
              const auto value = reinterpret_cast<const A*>(y + at / L * L + lane) + at % L;
              if (i < box.rows.end && j < box.columns.end) store_one(channel + j * column, *value);
            }
          }
        }
      }
    }
  }

  Phases phases;
  TapBlocks taps;
  TileGrid grid;
  WinogradDepth depth;
  int64_t groups;
  const T *source, *weight, *bias;
  T* destination;
  bool narrow, shared;
  GroupCopy copy;
  int64_t panels, tile_blocks, block_tiles, tiles_at_once, task_panels, panel_blocks;
  int64_t tile_stride, product_stride, plane, products_plane, weights_plane;  // in elements
  int64_t weights_size, scratch_patches, scratch_weights, scratch_copy, scratch_results, scratch_size;
  A *packed, *scratch;
};

template <bool Gradient>
int64_t winograd_workspace(const ConvProblem& p) {
  int64_t bytes = 0;
  with_tile<Gradient>(p, [&](auto* type, auto tile) {
    bytes = Winograd<Pointee<decltype(type)>, decltype(tile)>::workspace(p, Gradient);
  });
  return bytes;
}
template <bool Gradient>
void winograd_run(const ConvProblem& p, const ConvBuffers& b, const Parallel& parallel, char* workspace) {
  with_tile<Gradient>(p, [&](auto* type, auto tile) {
    Winograd<Pointee<decltype(type)>, decltype(tile)>(p, Gradient, b, workspace).run(parallel);
  });
}

constexpr ConvKernel kConvWinograd = {"winograd", kWinogradSummary, winograd_refuses<false>,
                                      winograd_workspace<false>, winograd_run<false>};
constexpr ConvKernel kConvGradInputWinograd = {"winograd", kWinogradSummary, winograd_refuses<true>,
                                               winograd_workspace<true>, winograd_run<true>};

}  // namespace cnnext::cpu::CNNEXT_ISA
