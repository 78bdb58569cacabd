// Stride-1 3x3 convolution, forward and gradient with respect to the input, by Winograd's F(4x4, 3x3): a
// quarter of the multiplications (winograd_transforms.h has the algorithm and its points).
//
// The destination is cut into tiles of 4x4 pixels; with dilation, each residue of the position is a grid of
// its own. A task is a block of tiles times a range of channels. It transforms the tiles' patches for all
// source channels once (V, private to the thread), then for each panel of kCols channels sums 36 small matrix
// products and transforms them back. Weights are transformed for all tasks beforehand where many blocks of
// tiles use them and they fit the cache, else in each task as it goes, in blocks of kChunk channels: they
// never reach memory.
#pragma once

#include "conv_gemm.h"
#include "winograd_tiles.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kChunk = 64;  // source channels summed at a time
constexpr int64_t kChunkStride = kChunk + 16;
constexpr int64_t kRawChannels = 64;       // of weights, packed at a time before they are transformed
constexpr int64_t kMaxTiles = 64;          // in a block
constexpr int64_t kSharedBytes = 8 << 20;  // transformed weights up to this size are made once for all tasks

template <class T>
struct Winograd {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>, kWide = kCols<A>;

  Winograd(const ConvProblem& p, bool gradient, const ConvBuffers& b, char* workspace)
      : phases(p, gradient),
        grid(phases.at(0)),
        groups(p.shape.groups),
        source(static_cast<const T*>(gradient ? b.output : b.input)),
        weight(static_cast<const T*>(b.weight)),
        bias(static_cast<const T*>(b.bias)),
        destination(static_cast<T*>(gradient ? b.input : b.output)) {
    chunks = ceil_div(phases.source_channels, kChunk);
    panels = ceil_div(phases.channels, kWide);
    tile_blocks = ceil_div(grid.size(), kMaxTiles);
    block_tiles = ceil_div(grid.size(), tile_blocks);
    const int64_t all_products = groups * panels * kProducts * phases.source_channels * kWide;
    shared = tile_blocks > 2 && all_products * int64_t(sizeof(A)) <= kSharedBytes;
    weights_plane = odd_lines((shared ? phases.source_channels : kChunk) * kWide);
    weights_size = shared ? groups * panels * kProducts * weights_plane : 0;
    // Each block of panels transforms the patches again.
    panel_blocks = blocks_for(p.threads, tile_blocks * groups, panels);
    task_panels = ceil_div(panels, panel_blocks);
    plane = odd_lines(block_tiles * kChunkStride);
    products_plane = odd_lines(block_tiles * kWide);
    scratch_patches = chunks * kProducts * plane;
    scratch_weights = 9 * kChunk * kWide + (shared ? 0 : kProducts * weights_plane);
    scratch_size = round_up(scratch_patches + scratch_weights + kProducts * products_plane, 64) + 64;
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
        for (int64_t c = 0; c < phases.source_channels; c += kChunk) {
          transform_weights(task / panels, task % panels, c, scratch + thread * scratch_size,
                            transformed(task / panels, task % panels, c));
        }
      });
    }
    parallel(groups * tile_blocks * panel_blocks, [&](int64_t task, int thread) {
      const Range part = block(task % panel_blocks, task_panels, panels);
      task /= panel_blocks;
      const Range tiles = block(task % tile_blocks, block_tiles, grid.size());
      const int64_t group = task / tile_blocks;
      A* patches = scratch + thread * scratch_size;
      A* weights = patches + scratch_patches;
      A* products = weights + scratch_weights;
      transform_patches(group, tiles, patches);
      for (int64_t panel = part.begin; panel < part.end; ++panel) {
        multiply(group, tiles.size(), panel, patches, weights, products);
        store_tiles(group, tiles, panel, products);
      }
    });
  }

  A* transformed(int64_t group, int64_t panel, int64_t c) const {
    return packed + (group * panels + panel) * kProducts * weights_plane + c * kWide;
  }

  // to[product][channel][kWide], products `weights_plane` apart, for a chunk of source channels; `raw` is
  // scratch memory.
  void transform_weights(int64_t group, int64_t panel, int64_t c, A* raw, A* to) const {
    Gather chunk = grid.g;
    chunk.channels = min_of(kChunk, phases.source_channels - c);
    pack_weight_panel(phases, chunk, weight + c * phases.weight_source, group,
                      block(panel, kWide, phases.channels), {0, chunk.depth()}, raw);
    for (int64_t i = 0; i < chunk.channels * kWide; i += L) {
      Vec<A> g[9], half[kPatch * 3];
#pragma GCC unroll 9
      for (int tap = 0; tap < 9; ++tap) g[tap] = load(raw + tap * chunk.channels * kWide + i);
#pragma GCC unroll 3
      for (int s = 0; s < 3; ++s) weight_transform<A>(g + s, 3, half + s, 3);
#pragma GCC unroll 6
      for (int r = 0; r < kPatch; ++r) {
        Vec<A> u[kPatch];
        weight_transform<A>(half + r * 3, 1, u, 1);
#pragma GCC unroll 6
        for (int n = 0; n < kPatch; ++n) store(to + (r * kPatch + n) * weights_plane + i, u[n]);
      }
    }
  }

  // patches[chunk][product][tile][kChunkStride], `plane` apart
  void transform_patches(int64_t group, Range tiles, A* patches) const {
    const PhaseAxis *h = grid.g.axis + 1, *w = grid.g.axis + 2;
    const int64_t offset[2] = {h->offset, w->offset}, extent[2] = {h->source, w->source};
    const T* from = source + group * phases.source_channels * phases.source.channel;
    const TileReader<T, kPatch> read(grid, from, phases.source, offset, extent);
    read(tiles, {0, phases.source_channels}, [&](int64_t t, int64_t c, const Vec<A>* d, int64_t step) {
      A* to = patches + c / kChunk * kProducts * plane + (t - tiles.begin) * kChunkStride + c % kChunk;
      transform_patch<A>(d, step, to, plane);
    });
  }

  // products[product][tile][kWide] = patches * weights, summed over all chunks; `products_plane` apart.
  void multiply(int64_t group, int64_t tiles, int64_t panel, const A* patches, A* weights,
                A* products) const {
    const int64_t cols = min_of(kWide, phases.channels - panel * kWide);
    for (int64_t c = 0; c < phases.source_channels; c += kChunk) {
      const int64_t depth = min_of(kChunk, phases.source_channels - c);
      const A* b = shared ? transformed(group, panel, c) : weights;
      if (!shared) transform_weights(group, panel, c, weights + kProducts * weights_plane, weights);
      for (int64_t n = 0; n < kProducts; ++n) {
        tile_column<kChunkStride, 1, kWide>(tiles, depth, cols, patches, b,
                                            TileSums<A>{products + n * products_plane, c > 0});
        patches += plane;
        b += weights_plane;
      }
    }
  }

  void store_tiles(int64_t group, Range tiles, int64_t panel, const A* products) const {
    const Range channels = block(panel, kWide, phases.channels);
    const int64_t first = group * phases.channels + channels.begin;
    const int64_t offset[2] = {0, 0}, extent[2] = {grid.g.extent[1], grid.g.extent[2]};
    A add[kWide] = {};
    if (bias) copy_run(bias + first, add, channels.size());
    for (int64_t t = 0; t < tiles.size(); ++t) {
      const TileGrid::Tile tile = grid.at(tiles.begin + t);
      int64_t pixel[kOutputs * kOutputs];
      grid.for_each(tile, kOutputs, offset, extent, [&](int n, int64_t at) { pixel[n] = at; });
      T* to = destination + tile.image * phases.destination.image + first * phases.destination.channel;
      for (int64_t k = 0; k < channels.size(); k += L) {
        Vec<A> m[kProducts], half[kOutputs * kPatch], y[kOutputs * kOutputs];
        for (int n = 0; n < kProducts; ++n) m[n] = load(products + n * products_plane + t * kWide + k);
        for (int j = 0; j < kPatch; ++j) output_transform<A>(m + j, kPatch, half + j, kPatch);
        for (int i = 0; i < kOutputs; ++i) output_transform<A>(half + i * kPatch, 1, y + i * kOutputs, 1);
        for (int n = 0; n < kOutputs * kOutputs; ++n) y[n] += load(add + k);
        T* out = to + k * phases.destination.channel;
        const int64_t count = min_of(L, channels.size() - k);
        if (phases.destination.channel == 1) {
          for (int n = 0; n < kOutputs * kOutputs; ++n) {
            if (pixel[n] >= 0) store_some(out + pixel[n] * phases.destination.pixel, y[n], count);
          }
        } else {
          for (int n = 0; n < kOutputs * kOutputs; n += L) transpose<A>(y + n);  // y[n + channel][pixel - n]
          const bool whole = pixel[kOutputs * kOutputs - 1] >= 0 && grid.residues[1] == 1;
          for (int64_t lane = 0; lane < count; ++lane) {
            T* channel = out + lane * phases.destination.channel;
            for (int n = 0; n < kOutputs * kOutputs; n += kOutputs) {
              const auto values = reinterpret_cast<const A*>(y + n / L * L + lane) + n % L;
              if (std::is_same_v<T, A> && whole) {
                __builtin_memcpy(channel + pixel[n], values, kOutputs * sizeof(A));
                continue;
              }
              for (int j = 0; j < kOutputs; ++j) {
                if (pixel[n + j] >= 0) store_one(channel + pixel[n + j], values[j]);
              }
            }
          }
        }
      }
    }
  }

  Phases phases;
  TileGrid grid;
  int64_t groups;
  const T *source, *weight, *bias;
  T* destination;
  int64_t chunks, panels, tile_blocks, block_tiles, task_panels, panel_blocks, plane, products_plane;
  bool shared;
  int64_t weights_plane, weights_size, scratch_patches, scratch_weights, scratch_size;  // in elements
  A *packed, *scratch;
};

