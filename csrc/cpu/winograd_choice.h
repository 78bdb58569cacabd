// With which tiles Winograd's algorithm computes a problem, and what that costs.
#pragma once

#include "conv_phases.h"
#include "winograd_tiles.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr const char* kWinogradSummary = "few multiplications by Winograd's minimal filtering";

// Calls visit(tile) for every tile there is. 16-bit types, whose direct products are cheaper, have one.
template <class T, bool Gradient, class Visit>
CNNEXT_INLINE void for_each_tile(Visit&& visit) {
  visit(PlainTile<3, 3>());
  if constexpr (std::is_same_v<T, float>) {
    visit(PlainTile<2, 2>());
    visit(PlainTile<4, 4>());
    visit(PlainTile<1, 3>());
    visit(PlainTile<1, 4>());
    visit(PlainTile<3, 1>());
    visit(PlainTile<4, 1>());
    visit(StridedTile<Gradient>());
  }
}

// Whether the tile filters along the axes that the kernel filters along, and along no other. A tile with a
// stride takes just its kernel, one without takes forward strides as well.
template <class Tile>
CNNEXT_INLINE bool filters_alike(const Phases& phases) {
  bool alike = true;
  for (int a = 1; a < kAxes; ++a) {
    const Window& w = phases.shape.axis[a];
    const int64_t taps = Tile::kTapsOf[a], stride = Tile::kStrideOf[a];
    if (stride > 1) {
      alike &= w.kernel == taps && w.stride == stride && w.dilation == 1;
    } else {
      alike &= (w.kernel > w.stride) == (taps > 1) && (w.stride == 1 || !phases.gradient);
    }
  }
  return alike;
}

// What a tile reads and writes. With a stride, a gradient's destination is cut into pairs of pixels: pair j,
// at 2 j + 1 and 2 j + 2 of the padded input, is reached by outputs j (its first pixel by tap 1, its second
// by tap 2) and j + 1 (its second by tap 0).
template <class Tile>
CNNEXT_INLINE Gather gather_for(const Phases& phases) {
  Gather g = phases.at(0);
  if (!phases.gradient) return g;
  for (int a = 1; a < kAxes; ++a) {
    if (Tile::kStrideOf[a] == 1) continue;
    const Window& w = phases.shape.axis[a];
    const int64_t first = w.padding > 0 ? (w.padding - 1) / 2 : -1, end = (w.input + w.padding) / 2;
    g.axis[a] = {2 * first + 1 - w.padding, 2, end - first, w.output, 1, 3, 2, -1, first, 1};
  }
  return g;
}

constexpr int64_t kKeptBytes = 8 << 20;  // transformed weights up to this size are kept for all tasks

// Tiles of a block, few enough that their patches stay in the cache beside other operators' data, but more
// where each block transforms the weights, which are not kept. `held` is the depth of the products, whose
// patches wait, or the number of channels, if it is their sums that do.
template <class Tile>
CNNEXT_INLINE int64_t most_tiles_of(int64_t held, bool kept) {
  constexpr int64_t kSquare = 6 * 6, kPatches = 64 * 512 * kSquare;  // elements
  const int64_t most = (kept ? kFewBlockTiles : kBlockTiles) * (Tile::kProducts >= kSquare ? 1 : kLineTiles);
  return clamp(kPatches / (Tile::kProducts * held), kRows, most);
}

constexpr int64_t kHalfGroup = kLanes<float> / 2;  // channels

// Groups of half a vector are taken by twos.
inline Phases winograd_phases(const ConvProblem& p, bool gradient) {
  Phases phases(p, gradient);
  const ConvShape& s = p.shape;
  const bool halves = sizeof(HalfVec) < sizeof(Vec<float>) && s.C_per_group() == kHalfGroup &&
                      s.K_per_group() == kHalfGroup && s.groups % 2 == 0;
  if (halves && p.dtype != DType::kFloat64) phases.join_groups(2);
  return phases;
}

