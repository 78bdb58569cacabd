// Gradient of a convolution with respect to the weight, by the adjoint of Winograd's minimal filtering:
//   grad_weight = G^T [ sum over tiles of (A grad_output A^T) . (B^T input B) ] G
// with the same tiles, blocks of taps and transforms as the forward convolution.
//
// A task is a block of output channels times a block of taps and of input channels times a split of the tiles
// (conv_splits.h); for each kGradTiles tiles it transforms both factors and adds matrix products [k][tile] *
// [tile][c] to its sums. Many threads get smaller blocks of channels, which transform more in all.
#pragma once

#include "conv_grad_weight_gemm.h"
#include "conv_splits.h"
#include "winograd_choice.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kGradChannels = 128;               // output and input channels of a task
constexpr int64_t kGradStride = kGradChannels + 16;  // of a tile's transform, off the powers of two
constexpr int64_t kGradTiles = 64;                   // tiles transformed at a time
constexpr int64_t kFewTiles = 32;       // up to which their products are not kept for all channels
constexpr int64_t kWinogradTasks = 16;  // splits are made until there are this many tasks

// Of filters of three or four taps, one behind the other, the vector from element kFirst on. Lanes of g[tap]
// are filters.
template <class A, int kTaps, int kFirst, int... Lane>
CNNEXT_INLINE Vec<A> interleave_taps(const Vec<A>* g, std::integer_sequence<int, Lane...>) {
  constexpr int L = kLanes<A>;
  const auto lower = shuffle<((kFirst + Lane) % kTaps % 2 * L + (kFirst + Lane) / kTaps)...>(g[0], g[1]),
             upper =
                 shuffle<((kFirst + Lane) % kTaps % 2 * L + (kFirst + Lane) / kTaps)...>(g[2], g[kTaps - 1]);
  return shuffle<((kFirst + Lane) % kTaps < 2 ? Lane : L + Lane)...>(lower, upper);
}

template <class T, class Tile>
struct GradWeightWinograd {
  using A = Acc<T>;
  using H = typename Tile::H;
  using W = typename Tile::W;
  using Order = TileOrder<Tile>;
  static constexpr int kProducts = Tile::kProducts, kWeights = Tile::kWeights, kTaps = Tile::kTaps;
  static constexpr int64_t L = kLanes<A>, kWide = kCols<A>;
  static constexpr int64_t kPlane = kGradTiles * kGradStride + 16;
  static constexpr int64_t kFewPlane = kRows * kWide + 16;  // sums of a few rows
  static constexpr int64_t kFactor = kProducts * kPlane;    // elements of a transformed factor

  GradWeightWinograd(const ConvProblem& p, const ConvBuffers& b, char* workspace)
      : phases(p, false),
        taps(phases.at(0), Tile()),
        grid(phases.at(0), Tile()),
        input(static_cast<const T*>(b.input)),
        grad_output(static_cast<const T*>(b.output)),
        grad_weight(static_cast<T*>(b.weight)),
        threads(p.threads),
        K(phases.channels, 1),
        C(phases.source_channels, kWide) {
    K.cut(ceil_div(K.size, kGradChannels));
    C.cut(ceil_div(C.size, kGradChannels));
    const int64_t each = phases.shape.groups * taps.size();  // blocks of the same channels
    const int64_t chunks = ceil_div(grid.size(), kGradTiles);
    split.splits = max_of(1, min_of(kWinogradTasks / (K.blocks * C.blocks * each), chunks / 2));
    // Three tasks would leave one of two threads idle.
    if (split.divided()) split.splits = round_up(split.splits, 2);
    cut_for_threads(K, C, each * split.splits, threads, kWide / 2, 1);
    few_tiles = grid.size() <= kFewTiles && kProducts == kWeights;  // sums of one product each
    block_plane = odd_lines(K.block_size * C.block_size);
    sums_size = kWeights * (few_tiles ? kFewPlane : block_plane);
    split.blocks = K.blocks * C.blocks * each;
    split.size = kTaps * block_plane;
    scratch = reinterpret_cast<A*>(workspace);
    scratch_size = 2 * kFactor + round_up(sums_size + split.size, 64) + 16;
    split.memory = scratch + threads * scratch_size;
  }

