// What convolutions by Winograd's algorithm have in common: a problem cut into blocks of taps and into tiles,
// and the three transforms, of weights, of patches and of their products.
//
// Weights are transformed once where many blocks of tiles use them and they fit the cache, else in each task
// as it goes, a chunk at a time: they never reach memory.
#pragma once

#include "packed_weights.h"
#include "winograd_choice.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kChunk = 64;  // source channels, or channels times blocks of taps, summed at a time
constexpr int64_t kChunkStride = kChunk + 16;

// The depth of the matrix products, (block of taps, source channel), in chunks: of many blocks where there
// are few channels, else of the channels of one block.
struct WinogradDepth {
  WinogradDepth(int64_t tap_blocks, int64_t source_channels)
      : blocks(tap_blocks),
        channels(source_channels),
        one_chunk(blocks * channels <= kChunk),
        per_block(one_chunk ? 1 : ceil_div(channels, kChunk)) {}
  int64_t total() const { return blocks * channels; }
  int64_t chunks() const { return one_chunk ? 1 : blocks * per_block; }
  Range blocks_of(int64_t chunk) const {
    return one_chunk ? Range{0, blocks} : Range{chunk / per_block, chunk / per_block + 1};
  }
  Range channels_of(int64_t chunk) const {
    return one_chunk ? Range{0, channels} : block(chunk % per_block, kChunk, channels);
  }
  int64_t size_of(int64_t chunk) const { return blocks_of(chunk).size() * channels_of(chunk).size(); }
  int64_t before(int64_t chunk) const { return blocks_of(chunk).begin * channels + channels_of(chunk).begin; }

  int64_t blocks, channels;
  bool one_chunk;
  int64_t per_block;
};

// Where tiles' transforms lie: [product][tile][stride], products `plane` apart, in elements.
struct TilePlanes {
  int64_t stride, plane;
};

template <class T, class Tile>
struct WinogradSteps {
  using A = Acc<T>;
  using H = typename Tile::H;
  using W = typename Tile::W;
  using Reader = TileReader<T, H::kInputs, W::kInputs>;
  using Order = TileOrder<Tile>;
  static constexpr int64_t L = kLanes<A>, kWide = kCols<A>;
  static constexpr int kProducts = Tile::kProducts, kWeights = Tile::kWeights;
  static constexpr int64_t kRaw = (Tile::kTaps + 1) * kChunk * kWide;  // a chunk's weights, and zeros
  struct Target {  // where a group's results go: channel 0 of the first pixel
    T* first;
    Strides s;
  };

  WinogradSteps(const ConvProblem& p, bool gradient, const ConvBuffers& b)
      : phases(winograd_phases(p, gradient)),
        taps(gather_for<Tile>(phases), Tile()),
        grid(gather_for<Tile>(phases), Tile()),
        depth(taps.size(), phases.summed_channels()),
        groups(p.shape.groups / phases.joined_groups),
        panels(ceil_div(phases.channels, kWide)),
        kept(grid.size() > 2 * most_tiles_of<Tile>(depth.total(), false) &&
             groups * panels * kWeights * depth.total() * kWide * int64_t(sizeof(A)) <= kKeptBytes),
        by_chunks(!kept && depth.total() > phases.channels &&
                  grid.size() > most_tiles_of<Tile>(depth.total(), false)),
        operands(operands_of<T>(b, gradient)),
        threads(p.threads) {}

  // Tiles of a block. Blocks are alike, and where there are several, as many for each thread; but where each
  // transforms the weights again, for many threads panels are shared out instead. A single block is cut where
  // there are few panels for the threads, or where to transform all weights for each takes less time than all
  // patches for each share of the panels.
  int64_t even_tiles() const {
    const int64_t held = by_chunks ? phases.channels : depth.total();
    const int64_t blocks = ceil_div(grid.size(), most_tiles_of<Tile>(held, kept));
    const int64_t most = max_of(blocks, grid.size() / (kRows / 2));  // of tiles enough for products
    const int64_t even = round_up(blocks, threads), others = groups * panels;
    int64_t cut = blocks;
    if (blocks > 1 && (kept || even <= 3 * blocks)) cut = min_of(even, most);
    if (blocks == 1 && others < 2 * threads) cut = blocks_for(threads, others, most);
    if (blocks == 1 && groups == 1 && patches_outweigh_weights()) cut = max_of(cut, min_of(threads, most));
    return ceil_div(grid.size(), cut);
  }
  bool patches_outweigh_weights() const {
    return kPatchCost<Tile> * kProducts * double(grid.size()) >
           kWeightCost<Tile> * kWeights * double(phases.channels);
  }
  // How the tiles are cut, and with that the weights' place: all of them in front of the threads' memory, or
  // a chunk in each thread's.
  void cut_tiles(const ConvProblem& p, int64_t tiles) {
    block_tiles = tiles;
    tile_blocks = ceil_div(grid.size(), tiles);
    shared_panels = kept && tile_blocks > 2;
    weights_plane = odd_lines((shared_panels ? depth.total() : kChunk) * kWide);
    weights = PackedWeights<A>(p, shared_panels ? groups * panels : 0, kWeights * weights_plane);
    scratch_weights = kRaw + (shared_panels ? 0 : kWeights * weights_plane);
  }
  void set_memory(const ConvBuffers& b, char* workspace, int64_t of_thread) {
    scratch = reinterpret_cast<A*>(weights.place(b, workspace));
    scratch_size = round_up(of_thread, 64) + 64;
  }
  int64_t workspace_bytes() const { return weights.bytes() + threads * scratch_size * int64_t(sizeof(A)); }

