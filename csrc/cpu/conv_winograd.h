// Convolution, forward and gradient with respect to the input, by Winograd's minimal filtering: a quarter of
// the multiplications for 3x3, about half along one axis or with a stride (winograd_transforms.h has the
// algorithm and its points).
//
// The destination is cut into tiles. A task is a block of tiles times a range of channels. It transforms the
// tiles' patches for all source channels once (V, private to the thread), then for each panel of kCols
// channels sums a small matrix product for each element of a patch and transforms them back. Where source
// channels are the more, it goes through them a chunk at a time instead, for all panels, whose sums wait.
// Narrow groups have a driver of their own (conv_winograd_groups.h).
#pragma once

#include "conv_winograd_groups.h"
#include "entry.h"

namespace cnnext::cpu::CNNEXT_ISA {

template <class T, class Tile>
struct Winograd : WinogradSteps<T, Tile> {
  using Steps = WinogradSteps<T, Tile>;
  using Steps::block_tiles, Steps::tile_blocks, Steps::shared_panels, Steps::weights_plane,
      Steps::scratch_weights;
  using Steps::kProducts, Steps::kWeights, Steps::kWide;
  using Steps::phases, Steps::taps, Steps::grid, Steps::depth, Steps::groups, Steps::panels, Steps::by_chunks,
      Steps::operands;
  using typename Steps::A, typename Steps::Reader, typename Steps::Order;
  // What multiply_few takes: tiles at most, and channels at a time.
  static constexpr int64_t kFewTiles = min_of(8, kRows), kChannelsAtOnce = 16;

  Winograd(const ConvProblem& p, bool gradient, const ConvBuffers& b, char* workspace)
      : Steps(p, gradient, b) {
    this->cut_tiles(p, this->even_tiles());
    // Each block of panels transforms the patches again.
    panel_blocks = blocks_for(p.threads, tile_blocks * groups, panels);
    task_panels = ceil_div(panels, panel_blocks);
    patches = {kChunkStride, odd_lines(block_tiles * kChunkStride)};
    products = {kWide, odd_lines(block_tiles * kWide)};
    scratch_patches = (by_chunks ? 1 : depth.chunks()) * kProducts * patches.plane;
    const int64_t sums = (by_chunks ? task_panels : 2) * kProducts * products.plane;  // 2: and of a chain
    this->set_memory(b, workspace, scratch_patches + scratch_weights + sums);
  }

  void run(const Parallel& parallel) const {
    this->start_weights(parallel);
    parallel(groups * tile_blocks * panel_blocks, [&](int64_t task, int thread) {
      const Range part = block(task % panel_blocks, task_panels, panels);
      task /= panel_blocks;
      const int64_t group = task % groups;  // neighbours in memory follow each other
      const Range tiles = block(task / groups, block_tiles, grid.size());
      A* patch = this->scratch + thread * this->scratch_size;
      if (by_chunks) return compute_by_chunks(group, tiles, part, patch);
      compute(group, tiles, part, patch, thread);
    });
  }

  void compute(int64_t group, Range tiles, Range part, A* patch, int thread) const {
    A* weights = patch + scratch_patches;
    A* product = weights + scratch_weights;
    const Reader read = this->reader(group);
    const auto target = this->target(group);
    const Order order(grid, tiles);
    for (int64_t chunk = 0; chunk < depth.chunks(); ++chunk)
      transform_chunk(read, order, chunk, patch + chunk * kProducts * patches.plane);
    const int64_t calls = fetch_calls_of(order, depth.total());  // for a panel
    const Range next = {tiles.end, min_of(tiles.end + block_tiles, grid.size())};
    Ahead ahead;
    ahead.source = fetched_tiles(read.from, read.s, grid, read.space, next, Tile::H::kInputs,
                                 Tile::W::kInputs, {0, phases.source_channels}, part.size() * calls);
    for (int64_t panel = part.begin; panel < part.end; ++panel) {
      ahead.destination =
          fetched_tiles(target.first, target.s, grid, TileSpace::destination(grid), tiles, Tile::H::kOutputs,
                        Tile::W::kOutputs, block(panel, kWide, phases.channels), calls);
      const A* transformed = shared_panels ? this->transformed(group, panel, thread, weights) : nullptr;
      multiply(group, order, panel, patch, transformed, weights, product, ahead);
      this->store_tiles(group, order, panel, product, products, target);
    }
  }