  int64_t workspace_bytes() const { return (threads * scratch_size + split.elements()) * int64_t(sizeof(A)); }

  void run(const Parallel& parallel) const {
    parallel(split.tasks(), [&](int64_t task, int thread) {
      A* outputs = scratch + thread * scratch_size;
      A* inputs = outputs + kFactor;
      A* sums = inputs + kFactor;
      A* result = split.of_task(task, sums + sums_size);
      const int64_t b = split.block_of(task);
      const Range tiles = split.part(task, grid.size());
      if (few_tiles) {
        const Order order(grid, tiles);
        transform_factors(b, order, outputs, inputs);
        multiply_few(b, order, outputs, inputs, sums, result);
      } else {
        multiply_many(b, tiles, outputs, inputs, sums);
        transform_back(b, sums, result);
      }
      if (!split.divided()) store_weight(b, result);
    });
    split.add_up(parallel, [&](int64_t b, const A* result) { store_weight(b, result); });
  }

  int64_t group_of(int64_t b) const { return b / C.blocks / taps.size() / K.blocks; }
  Range k_of(int64_t b) const { return K.at(b / C.blocks / taps.size() % K.blocks); }
  const T* input_of(int64_t b) const {
    return input + group_of(b) * phases.source_channels * phases.source.channel;
  }
  const T* grad_of(int64_t b) const {
    return grad_output + group_of(b) * phases.channels * phases.destination.channel;
  }
  Gather taps_of(int64_t b) const { return taps.at(b / C.blocks % taps.size()); }
  Range c_of(int64_t b) const { return C.at(b % C.blocks); }

  // outputs[product][tile][k] and inputs[product][tile][c]
  void transform_factors(int64_t b, const Order& order, A* outputs, A* inputs) const {
    const Range tiles = order.tiles, k = k_of(b), c = c_of(b);
    const TileReader<T, H::kInputs, W::kInputs> read_input{grid, TileSpace::source(grid, taps_of(b)),
                                                           input_of(b), phases.source};
    read_input(tiles, c, [&](int64_t t, int64_t channel, auto pixels) {
      A* to = inputs + order[t - tiles.begin] * kGradStride + channel - c.begin;
      transform_tile<A, Transform::kInput, Tile>(pixels, [&](int n, Vec<A> v) { store(to + n * kPlane, v); });
    });
    const TileReader<T, H::kOutputs, W::kOutputs> read_output{grid, TileSpace::destination(grid), grad_of(b),
                                                              phases.destination};
    read_output(tiles, k, [&](int64_t t, int64_t channel, auto pixels) {
      A* to = outputs + order[t - tiles.begin] * kGradStride + channel - k.begin;
      transform_tile<A, Transform::kGradOutput, Tile>(pixels,
                                                      [&](int n, Vec<A> v) { store(to + n * kPlane, v); });
    });
  }

  // One of the products, [k][c] = sum over tiles, for rows from k and a panel of columns from c.
  void multiply(int n, Range k, int64_t c, int64_t cols, Range tiles, const A* outputs, const A* inputs,
                TileSums<A> sums, Ahead* ahead = nullptr) const {
    const int64_t first = n * kPlane + tiles.begin * kGradStride;
    tile_column<1, kGradStride, kGradStride>(k.size(), tiles.size(), cols - c, outputs + first + k.begin,
                                             inputs + first + c, sums, ahead);
  }

  // Whether a product is the first of those that are added to one sum.
  static constexpr bool first_of_sum(int product) {
    const int row = product / W::kProducts, column = product % W::kProducts;
    return H::weight(row) == row && W::weight(column) == column;
  }

