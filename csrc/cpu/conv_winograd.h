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

#include "conv_phases.h"
#include "winograd_transforms.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kChunk = 64;  // source channels summed at a time
constexpr int64_t kChunkStride = kChunk + 16;
constexpr int64_t kMaxTiles = 64;          // in a block
constexpr int64_t kSharedBytes = 8 << 20;  // transformed weights up to this size are made once for all tasks

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
    weights_size = shared ? all_products : groups * panels * 9 * phases.source_channels * kWide;
    panel_blocks = 1;  // each of them transforms the patches again: no more than balances the threads
    const int64_t enough = 4 * p.threads;
    while (panel_blocks < min_of(panels, enough) && tile_blocks * groups * panel_blocks < enough &&
           tile_blocks * groups * panel_blocks % p.threads != 0) {
      ++panel_blocks;
    }
    task_panels = ceil_div(panels, panel_blocks);
    plane = odd_lines(block_tiles * kChunkStride);
    scratch_patches = chunks * kProducts * plane;
    scratch_weights = shared ? 0 : kProducts * kChunk * kWide;
    scratch_size = round_up(scratch_patches + scratch_weights + kProducts * block_tiles * kWide, 64) + 64;
    for (int a = 0; a < 2; ++a) {
      source_offset[a] = grid.g.axis[a + 1].offset;
      source_extent[a] = grid.g.axis[a + 1].source;
    }
    packed = reinterpret_cast<A*>(workspace);
    scratch = packed + round_up(weights_size, 64);
  }

  static int64_t workspace(const ConvProblem& p, bool gradient) {
    const Winograd self(p, gradient, {}, nullptr);
    return (round_up(self.weights_size, 64) + p.threads * self.scratch_size) * sizeof(A);
  }

  void run(const Parallel& parallel) const {
    parallel(groups * panels, [&](int64_t task, int thread) {
      const int64_t group = task / panels, panel = task % panels;
      const Range channels = block(panel, kWide, phases.channels);
      A* raw = shared ? scratch + thread * scratch_size : raw_weights(group, panel);
      // Shared weights pass through the thread's scratch memory, which holds at least 9 chunks.
      for (int64_t c = 0; shared && c < phases.source_channels; c += kChunk) {
        Gather part = grid.g;
        part.channels = min_of(kChunk, phases.source_channels - c);
        pack_weight_panel(phases, part, weight + c * phases.weight_source, group, channels, raw);
        transform_weights(raw, part.channels, part.channels, transformed(group, panel, c),
                          phases.source_channels);
      }
      if (!shared) pack_weight_panel(phases, grid.g, weight, group, channels, raw);
    });
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

  A* raw_weights(int64_t group, int64_t panel) const {
    return packed + (group * panels + panel) * 9 * phases.source_channels * kWide;
  }
  A* transformed(int64_t group, int64_t panel, int64_t c) const {
    return packed + (group * panels + panel) * kProducts * phases.source_channels * kWide + c * kWide;
  }

  // raw[tap][raw_channels][kWide] to to[product][to_channels][kWide], for the first `count` channels.
  static void transform_weights(const A* raw, int64_t raw_channels, int64_t count, A* to,
                                int64_t to_channels) {
    for (int64_t i = 0; i < count * kWide; i += L) {
      Vec<A> g[9], half[kPatch * 3], u[kProducts];
      for (int tap = 0; tap < 9; ++tap) g[tap] = load(raw + tap * raw_channels * kWide + i);
      for (int s = 0; s < 3; ++s) weight_transform<A>(g + s, 3, half + s, 3);
      for (int r = 0; r < kPatch; ++r) weight_transform<A>(half + r * 3, 1, u + r * kPatch, 1);
      for (int n = 0; n < kProducts; ++n) store(to + n * to_channels * kWide + i, u[n]);
    }
  }

  // patches[chunk][product][tile][kChunkStride], `plane` apart
  void transform_patches(int64_t group, Range tiles, A* patches) const {
    const T* from = source + group * phases.source_channels * phases.source.channel;
    const auto patch_of = [&](int64_t t, int64_t c) {
      return patches + c / kChunk * kProducts * plane + (t - tiles.begin) * kChunkStride + c % kChunk;
    };
    if (phases.source.channel == 1) {
      for (int64_t t = tiles.begin; t < tiles.end; ++t) {
        const TileGrid::Tile tile = grid.at(t);
        int64_t pixel[kProducts];
        grid.for_each(tile, kPatch, source_offset, source_extent, [&](int n, int64_t at) { pixel[n] = at; });
        const T* image = from + tile.image * phases.source.image;
        for (int64_t c = 0; c < phases.source_channels; c += L) {
          const int64_t count = min_of(L, phases.source_channels - c);
          Vec<A> d[kProducts];
          for (int n = 0; n < kProducts; ++n) {
            d[n] = pixel[n] < 0 ? Vec<A>{} : load_some(image + pixel[n] * phases.source.pixel + c, count);
          }
          transform_patch(d, kPatch, patch_of(t, c));
        }
      }
      return;
    }
    // Channels first: strips of patches in a row are turned to channels last first, for a vector of channels.
    constexpr int64_t kStripTiles = 8, kStripWidth = kStripTiles * kOutputs + 2;
    Vec<A> strip[kPatch * kStripWidth];
    for (int64_t t = tiles.begin; t < tiles.end;) {
      const TileGrid::Tile tile = grid.at(t);
      const int64_t row_end = t + (grid.tiles[1] - t % grid.tiles[1]);
      const int64_t end = min_of(min_of(row_end, tiles.end), t + kStripTiles);
      const int64_t width = (end - t) * kOutputs + 2;
      for (int64_t c = 0; c < phases.source_channels; c += L) {
        const int64_t count = min_of(L, phases.source_channels - c);
        for (int i = 0; i < kPatch; ++i) {
          load_strip_row(from + tile.image * phases.source.image + c * phases.source.channel, tile, i, width,
                         count, reinterpret_cast<A*>(strip + i * width));
        }
        for (int64_t at = t; at < end; ++at)
          transform_patch(strip + (at - t) * kOutputs, width, patch_of(at, c));
      }
      t = end;
    }
  }

  // One row of a strip of patches, to[w][L].
  void load_strip_row(const T* from, const TileGrid::Tile& tile, int i, int64_t width, int64_t count,
                      A* to) const {
    const int64_t step = grid.residues[1];
    const int64_t h = tile.first[0] + source_offset[0] + i * grid.residues[0],
                  w = tile.first[1] + source_offset[1];
    const bool inside = h >= 0 && h < source_extent[0];
    const int64_t low = inside ? clamp(ceil_div(max_of(-w, 0), step), 0, width) : width;
    const int64_t high = inside ? clamp(ceil_div(max_of(source_extent[1] - w, 0), step), low, width) : width;
    fill_zero(to, low * L);
    if (count < L) fill_zero(to + low * L, (high - low) * L);
    const T* row = from + h * source_extent[1] + w + low * step;
    if (step == 1) {
      transpose_block(row, phases.source.channel, count, high - low,
                      [&](int64_t j) { return to + (low + j) * L; });
    } else {
      for (int64_t lane = 0; lane < count; ++lane) {
        for (int64_t j = low; j < high; ++j) {
          to[j * L + lane] = load_one(row + lane * phases.source.channel + (j - low) * step);
        }
      }
    }
    fill_zero(to + high * L, (width - high) * L);
  }

  // d[row * step + column] to 36 planes.
  void transform_patch(const Vec<A>* d, int64_t step, A* to) const {
    Vec<A> v[kProducts];
    for (int j = 0; j < kPatch; ++j) input_transform<A>(d + j, step, v + j, kPatch);
    for (int i = 0; i < kPatch; ++i) {
      Vec<A> row[kPatch];
      input_transform<A>(v + i * kPatch, 1, row, 1);
      for (int j = 0; j < kPatch; ++j) store(to + (i * kPatch + j) * plane, row[j]);
    }
  }

  // products[product][tile][kWide] = patches * weights, summed over all chunks.
  void multiply(int64_t group, int64_t tiles, int64_t panel, const A* patches, A* weights,
                A* products) const {
    const int64_t cols = min_of(kWide, phases.channels - panel * kWide);
    for (int64_t c = 0; c < phases.source_channels; c += kChunk) {
      const int64_t depth = min_of(kChunk, phases.source_channels - c);
      const A* b = shared ? transformed(group, panel, c) : weights;
      if (!shared)
        transform_weights(raw_weights(group, panel) + c * kWide, phases.source_channels, depth, weights,
                          kChunk);
      for (int64_t n = 0; n < kProducts; ++n) {
        tile_column<A, kChunkStride, 1>(tiles, depth, cols, patches, b, products + n * tiles * kWide, c > 0);
        patches += plane;
        b += (shared ? phases.source_channels : kChunk) * kWide;
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
        for (int n = 0; n < kProducts; ++n) m[n] = load(products + (n * tiles.size() + t) * kWide + k);
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
  int64_t chunks, panels, tile_blocks, block_tiles, task_panels, panel_blocks, plane;
  int64_t source_offset[2], source_extent[2];
  bool shared;
  int64_t weights_size, scratch_patches, scratch_weights, scratch_size;  // in elements
  A *packed, *scratch;
};

// Cycles of a vector unit, counted roughly: products and transforms against the direct sum.
template <bool Gradient>
const char* winograd_refuses(const ConvProblem& p) {
  if (p.dtype == DType::kFloat64) return "float64 keeps to direct sums";
  const ConvShape& s = p.shape;
  const Window &h = s.axis[1], &w = s.axis[2];
  if (s.axis[0].kernel != 1 || s.axis[0].output != 1 || s.axis[0].input != 1) return "takes two spatial axes";
  if (h.kernel != 3 || w.kernel != 3) return "takes 3x3 kernels";
  if (h.stride != 1 || w.stride != 1) return "takes stride 1";
  const Phases phases(p, Gradient);
  const TileGrid grid(phases.at(0));
  const double C = double(phases.source_channels), tiles = double(grid.size());
  const double lanes = double(kLanes<float>), vectors_of_K = double(ceil_div(phases.channels, kLanes<float>));
  const double products = tiles * kProducts * C * vectors_of_K;
  const double transforms = tiles * (250 * C / lanes + 220 * vectors_of_K) + 130 * C * vectors_of_K;
  const double direct = double(phases.at(0).pixels()) * 9 * C * vectors_of_K;
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