  void compute_by_chunks(int64_t group, Range tiles, Range part, A* patch) const {
    A* weights = patch + scratch_patches;
    A* product = weights + scratch_weights;
    const Reader read = this->reader(group);
    const auto target = this->target(group);
    const Order order(grid, tiles);
    const auto product_of = [&](int64_t panel) {
      return product + (panel - part.begin) * kProducts * products.plane;
    };
    Ahead ahead;
    for (int64_t chunk = 0; chunk < depth.chunks(); ++chunk) {
      transform_chunk(read, order, chunk, patch);
      const int64_t calls = fetch_calls_of(order, depth.size_of(chunk));
      if (chunk + 1 < depth.chunks()) {
        ahead.source = fetched_tiles(read.from, read.s, grid, read.space, tiles, Tile::H::kInputs,
                                     Tile::W::kInputs, depth.channels_of(chunk + 1), part.size() * calls);
      }
      for (int64_t panel = part.begin; panel < part.end; ++panel) {
        this->transform_weights(group, panel, chunk, weights + kWeights * weights_plane, weights);
        const bool last = panel + 1 == part.end;
        ahead.weights = fetched_chunk(group, last ? part.begin : panel + 1, chunk + last, calls);
        multiply_chunk(order, panel, chunk, patch, weights, product_of(panel), ahead);
      }
    }
    for (int64_t panel = part.begin; panel < part.end; ++panel)
      this->store_tiles(group, order, panel, product_of(panel), products, target);
  }

  static int64_t fetch_calls_of(const Order& order, int64_t products) {
    return order.parts(kRows) * fetch_calls(1, products);
  }

  void transform_chunk(Reader read, const Order& order, int64_t chunk, A* patch) const {
    const Range blocks = depth.blocks_of(chunk), channels = depth.channels_of(chunk);
    for (int64_t index = blocks.begin; index < blocks.end; ++index, patch += channels.size()) {
      read.space = TileSpace::source(grid, taps.at(index));
      this->transform_patches(read, order, channels, patches, patch);
    }
  }

  // Products that are summed before they are added to memory. Sums in halves of a chunk round a fifth less
  // and take 3 % longer. Channels first has them: direct sums are as short there, and the error shall be of
  // that size.
  int64_t chain() const { return phases.source.channel == 1 ? kChunk : kChunk / 2; }

  // The products of the tiles' patches and a panel's weights, summed over all chunks. If these are not
  // `transformed`, they are here, in `weights`.
  void multiply(int64_t group, const Order& order, int64_t panel, const A* patch, const A* transformed,
                A* weights, A* product, Ahead& ahead) const {
    const int64_t tiles = order.tiles.size();
    if constexpr (kProducts == kWeights) {
      if (!shared_panels && tiles <= kFewTiles && depth.blocks_of(0).size() == 1)
        return multiply_few(group, tiles, panel, patch, weights, product, ahead);
    }
    for (int64_t chunk = 0; chunk < depth.chunks(); ++chunk, patch += kProducts * patches.plane) {
      const A* all = shared_panels ? transformed + depth.before(chunk) * kWide : weights;
      if (!shared_panels) {
        this->transform_weights(group, panel, chunk, weights + kWeights * weights_plane, weights);
        ahead.weights = fetched_chunk(group, panel, chunk + 1, fetch_calls_of(order, depth.size_of(chunk)));
      }
      multiply_chunk(order, panel, chunk, patch, all, product, ahead);
    }
  }

  // Adds the products of one chunk to those before it.
  void multiply_chunk(const Order& order, int64_t panel, int64_t chunk, const A* patch, const A* weights,
                      A* product, Ahead& ahead) const {
    const int64_t cols = min_of(kWide, phases.channels - panel * kWide);
    for (int n = 0; n < kProducts; ++n, patch += patches.plane) {
      const Range rows = order.rows(n);
      const A* b = weights + Tile::weight(n) * weights_plane;
      for (int64_t begin = 0, end = depth.size_of(chunk); begin < end; begin += chain()) {
        const TileSums<A> sums = {product + n * products.plane + rows.begin * kWide, chunk > 0 || begin > 0};
        tile_column<kChunkStride, 1, kWide>(rows.size(), min_of(chain(), end - begin), cols,
                                            patch + rows.begin * kChunkStride + begin, b + begin * kWide,
                                            sums, &ahead);
      }
    }
  }