  // sums[weight][panel][k][kWide], weights `block_plane` apart, over all chunks of the tiles.
  void multiply_many(int64_t b, Range tiles, A* outputs, A* inputs, A* sums) const {
    const int64_t rows = k_of(b).size(), cols = c_of(b).size();
    if (tiles.size() == 0) fill_zero(sums, sums_size);
    for (int64_t begin = tiles.begin; begin < tiles.end; begin += kGradTiles) {
      const Order order(grid, {begin, min_of(begin + kGradTiles, tiles.end)});
      transform_factors(b, order, outputs, inputs);
      const Range next = {order.tiles.end, min_of(order.tiles.end + kGradTiles, tiles.end)};
      const int64_t calls = order.parts(kFetchSteps) * ceil_div(cols, kWide) * ceil_div(rows, kRows);
      Ahead ahead = {fetched_tiles(input_of(b), phases.source, grid, TileSpace::source(grid, taps_of(b)),
                                   next, H::kInputs, W::kInputs, c_of(b), calls),
                     fetched_tiles(grad_of(b), phases.destination, grid, TileSpace::destination(grid), next,
                                   H::kOutputs, W::kOutputs, k_of(b), calls)};
      for (int n = 0; n < kProducts; ++n) {
        for (int64_t c = 0; c < cols; c += kWide) {
          multiply(n, {0, rows}, c, cols, order.rows(n), outputs, inputs,
                   {sums + Tile::weight(n) * block_plane + c * K.block_size,
                    begin > tiles.begin || !first_of_sum(n)},
                   &ahead);
        }
      }
    }
  }
  void transform_back(int64_t b, const A* sums, A* result) const {
    for (int64_t c = 0; c < c_of(b).size(); c += kWide) {
      transform_panel(k_of(b).size(), sums + c * K.block_size, block_plane, result + c * K.block_size);
    }
  }

  // Few tiles are little work for each sum: a few rows at a time are transformed back while they are in the
  // first-level cache.
  void multiply_few(int64_t b, const Order& order, const A* outputs, const A* inputs, A* sums,
                    A* result) const {
    const int64_t rows = k_of(b).size(), cols = c_of(b).size();
    for (int64_t c = 0; c < cols; c += kWide) {
      for (Range k = {0, 0}; k.begin < rows; k.begin = k.end) {
        k.end = min_of(k.begin + kRows, rows);
        for (int n = 0; n < kProducts; ++n) {
          multiply(n, k, c, cols, order.rows(n), outputs, inputs, {sums + n * kFewPlane, false});
        }
        transform_panel(k.size(), sums, kFewPlane, result + c * K.block_size + k.begin * kWide);
      }
    }
  }

  // result[tap][row][kWide], taps `block_plane` apart, from sums[weight][row][kWide], weights `plane` apart.
  void transform_panel(int64_t rows, const A* sums, int64_t plane, A* result) const {
    for (int64_t i = 0; i < rows * kWide; i += L) {
      transform_tile<A, Transform::kGradWeight, Tile>(
          [&](int r, int j) { return load(sums + (r * W::kWeights + j) * plane + i); },
          [&](int n, Vec<A> g) { store(result + n * block_plane + i, g); });
    }
  }

  void store_weight(int64_t b, const A* result) const {
    const Range k = k_of(b), c = c_of(b);
    const Gather part = taps_of(b);
    T* to = grad_weight + group_of(b) * phases.weight_group + k.begin * phases.weight_channel +
            c.begin * phases.weight_source;
    const bool whole_filters = phases.weight_source == kTaps && part.taps() == kTaps && kTaps <= L;
    int64_t offset[kTaps], plane[kTaps];
    for (int64_t tap = 0; tap < part.taps(); ++tap) {
      offset[tap] = phases.weight_offset(part, tap);
      plane[tap] = (tap / part.axis[2].taps * W::kTaps + tap % part.axis[2].taps) * block_plane;
    }
    for (int64_t i = 0; i < k.size(); ++i, to += phases.weight_channel) {
      const auto at = [&](int64_t j) {
        return result + j / kWide * kWide * K.block_size + i * kWide + j % kWide;
      };
      if (whole_filters) {
        store_filters(c.size(), at, to);
        continue;
      }
      for (int64_t tap = 0; tap < part.taps(); ++tap) {
        T* out = to + offset[tap];
        if (phases.weight_source == 1) {
          for (int64_t j = 0; j < c.size(); j += L) {
            store_part(out + j, load(at(j) + plane[tap]), min_of(L, c.size() - j));
          }
        } else {
          for (int64_t j = 0; j < c.size(); ++j) store_one(out + j * phases.weight_source, at(j)[plane[tap]]);
        }
      }
    }
  }