// Products of two vectors that take as long as a weight's transform, and as a patch's or its result's, each
// of as many numbers as there are products, counted roughly: half of what strides make of a patch are copies.
template <class Tile>
constexpr double kWeightCost = Tile::kStrides ? 7 : 3.6;
template <class Tile>
constexpr double kPatchCost = Tile::kStrides ? 10 : 15;
constexpr double kGroupPatchCost = 7;  // the channels of a group are copied close to each other

// Products of two vectors that take as long as the whole, counted roughly, here for one image: the choice
// does not depend on the batch, so that an image's result does not either.
template <class Tile>
double conv_cost(const Phases& phases) {
  const Gather g = gather_for<Tile>(phases);
  const double C = double(phases.summed_channels()), K = double(ceil_div(phases.channels, kLanes<float>));
  const int64_t whole_vectors = phases.source_channels / kLanes<float>;
  const double ragged = phases.source_channels % kLanes<float> == 0 ? 0 : Tile::kStrides ? 4 : 1;
  const double vectors_of_C = double(whole_vectors) + ragged;
  const double blocks = double(TapBlocks(g, Tile()).size());
  if (phases.joined_groups > 1 && blocks > 1) return 1e300;  // their products take one block of taps
  const TileGrid grid(g, Tile());
  const double tiles = double(grid.per_image());
  const double each = phases.shape.groups > 1 ? kGroupPatchCost : kPatchCost<Tile>;
  // Weights too many to be kept are transformed again for each block of tiles.
  const bool kept = Tile::kWeights * blocks * C * K * kLanes<float> * sizeof(float) <= kKeptBytes;
  const int64_t depth = int64_t(blocks * C), held = kept ? depth : min_of(depth, phases.channels);
  const int64_t tile_blocks = ceil_div(int64_t(tiles), most_tiles_of<Tile>(held, kept));
  const double times = kept ? 1 : double(tile_blocks);
  const double weights = kWeightCost<Tile> * times * blocks * C * K,
               patches = each * tiles * blocks * vectors_of_C, sums = each * tiles * K;
  const double products = double(grid.products_per_image()) * blocks * C * K;
  return Tile::kMargin * (products + Tile::kWeights * weights + Tile::kProducts * (patches + sums));
}

// Calls visit(type, tile) with the cheapest tile.
template <bool Gradient, class Cost, class Visit>
void with_cheapest_tile(const ConvProblem& p, const Phases& phases, Cost&& cost, Visit&& visit) {
  with_float32_type(p.dtype, [&](auto* type) {
    using T = Pointee<decltype(type)>;
    double least = 0;
    int best = -1, number = 0;
    for_each_tile<T, Gradient>([&](auto tile) {
      if (filters_alike<decltype(tile)>(phases)) {
        const double total = cost(tile);
        if (best < 0 || total < least) best = number, least = total;
      }
      ++number;
    });
    number = 0;
    for_each_tile<T, Gradient>([&](auto tile) {
      if (number++ == best) visit(type, tile);
    });
  });
}
template <bool Gradient, class Visit>
void with_tile(const ConvProblem& p, Visit&& visit) {
  const Phases phases = winograd_phases(p, Gradient);
  const auto cost = [&](auto tile) { return conv_cost<decltype(tile)>(phases); };
  with_cheapest_tile<Gradient>(p, phases, cost, visit);
}

// Why the algorithm does not apply at all, or null.
inline const char* winograd_excludes(const ConvProblem& p, bool gradient) {
  if (!p.winograd) return "turned off by cnnext.backends.winograd";
  if (p.dtype == DType::kFloat64) return kExcludesFloat64;
  for (int a = 0; a < kAxes; ++a) {
    const Window& w = p.shape.axis[a];
    if (a == 0 && gradient && w.stride != 1) return "takes gradients of stride 1 along the first axis";
    if (a > 0 && w.stride != 1 && w.dilation != 1) return "takes a stride or a dilation, not both";
    if (w.kernel > 1 && w.dilation > 1 && w.dilation >= max_of(w.input, w.output))
      return "takes dilations shorter than the image";
  }
  return nullptr;
}

}  // namespace cnnext::cpu::CNNEXT_ISA