  // The same for few tiles, whose products take no longer than the transform of the weights: of some channels
  // a row of transformed weights is made, and used while it is in the first-level cache.
  void multiply_few(int64_t group, int64_t tiles, int64_t panel, const A* patch, A* weights, A* product,
                    Ahead& ahead) const {
    const int64_t cols = min_of(kWide, phases.channels - panel * kWide);
    A* raw = weights + kWeights * weights_plane;
    for (int64_t chunk = 0; chunk < depth.chunks(); ++chunk, patch += kProducts * patches.plane) {
      const int64_t channels = depth.size_of(chunk);
      ahead.weights = fetched_chunk(group, panel, chunk + 1, kProducts * fetch_calls(tiles, channels));
      const auto packed = this->pack_taps(group, panel, chunk, depth.blocks_of(chunk).begin, raw);
      for (int64_t c = 0; c < channels; c += kChannelsAtOnce) {
        const Range some = {c, min_of(c + kChannelsAtOnce, channels)};
        const PlaneTiles<A> tile = {patch + c,
                                    weights,
                                    product + kProducts * products.plane,
                                    product,
                                    patches.plane,
                                    kChannelsAtOnce * kWide,
                                    products.plane,
                                    c % chain() == 0,
                                    some.end % chain() == 0 || some.end == channels,
                                    chunk > 0 || c >= chain()};
        multiply_rows(packed.tap, some, cols, tiles, tile, weights, ahead,
                      std::make_integer_sequence<int, Tile::H::kProducts>());
      }
    }
  }
  template <int... Row>
  void multiply_rows(const A* const* tap, Range some, int64_t cols, int64_t tiles, PlaneTiles<A> tile,
                     A* weights, Ahead& ahead, std::integer_sequence<int, Row...>) const {
    (multiply_row<Row>(tap, some, cols, tiles, tile, weights, ahead), ...);
  }
  template <int Row>
  void multiply_row(const A* const* tap, Range some, int64_t cols, int64_t tiles, PlaneTiles<A> tile,
                    A* weights, Ahead& ahead) const {
    constexpr int kPlanes = Tile::W::kProducts;
    const bool narrow = cols <= Steps::L;
    for (int64_t i = 0; i < some.size() * kWide; i += narrow ? kWide : Steps::L) {
      transform_row<A, Transform::kWeight, Tile, Row>(
          [&](int h, int w) { return load(tap[h * Tile::W::kTaps + w] + some.begin * kWide + i); },
          [&](int j, Vec<A> u) { store(weights + j * kChannelsAtOnce * kWide + i, u); });
    }
    tile.a += Row * kPlanes * tile.a_plane;
    tile.chain += Row * kPlanes * tile.c_plane;
    tile.c += Row * kPlanes * tile.c_plane;
    tile_planes_of<A, kChunkStride>(tiles, narrow)(kPlanes, some.size(), tile, &ahead);
  }

  // The weights of a chunk, or of the next panel's first.
  FetchedRows fetched_chunk(int64_t group, int64_t panel, int64_t chunk, int64_t calls) const {
    if (chunk == depth.chunks()) chunk = 0, ++panel;
    const Range channels = depth.channels_of(chunk);
    Gather part = taps.at(depth.blocks_of(chunk).begin);
    part.channels = channels.size();
    return fetched_weights(phases, part, operands.weight + channels.begin * phases.weight_source, group,
                           block(panel, kWide, phases.channels), {0, part.depth()}, calls);
  }

  TilePlanes patches, products;
  int64_t panel_blocks, task_panels, scratch_patches;
};

template <bool Gradient>
struct WinogradClasses {
  template <class Visit>
  static void with(const ConvProblem& p, const ConvBuffers& b, char* workspace, Visit&& visit) {
    with_tile<Gradient>(p, [&](auto* type, auto tile) {
      using T = Pointee<decltype(type)>;
      using Tile = decltype(tile);
      if (WinogradGroups<T, Tile>::takes(p, Gradient)) {
        visit(WinogradGroups<T, Tile>(p, Gradient, b, workspace));
      } else {
        visit(Winograd<T, Tile>(p, Gradient, b, workspace));
      }
    });
  }
};

template <bool Gradient>
const char* winograd_refuses(const ConvProblem& p);  // conv_choice.h
template <bool Gradient>
constexpr ConvKernel kConvWinograd =
    entry<WinogradClasses<Gradient>>("winograd", kWinogradSummary, winograd_refuses<Gradient>);

}  // namespace cnnext::cpu::CNNEXT_ISA