  // Filters of `count` input channels whose taps are neighbours in memory. Many taps are transposed, and each
  // filter overwrites the end of the one before.
  template <class At>
  void store_filters(int64_t count, At&& at, T* to) const {
    for (int64_t j = 0; j < count; j += L, to += kTaps * L) {
      const int64_t filters = min_of(L, count - j);
      Vec<A> g[max_of(L, kTaps)] = {};
      for (int tap = 0; tap < kTaps; ++tap) g[tap] = load(at(j) + tap * block_plane);
      if constexpr (kTaps == 3 || kTaps == 4) {
        store_interleaved(g, kTaps * filters, to, std::make_integer_sequence<int, kTaps>());
        continue;
      }
      transpose<A>(g);
      int64_t n = 0;
      for (; kTaps * (filters - n) >= L; ++n) store(to + kTaps * n, g[n]);
      for (; n < filters; ++n) store_part(to + kTaps * n, g[n], kTaps * (filters - n));
    }
  }

  template <int... Number>
  static void store_interleaved(const Vec<A>* g, int64_t elements, T* to,
                                std::integer_sequence<int, Number...>) {
    const auto store_vector = [&](auto number, int64_t count) {
      constexpr int kFirst = decltype(number)::value * int(L);
      const Vec<A> v = interleave_taps<A, kTaps, kFirst>(g, std::make_integer_sequence<int, int(L)>());
      if (count > 0) store_part(to + kFirst, v, count);
    };
    (store_vector(std::integral_constant<int, Number>(), elements - Number * L), ...);
  }

  Phases phases;
  TapBlocks taps;
  TileGrid grid;
  const T *input, *grad_output;
  T* grad_weight;
  int64_t threads;
  CutAxis K, C;  // channels in blocks
  SplitSums<A> split;
  int64_t block_plane, sums_size, scratch_size;  // in elements
  bool few_tiles;
  A* scratch;
};

template <class Tile>
double grad_weight_cost(const Phases& phases) {
  const Gather g = phases.at(0);
  const double lanes = double(kLanes<float>), C = double(phases.source_channels), K = double(phases.channels);
  const double blocks = double(TapBlocks(g, Tile()).size());
  const TileGrid grid(g, Tile());
  const double tiles = double(grid.size()), products = double(g.images * grid.products_per_image());
  const auto vectors_of = [&](double channels) {
    return Tile::kStrides ? double(ceil_div(int64_t(channels), kLanes<float>)) : channels / lanes;
  };
  const double k_blocks = double(ceil_div(phases.channels, kGradChannels));
  const double c_blocks = double(ceil_div(phases.source_channels, kGradChannels));
  // With a stride the sums leave the first-level cache however few the tiles are. Without one, of few tiles,
  // the less registers a product has the more often it reads and writes them.
  constexpr double kSums = Tile::kStrides ? 14 : CNNEXT_VECTOR_BYTES == 64 ? 1 : 7;
  const double weights = (kSums * Tile::kWeights + 2.5 * Tile::kTaps) * blocks * C * K / lanes;
  const double factors = (Tile::kStrides ? 10 : 12) * Tile::kProducts * blocks * tiles *
                         (vectors_of(C) * k_blocks + vectors_of(K) * c_blocks);
  return Tile::kMargin * (products * blocks * C * K / lanes + weights + factors);
}
template <class Visit>
void with_grad_weight_tile(const ConvProblem& p, Visit&& visit) {
  const Phases phases(p, false);
  const auto cost = [&](auto tile) { return grad_weight_cost<decltype(tile)>(phases); };
  with_cheapest_tile<false>(p, phases, cost, visit);
}

struct GradWeightWinogradClasses {
  template <class Visit>
  static void with(const ConvProblem& p, const ConvBuffers& b, char* workspace, Visit&& visit) {
    with_grad_weight_tile(p, [&](auto* type, auto tile) {
      visit(GradWeightWinograd<Pointee<decltype(type)>, decltype(tile)>(p, b, workspace));
    });
  }
};
inline const char* winograd_grad_weight_refuses(const ConvProblem& p);  // conv_grad_weight_choice.h
constexpr ConvKernel kConvGradWeightWinograd =
    entry<GradWeightWinogradClasses>("winograd", kWinogradSummary, winograd_grad_weight_refuses);

}  // namespace cnnext::cpu::CNNEXT_ISA
