// Convolution, forward and gradient with respect to the input, by Winograd's minimal filtering: a quarter of
// the multiplications for 3x3, about half along one axis or with a stride (winograd_transforms.h has the
// algorithm and its points).
//
// The destination is cut into tiles. A task is a block of tiles times a range of channels. It transforms the
// tiles' patches for all source channels once (V, private to the thread), then for each panel of kCols
// channels sums a small matrix product for each element of a patch and transforms them back. Weights are
// transformed for all tasks beforehand where many blocks of tiles use them and they fit the cache, else in
// each task as it goes, a chunk at a time: they never reach memory.
#pragma once

#include "conv_gemm.h"
#include "winograd_choice.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kChunk = 64;  // source channels, or channels times blocks of taps, summed at a time
constexpr int64_t kChunkStride = kChunk + 16;
constexpr int64_t kCopiedElements = 16 << 10;  // of an image's channels of a narrow group

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
  static constexpr int kProducts = Tile::kProducts;

  Winograd(const ConvProblem& p, bool gradient, const ConvBuffers& b, char* workspace)
      : phases(p, gradient),
        taps(phases.at(0), Tile::kTapsOf),
        grid(phases.at(0), Tile::kSizeOf),
        depth(taps.size(), phases.source_channels),
        groups(p.shape.groups),
        source(static_cast<const T*>(gradient ? b.output : b.input)),
        weight(static_cast<const T*>(b.weight)),
        bias(static_cast<const T*>(b.bias)),
        destination(static_cast<T*>(gradient ? b.input : b.output)) {
    panels = ceil_div(phases.channels, kWide);
    const int64_t C = phases.source_channels, pixels = grid.source_pixels();
    const bool narrow = groups > 1 && (C == L || C == 2 * L);
    // Narrow groups have small weights: what is private to a block then stays close.
    const int64_t most_tiles = groups > 1 && C <= L ? 2 * kRows : most_tiles_of<Tile>(depth.total());
    tile_blocks = ceil_div(grid.size(), most_tiles);
    block_tiles = ceil_div(grid.size(), tile_blocks);
    const int64_t all_weights = groups * panels * kProducts * depth.total() * kWide;
    shared = tile_blocks > 2 && all_weights * int64_t(sizeof(A)) <= kSharedBytes;
    weights_plane = odd_lines((shared ? depth.total() : kChunk) * kWide);
    weights_size = shared ? groups * panels * kProducts * weights_plane : 0;
    // Each block of panels transforms the patches again.
    panel_blocks = blocks_for(p.threads, tile_blocks * groups, panels);
    task_panels = ceil_div(panels, panel_blocks);
    plane = odd_lines(block_tiles * kChunkStride);
    products_plane = odd_lines(block_tiles * kWide);
    scratch_patches = depth.chunks() * kProducts * plane;
    scratch_weights = (Tile::kTaps + 1) * kChunk * kWide + (shared ? 0 : kProducts * weights_plane);
    scratch_images = round_up(scratch_patches + scratch_weights + kProducts * products_plane, 64);
    const bool copies = narrow && phases.source.channel == 1 && pixels * C <= kCopiedElements;
    copied = copies ? (ceil_div(block_tiles, grid.per_image()) + 1) * pixels * C : 0;
    scratch_size = round_up(scratch_images + copied, 64) + 64;
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
      A* products = weights + scratch_weights;
      const T* from = source + group * phases.source_channels * phases.source.channel;
      Strides strides = phases.source;
      if (copied > 0)
        from = copy_images(tiles, from, strides, reinterpret_cast<T*>(patches + scratch_images));
      for (int64_t chunk = 0; chunk < depth.chunks(); ++chunk) {
        transform_patches(from, strides, tiles, chunk, patches + chunk * kProducts * plane);
      }
      const int64_t calls = kProducts * fetch_calls(tiles.size(), depth.total());  // for a panel
      const Range next = {tiles.end, min_of(tiles.end + block_tiles, grid.size())};
      Ahead ahead;
      if (copied == 0) {
        ahead.source = fetched_tiles(from, strides, grid, TileSpace::source(grid, taps.at(0)), next,
                                     H::kPatch, {0, phases.source_channels}, part.size() * calls);
      }
      for (int64_t panel = part.begin; panel < part.end; ++panel) {
        const Range channels = block(panel, kWide, phases.channels);
        ahead.destination = fetched_tiles(destination + group * phases.channels * phases.destination.channel,
                                          phases.destination, grid, TileSpace::destination(grid), tiles,
                                          H::kOutputs, channels, calls);
        multiply(group, tiles.size(), panel, patches, weights, products, ahead);
        store_tiles(group, tiles, panel, products);
      }
    });
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

  // patches[product][tile][kChunkStride], `plane` apart
  void transform_patches(const T* from, Strides strides, Range tiles, int64_t chunk, A* patches) const {
    const Range channels = depth.channels_of(chunk), blocks = depth.blocks_of(chunk);
    for (int64_t index = blocks.begin; index < blocks.end; ++index, patches += channels.size()) {
      const TileReader<T, H::kPatch, W::kPatch> read{grid, TileSpace::source(grid, taps.at(index)), from,
                                                     strides};
      read(tiles, channels, [&](int64_t t, int64_t c, const Vec<A>* d, int64_t step) {
        A* to = patches + (t - tiles.begin) * kChunkStride + c - channels.begin;
        transform_tile<A, Transform::kInput, Tile>([&](int i, int j) { return d[i * step + j]; },
                                                   [&](int n, Vec<A> v) { store(to + n * plane, v); });
      });
    }
  }

  // A narrow group's channels of the images that the tiles belong to, pixels close to each other: in place
  // they fall on a few sets of the cache. Returns where image 0 would be.
  const T* copy_images(Range tiles, const T* from, Strides& s, T* to) const {
    const int64_t C = phases.source_channels, pixels = grid.source_pixels();
    const int64_t begin = tiles.begin / grid.per_image(), end = (tiles.end - 1) / grid.per_image() + 1;
    const T* pixel = from + begin * s.image;
    T* out = to;
    for (int64_t n = (end - begin) * pixels; n > 0; --n, pixel += s.pixel) {
      for (int64_t c = 0; c < C; c += L, out += L) {
        __builtin_memcpy(out, pixel + c, L * sizeof(T));
        __builtin_prefetch(pixel + C + c, 0, 2);  // of the next group
      }
    }
    s = {pixels * C, 1, C};
    return to - begin * s.image;
  }

  // products[product][tile][kWide] = patches * weights, summed over all chunks; `products_plane` apart. Sums
  // in halves of a chunk would round a fifth less and take 3 % longer. Channels first has them: direct sums
  // are as short there, and the error shall be of that size.
  void multiply(int64_t group, int64_t tiles, int64_t panel, const A* patches, A* weights, A* products,
                Ahead& ahead) const {
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

  void store_tiles(int64_t group, Range tiles, int64_t panel, const A* products) const {
    // Pixels of a tile; a row takes kRow of them, so that it lies in one vector after they are transposed.
    constexpr int kRow = W::kOutputs == 1 ? 1 : W::kOutputs == 2 ? 2 : W::kOutputs <= 4 ? 4 : 8;
    constexpr int64_t kPadded = round_up(H::kOutputs * kRow, L);
    const Range channels = block(panel, kWide, phases.channels);
    const int64_t first = group * phases.channels + channels.begin;
    const TileSpace target = TileSpace::destination(grid);
    A add[kWide] = {};
    if (bias) copy_run(bias + first, add, channels.size());
    TileGrid::Tile tile = grid.at(tiles.begin);
    for (int64_t t = 0; t < tiles.size(); ++t, grid.advance(tile)) {
      int64_t pixel[Tile::kOutputs];
      target.pixels<H::kOutputs, W::kOutputs>(tile, pixel);
      T* to = destination + tile.image * phases.destination.image + first * phases.destination.channel;
      for (int64_t k = 0; k < channels.size(); k += L) {
        const A* m = products + t * kWide + k;
        Vec<A> y[kPadded] = {};
        transform_tile<A, Transform::kOutput, Tile>(
            [&](int i, int j) { return load(m + (i * W::kPatch + j) * products_plane); },
            [&](int n, Vec<A> sum) { y[n / W::kOutputs * kRow + n % W::kOutputs] = sum + load(add + k); });
        T* out = to + k * phases.destination.channel;
        const int64_t count = min_of(L, channels.size() - k);
        if (phases.destination.channel == 1) {
          for (int n = 0; n < Tile::kOutputs; ++n) {
            const Vec<A> value = y[n / W::kOutputs * kRow + n % W::kOutputs];
            if (pixel[n] >= 0) store_some(out + pixel[n] * phases.destination.pixel, value, count);
          }
        } else {
          for (int64_t n = 0; n < kPadded; n += L) transpose<A>(y + n);  // y[n + channel][pixel - n]
          const bool whole = pixel[Tile::kOutputs - 1] >= 0 && grid.residues[2] == 1;
          for (int64_t lane = 0; lane < count; ++lane) {
            T* channel = out + lane * phases.destination.channel;
            for (int i = 0; i < H::kOutputs; ++i) {
              const int64_t* row = pixel + i * W::kOutputs;
              const int n = i * kRow;
              const auto values = reinterpret_cast<const A*>(y + n / L * L + lane) + n % L;
              if (std::is_same_v<T, A> && kRow <= L && whole) {
                __builtin_memcpy(channel + row[0], values, W::kOutputs * sizeof(A));
                continue;
              }
              for (int j = 0; j < W::kOutputs; ++j) {
                const int at = n + j;
                const auto value = reinterpret_cast<const A*>(y + at / L * L + lane) + at % L;
                if (row[j] >= 0) store_one(channel + row[j], *value);
              }
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
  int64_t panels, tile_blocks, block_tiles, task_panels, panel_blocks, plane, products_plane;
  bool shared;
  int64_t copied, scratch_images;  // elements of images, and where they are
  int64_t weights_plane, weights_size, scratch_patches, scratch_weights, scratch_size;  // in elements
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