// Why the algorithm does not apply at all, or null.
inline const char* winograd_excludes(const ConvProblem& p) {
  const Window &d = p.shape.axis[0], &h = p.shape.axis[1], &w = p.shape.axis[2];
  if (!p.winograd) return "turned off by cnnext.backends.winograd";
  if (p.dtype == DType::kFloat64) return "float64 keeps to direct sums";
  if (d.kernel != 1 || d.output != 1 || d.input != 1) return "takes two spatial axes";
  if (h.kernel != 3 || w.kernel != 3) return "takes 3x3 kernels";
  if (h.stride != 1 || w.stride != 1) return "takes stride 1";
  return nullptr;
}

// Cycles of a vector unit for one image, counted roughly: products and transforms against the direct sum. The
// choice does not depend on the batch, so that an image's result does not either.
template <bool Gradient>
const char* winograd_refuses(const ConvProblem& p) {
  if (const char* reason = winograd_excludes(p)) return reason;
  const Phases phases(p, Gradient);
  const TileGrid grid(phases.at(0));
  const double C = double(phases.source_channels), tiles = double(grid.per_image());
  const double lanes = double(kLanes<float>), vectors_of_K = double(ceil_div(phases.channels, kLanes<float>));
  const double products = tiles * kProducts * C * vectors_of_K;
  const double transforms = tiles * (250 * C / lanes + 220 * vectors_of_K) + 130 * C * vectors_of_K;
  const double rate = pairs_refuse<Gradient>(p) ? 1 : 2;  // of the direct sum's products
  const double direct = double(phases.at(0).pixels() / p.shape.N) * 9 * C * vectors_of_K / rate;
  return 1.15 * (products + transforms) < direct ? nullptr : "its transforms would cost more than they save";
}

template <bool Gradient>
int64_t winograd_workspace(const ConvProblem& p) {
  int64_t bytes = 0;
  with_type(p.dtype, [&](auto* tag) { bytes = Winograd<Pointee<decltype(tag)>>::workspace(p, Gradient); });
  return bytes;
}
template <bool Gradient>
void winograd_run(const ConvProblem& p, const ConvBuffers& b, const Parallel& parallel, char* workspace) {
  with_type(p.dtype,
            [&](auto* tag) { Winograd<Pointee<decltype(tag)>>(p, Gradient, b, workspace).run(parallel); });
}

constexpr ConvKernel kConvWinograd = {"winograd", "a quarter of the multiplications, by F(4x4, 3x3)",
                                      winograd_refuses<false>, winograd_workspace<false>,
                                      winograd_run<false>};
constexpr ConvKernel kConvGradInputWinograd = {"winograd", "a quarter of the multiplications, by F(4x4, 3x3)",
                                               winograd_refuses<true>, winograd_workspace<true>,
                                               winograd_run<true>};

}  // namespace cnnext::cpu::CNNEXT_ISA