  Reader reader(int64_t group) const {
    return {grid, TileSpace::source(grid, taps.at(0)),
            operands.source + group * phases.source_channels * phases.source.channel, phases.source};
  }
  Target target(int64_t group) const {
    return {operands.destination + group * phases.channels * phases.destination.channel, phases.destination};
  }

  // All chunks of a panel; `raw` is scratch memory of kRaw elements.
  auto transform_panel(A* raw) const {
    return [this, raw](int64_t unit, A* to, int) {
      for (int64_t chunk = 0; chunk < depth.chunks(); ++chunk)
        transform_weights(unit / panels, unit % panels, chunk, raw, to + depth.before(chunk) * kWide);
    };
  }
  void start_weights(const Parallel& parallel) const {
    weights.start(parallel, [&](int64_t unit, A* to, int thread) {
      transform_panel(scratch + thread * scratch_size)(unit, to, thread);
    });
  }
  const A* transformed(int64_t group, int64_t panel, int thread, A* raw) const {
    return weights.get(group * panels + panel, thread, transform_panel(raw));
  }

  // The weights of a chunk's channels at each tap of a block of taps.
  struct PackedTaps {
    const A* tap[Tile::kTaps];
  };
  PackedTaps pack_taps(int64_t group, int64_t panel, int64_t chunk, int64_t index, A* raw) const {
    const Range channels = depth.channels_of(chunk);
    A* zeros = raw + Tile::kTaps * kChunk * kWide;
    const bool fewer = taps.size() * Tile::kTaps > grid.g.taps();  // than a tile has, in some block
    fill_zero(zeros, fewer ? channels.size() * kWide : 0);
    Gather part = taps.at(index);
    part.channels = channels.size();
    pack_weight_panel(phases, part, operands.weight + channels.begin * phases.weight_source, group,
                      block(panel, kWide, phases.channels), {0, part.depth()}, raw);
    PackedTaps packed;  // a block at the end of the kernel may have fewer
    const int64_t height = part.axis[1].taps, width = part.axis[2].taps, size = channels.size() * kWide;
    for (int n = 0; n < Tile::kTaps; ++n) {
      const int h = n / W::kTaps, w = n % W::kTaps;
      packed.tap[n] = h < height && w < width ? raw + (h * width + w) * size : zeros;
    }
    return packed;
  }

  // to[weight][block of taps, source channel][kWide], weights `weights_plane` apart; `raw` is scratch memory.
  void transform_weights(int64_t group, int64_t panel, int64_t chunk, A* raw, A* to) const {
    const Range channels = depth.channels_of(chunk), blocks = depth.blocks_of(chunk);
    const int64_t size = channels.size() * kWide;
    for (int64_t index = blocks.begin; index < blocks.end; ++index, to += size) {
      const PackedTaps packed = pack_taps(group, panel, chunk, index, raw);
      const A* const* tap = packed.tap;
      const bool one = phases.channels - panel * kWide <= L;  // vector of them
      for (int64_t i = 0; i < size; i += one ? kWide : L) {
        transform_tile<A, Transform::kWeight, Tile>(
            [&](int h, int w) { return load(tap[h * W::kTaps + w] + i); },
            [&](int n, Vec<A> u) { store(to + n * weights_plane + i, u); });
      }
    }
  }

  void transform_patches(const Reader& read, const Order& order, Range channels, TilePlanes planes,
                         A* patches) const {
    read(order.tiles, channels, [&](int64_t t, int64_t c, auto pixels) {
      A* to = patches + order[t - order.tiles.begin] * planes.stride + c - channels.begin;
      transform_tile<A, Transform::kInput, Tile>(pixels,
                                                 [&](int n, Vec<A> v) { store(to + n * planes.plane, v); });
    });
  }

  void store_tiles(int64_t group, const Order& order, int64_t panel, const A* products, TilePlanes planes,
                   const Target& target) const {
    // Pixels of a tile; a row takes kRow of them, so that it lies in one vector after they are transposed.
    constexpr int kRow = W::kOutputs == 1 ? 1 : W::kOutputs == 2 ? 2 : W::kOutputs <= 4 ? 4 : 8;
    constexpr int64_t kPadded = round_up(H::kOutputs * kRow, L);
    const Range channels = block(panel, kWide, phases.channels);
    const TileSpace space = TileSpace::destination(grid);
    const Strides& s = target.s;
    A add[kWide] = {};
    if (operands.bias)
      copy_run(operands.bias + group * phases.channels + channels.begin, add, channels.size());
    TileGrid::Tile tile = grid.at(order.tiles.begin);
    for (int64_t t = 0; t < order.tiles.size(); ++t, grid.advance(tile)) {
      const TileSpace::Box box = space.box(tile, H::kOutputs, W::kOutputs);
      T* to = target.first + tile.image * s.image + channels.begin * s.channel + box.first * s.pixel;
      const int64_t row = box.row * s.pixel, column = box.column * s.pixel;
      for (int64_t k = 0; k < channels.size(); k += L) {
        const A* m = products + order[t] * planes.stride + k;
        const int64_t count = min_of(L, channels.size() - k);
        T* out = to + k * s.channel;
        Vec<A> y[kPadded] = {};
        transform_tile<A, Transform::kOutput, Tile>(
            [&](int i, int j) { return load(m + (i * W::kProducts + j) * planes.plane); },
            [&](int n, Vec<A> sum) { y[n / W::kOutputs * kRow + n % W::kOutputs] = sum + load(add + k); });
        if (s.channel == 1) {
          if (box.inside && count == L && !operands.epilogue.any()) {
#pragma GCC unroll 8
            for (int i = 0; i < H::kOutputs; ++i) {
#pragma GCC unroll 8
              for (int j = 0; j < W::kOutputs; ++j) store(out + i * row + j * column, y[i * kRow + j]);
            }
            continue;
          }
          for (int64_t i = box.rows.begin; i < box.rows.end; ++i) {
            for (int64_t j = box.columns.begin; j < box.columns.end; ++j) {
              T* pixel = out + i * row + j * column;
              store_part(pixel, operands.epilogue(pixel, y[i * kRow + j], count), count);
            }
          }
          continue;
        }
        for (int64_t n = 0; n < kPadded; n += L) transpose<A>(y + n);  // y[n + channel][pixel - n]
        const bool whole_rows = box.inside && column == 1;
        for (int64_t lane = 0; lane < count; ++lane) {
          T* channel = out + lane * s.channel;
          const auto value = [&](int64_t n) {
            return reinterpret_cast<const A*>(y + n / L * L + lane) + n % L;
          };
          if constexpr (std::is_same_v<T, A> && kRow <= L) {
            if (whole_rows) {
              for (int i = 0; i < H::kOutputs; ++i) store_row(channel + i * row, value(i * kRow));
              continue;
            }
          }
          for (int64_t i = box.rows.begin; i < box.rows.end; ++i) {
            for (int64_t j = box.columns.begin; j < box.columns.end; ++j) {
              T* pixel = channel + i * row + j * column;
              store_one(pixel, operands.epilogue.one(pixel, *value(i * kRow + j)));
            }
          }
        }
      }
    }
  }

  // A tile's row of a channel, channels first.
  void store_row(T* to, const A* values) const {
    constexpr int kAtOnce = W::kOutputs & -W::kOutputs;
    using Row = typename VecOf<A, kAtOnce>::type;
    if (!operands.epilogue.any()) {
      __builtin_memcpy(to, values, W::kOutputs * sizeof(A));
      return;
    }
    for (int j = 0; j < W::kOutputs; j += kAtOnce)
      store_unaligned(to + j, operands.epilogue.of_few(to + j, load_unaligned<Row>(values + j)));
  }

  bool applies_epilogue() const { return true; }
  Phases phases;
  TapBlocks taps;
  TileGrid grid;
  WinogradDepth depth;
  int64_t groups, panels;
  bool kept;  // the weights, transformed: they fit the cache, and there are many tiles
  // Otherwise, with a depth of more than the channels, whether a block takes a chunk of it after the other:
  // sums of all panels need less memory than patches of all chunks, so that it may have more tiles.
  bool by_chunks;
  Operands<T> operands;
  int64_t threads, block_tiles, tile_blocks;
  bool shared_panels;  // weights are transformed a panel at a time, and used by many tasks
  PackedWeights<A> weights;
  int64_t weights_plane, scratch_weights, scratch_size;  // in elements
  A* scratch;
};

}  // namespace cnnext::cpu::CNNEXT_ISA
