// Convolution of groups as wide as one or two vectors, and its gradient with respect to the input: a tile of
// pixels for each group,
//   destination[pixel, channel] = bias[channel] + sum over (tap, source channel) of source * weight
// where source elements are broadcast and destination channels are the lanes. Groups as wide as half or a
// quarter of a vector are joined to bundles (conv_group_rows.h): an element of each is broadcast at a time.
//
// A task copies its bundle's channels of some source rows into scratch memory, where pixels are close to each
// other and zeros stand for the columns in the padding; pixels that a stride separates are put side by side.
// Channels first are turned to channels last as they are copied, and the results back.
// Rows of taps in the padding are left out. Two spatial axes at most. Each element is summed in one order.
#pragma once

#include "conv_gemm_bf16.h"
#include "conv_group_rows.h"
#include "entry.h"
#include "packed_weights.h"
#include "scratch.h"
#include "stream.h"
#include "winograd_choice.h"

namespace cnnext::cpu::CNNEXT_ISA {

// Pixels of a tile of so many vectors; fewer sums than 8 would wait for each other.
template <int Vectors>
constexpr int kGroupRows = Vectors == 1 && kRows < 8 ? 2 * kRows : kRows;

template <class A>
struct GroupTap {
  const A *source, *weight;  // of pixel 0 of the row; [source channel][kCols]
};

// Some taps' sums of Rows pixels, `depth` source channels a tap, on top of the bias or, if that is null, of
// what is there. Pixels are Pixel elements apart in the source.
template <Product P, class T, class V, int Joined, int Rows, int Vectors, int64_t Pixel>
void group_tile(const GroupTap<Acc<T>>* tap, int64_t taps, int64_t at, int64_t depth, const Acc<T>* bias,
                T* to, int64_t to_pixel, bool streamed) {
  using A = Acc<T>;
  constexpr int64_t L = sizeof(V) / sizeof(A);
  if constexpr (Joined > 1) depth = L / Joined;
  V sum[Rows][Vectors] = {};
  for (; taps > 0; --taps, ++tap) {
    const A *a = tap->source + at * Pixel, *b = tap->weight;
    for (int64_t d = 0; d < depth; ++d, a += Joined, b += kCols<A>) {
      V y[Vectors];
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) y[v] = load_unaligned<V>(b + v * L);
#pragma GCC unroll 14
      for (int r = 0; r < Rows; ++r) {
        V x;
        if constexpr (Joined > 1) {
          x = repeat<Joined>(a + r * Pixel);
        } else {
          x = a[r * Pixel] - V{};
        }
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) sum[r][v] = add_product<P>(sum[r][v], x, y[v]);
      }
    }
  }
#pragma GCC unroll 14
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      T* out = to + r * to_pixel + v * L;
      const V y = turn_lanes<L / Joined>(sum[r][v]);
      if constexpr (P == Product::kPairs) {
        store_rounded(out, load_unaligned<V>(bias + v * L) + y);
      } else if constexpr (std::is_same_v<T, A>) {
        const V sum = load_unaligned<V>(bias ? bias + v * L : out) + y;
        streamed && sizeof(V) == kAlignment ? stream(out, sum) : store(out, sum);
      } else {
        store(out, (bias ? load(bias + v * L) : load(out)) + y);
      }
    }
  }
}

template <Product P, class T, int Vectors, int64_t Pixel, int Joined = 1, class V = Vec<Acc<T>>>
auto group_tile_of(int64_t rows) {
  return with_count<kGroupRows<Vectors>>(
      rows, [](auto n) { return &group_tile<P, T, V, Joined, n, Vectors, Pixel>; });
}

// T is the type of the tensors, E that of the elements which are multiplied: T, or pairs of channels in
// channels last.
template <class T, class E = T>
struct GroupTiles {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;
  static constexpr Product kProduct = std::is_same_v<E, T> ? Product::kNumbers : Product::kPairs;
  static constexpr int64_t kBoxElements = (96 << 10) / sizeof(A);  // of scratch memory, where rows are short
  static constexpr int64_t kFewTasks = 16;
  static constexpr int64_t kChain = 160;  // products summed before they are added to memory, for accuracy

  GroupTiles(const ConvProblem& p, bool gradient, const ConvBuffers& b, char* workspace)
      : numbers(p, gradient),
        phases(phases_of(p, gradient, kProduct)),
        shape(p.shape),
        channels_last(p.layout == Layout::kChannelsLast),
        pairs_apart(kProduct == Product::kPairs && !has_pairs_in_weight(p)),
        row(shape, gradient),
        joined(kProduct == Product::kPairs ? 1 : joined_groups(p)),
        bundles(shape.groups / joined),
        depth(phases.source_channels),
        source_channels(joined * depth),
        to_channels(joined * phases.channels),
        pixel(source_channels > 16                                 ? 32
              : source_channels > 8 || kProduct == Product::kPairs ? 16
                                                                   : 8),
        width(gradient ? shape.axis[2].output : shape.axis[2].input),
        height(gradient ? shape.axis[1].output : shape.axis[1].input),
        to_width(gradient ? shape.axis[2].input : shape.axis[2].output),
        to_height(gradient ? shape.axis[1].input : shape.axis[1].output),
        operands(operands_of<T, E>(b, gradient)) {
    panels = ceil_div(to_channels, kCols<A>);
    streamed = streams();
    band = to_height;
    const auto box_size = [&] { return source_extent(shape.axis[1], gradient, band) * row.size() * pixel; };
    while (band > 1 &&
           (box_size() > kBoxElements || shape.N * bundles * ceil_div(to_height, band) < kFewTasks)) {
      band = ceil_div(band, 2);
    }
    panel_size = shape.taps() * (pairs_apart ? 2 * depth : depth) * kCols<A>;
    packed = PackedWeights<A>(p, bundles, panels * panel_size);
    memory.base = packed.place(b, workspace);
    boxes = memory.take_each<A>(p.threads, box_size());
    lists = memory.take_each<GroupTap<A>>(p.threads, phases.max_taps);
    results = memory.take_each<T>(p.threads, channels_last ? 0 : band * to_width * to_channels);
  }

  int64_t workspace_bytes() const { return packed.bytes() + memory.bytes; }

  // Whether nothing of the result would be left in the caches for the operator that reads it, and whether it
  // is whole lines, each written once.
  bool streams() const {
    const int64_t pixel_bytes = bundles * to_channels * int64_t(sizeof(T));
    return channels_last && to_channels == L && L * int64_t(sizeof(T)) == kAlignment &&
           shape.N * to_height * to_width * pixel_bytes > kStreamedBytes &&
           phases.max_taps * depth <= kChain &&
           reinterpret_cast<uintptr_t>(operands.destination) % kAlignment == 0;
  }

  void run(const Parallel& parallel) const {
    Gather kernel = phase(0);  // with all taps
    for (int a = 1; a < kAxes; ++a) kernel.axis[a] = {0, 1, 1, 1, 1, shape.axis[a].kernel, 0, 1, 0, 1};
    const auto pack = [&](int64_t bundle, A* to, int) {
      if (joined > 1) return pack_joined(kernel, bundle, to);
      for (int64_t n = 0; n < panels; ++n)
        pack_panel(kernel, bundle, block(n, kCols<A>, to_channels), to + n * panel_size);
    };
    packed.start(parallel, pack);
    const int64_t bands = ceil_div(to_height, band);
    parallel(shape.N * bands * bundles, [&](int64_t task, int thread) {
      const int64_t bundle = task % bundles, image = task / bundles / bands;
      compute(image, bundle, packed.get(bundle, thread, pack), block(task / bundles % bands, band, to_height),
              boxes[thread], lists[thread], results[thread]);
    });
  }

  // [tap][source channel][lane], lanes being [channel][group].
  void pack_joined(const Gather& kernel, int64_t bundle, A* to) const {
    for (int64_t m = 0; m < kernel.taps(); ++m, to += depth * kCols<A>) {
      const E* tap =
          operands.weight + bundle * joined * phases.weight_group + phases.weight_offset(kernel, m);
      for (int64_t n = 0; n < joined; ++n) {
        for (int64_t k = 0; k < phases.channels; ++k) {
          const E* w = tap + n * phases.weight_group + k * phases.weight_channel;
          A* lane = to + k * joined + n;
          for (int64_t d = 0; d < depth; ++d) lane[d * kCols<A>] = load_one(w + d * phases.weight_source);
        }
      }
    }
  }
  void pack_panel(Gather kernel, int64_t group, Range channels, A* to) const {
    if constexpr (kProduct == Product::kPairs) {
      if (pairs_apart) {  // in the weight: joined after they have been packed
        kernel.channels = numbers.source_channels;
        pack_weight_panel(numbers, kernel, reinterpret_cast<const T*>(operands.weight), group, channels,
                          {0, kernel.depth()}, to);
        return pair_rows(to, kCols<A>, kernel.depth(), kCols<A>);
      }
    }
    pack_weight_panel(phases, kernel, operands.weight, group, channels, {0, kernel.depth()}, to);
  }

  Gather phase(int64_t number) const {
    Gather g = {{kUnitAxis, kUnitAxis, kUnitAxis}, {1, to_height, to_width}, shape.N, depth};
    for (int a = kAxes - 1; a > 0; --a) {
      g.axis[a] = phases.axis(a, number % phases.count[a]);
      number /= phases.count[a];
    }
    return g;
  }

  void compute(int64_t image, int64_t bundle, const A* weights, Range rows, A* box, GroupTap<A>* taps,
               T* result) const {
    const Range read = copy_rows(image, bundle, rows, box);
    T* first = operands.destination + image * phases.destination.image +
               bundle * to_channels * phases.destination.channel +
               rows.begin * to_width * phases.destination.pixel;
    if (channels_last) result = first;
    const int64_t pixel_step = channels_last ? phases.destination.pixel : to_channels;
    for (int64_t f = 0; f < phases.size(); ++f) {
      const Gather g = phase(f);
      const PhaseAxis &y = g.axis[1], &x = g.axis[2];
      for (int64_t j = 0; j < y.count; ++j) {
        const int64_t at = y.start + j * y.step;
        if (at < rows.begin || at >= rows.end) continue;
        for (int64_t n = 0; n < panels; ++n) {
          int64_t count = 0;
          for (int64_t m1 = 0; m1 < y.taps; ++m1) {
            const int64_t from = y.source_index(j, m1);
            if (from < 0 || from >= height) continue;
            for (int64_t m2 = 0; m2 < x.taps; ++m2) {
              const int64_t column = (from - read.begin) * row.size() + row.at(x.source_index(0, m2));
              const int64_t tap = (y.tap + m1 * y.tap_step) * shape.axis[2].kernel + x.tap + m2 * x.tap_step;
              taps[count++] = {box + column * pixel, weights + n * panel_size + tap * depth * kCols<A>};
            }
          }
          const int64_t channels = min_of(kCols<A>, to_channels - n * kCols<A>);
          A add[kCols<A>] = {};
          if (operands.bias) copy_run(operands.bias + bundle * to_channels + n * kCols<A>, add, channels);
          row_of_tiles(taps, count, x, channels, add,
                       result + (at - rows.begin) * to_width * pixel_step + n * kCols<A>, pixel_step,
                       y.step * to_width * pixel_step);
        }
      }
    }
    if (streamed) end_streams();
    if (!channels_last)
      store_group_planes(result, to_channels, rows.size() * to_width, phases.destination.channel, first);
  }

  // `to`: pixel 0 of the row. The one that comes next is fetched.
  void row_of_tiles(const GroupTap<A>* taps, int64_t count, const PhaseAxis& x, int64_t channels,
                    const A* add, T* to, int64_t pixel_step, int64_t next_row) const {
    const int64_t step = x.step * pixel_step;
    to += x.start * pixel_step;
    const int64_t tiles = ceil_div(x.count, channels > L ? kGroupRows<2> : kGroupRows<1>);
    const int64_t least = x.count / max_of(tiles, 1);
    const int64_t longer = x.count - least * tiles;
    const int64_t part = sizeof(T) < sizeof(A) ? max_of(count, 1) : kChain / depth;
    for (int64_t i = 0, j = 0; i < tiles; ++i) {
      const int64_t size = least + (i < longer);
      for (int64_t i = j; i < j + size && !streamed; ++i) __builtin_prefetch(to + i * step + next_row, 1);
      for (int64_t first = 0; first < max_of(count, 1); first += part) {
        tile(size, channels > L)(taps + first, min_of(part, count - first), j, depth,
                                 first == 0 ? add : nullptr, to + j * step, step, streamed);
      }
      j += size;
    }
  }
  auto tile(int64_t rows, bool wide) const {
    if constexpr (kProduct == Product::kPairs) {
      if (to_channels == kHalfGroup) return group_tile_of<kProduct, T, 1, 16, 1, HalfVec>(rows);
    } else if (joined > 1) {
      constexpr int64_t kPixel = max_of(L, 8);
      return with_joined<A>(joined, [&](auto j) { return group_tile_of<kProduct, T, 1, kPixel, j>(rows); });
    }
    if (pixel == 8) return group_tile_of<kProduct, T, 1, 8>(rows);
    if (pixel == 16 || kProduct == Product::kPairs)
      return wide ? group_tile_of<kProduct, T, 2, 16>(rows) : group_tile_of<kProduct, T, 1, 16>(rows);
    return wide ? group_tile_of<kProduct, T, 2, 32>(rows) : group_tile_of<kProduct, T, 1, 32>(rows);
  }

  // The source rows that some rows read, to box[row][column][pixel].
  Range copy_rows(int64_t image, int64_t bundle, Range rows, A* box) const {
    const Range read = source_range(shape.axis[1], phases.gradient, rows.begin, rows.end);
    const E* from =
        operands.source + image * phases.source.image + bundle * source_channels * phases.source.channel;
    if (channels_last) {
      with_joined<A>(joined, [&](auto j) {
        copy_group_rows<j>(from, phases.source.pixel, width, read, row, source_channels, pixel,
                           source_channels, box);
      });
    } else if constexpr (kProduct == Product::kPairs) {
      const int64_t plane = numbers.source.channel;
      const T* first = reinterpret_cast<const T*>(operands.source) + image * numbers.source.image +
                       bundle * numbers.source_channels * plane;
      turn_group_rows(BFloat16Pairs{first, plane}, 2 * plane, width, read, row, source_channels, pixel, box);
    } else {
      turn_group_rows(from, phases.source.channel, width, read, row, source_channels, pixel, box, joined);
    }
    return read;
  }

  Phases numbers, phases;  // of single channels, and of what is multiplied
  ConvShape shape;
  bool channels_last, pairs_apart, streamed;
  GroupRows row;
  int64_t joined, bundles;                      // groups in a bundle, one if they are not joined
  int64_t depth;                                // source channels of a group
  int64_t source_channels, to_channels, pixel;  // of a bundle; elements of a copied pixel
  int64_t width, height, to_width, to_height;
  Operands<T, E> operands;
  int64_t panels, band, panel_size;
  PackedWeights<A> packed;
  ScratchLayout memory;  // behind them
  PerThread<A> boxes;
  PerThread<GroupTap<A>> lists;
  PerThread<T> results;  // channels first: of a band, before they are turned
};

// Groups of which each fills vectors alone; `halves`: or half a vector, with pairs of bfloat16.
template <bool Gradient>
const char* wide_groups_exclude(const ConvProblem& p, bool halves) {
  const int64_t C = p.shape.C_per_group(), K = p.shape.K_per_group();
  const int64_t from = Gradient ? K : C, to = Gradient ? C : K;
  const int64_t lanes = lanes_of(p.dtype);
  halves &= from == kHalfGroup && to == kHalfGroup;
  const bool eights = from == 8 && to == 8 && lanes == 8 && p.dtype != DType::kFloat64;  // AVX2
  if (!halves && !eights && (from < 16 || from > 32)) return "takes 16 to 32 channels in a group";
  if (!halves && to != lanes && to % (2 * lanes) != 0) return "takes whole vectors of channels in a group";
  return nullptr;
}
inline const char* group_axes_exclude(const ConvProblem& p) {
  const Window& z = p.shape.axis[0];
  if (p.shape.groups < 4) return "takes four groups or more";
  return z.input != 1 || z.kernel != 1 || z.padding != 0 ? "takes two axes" : nullptr;
}
template <bool Gradient>
const char* group_tiles_excludes(const ConvProblem& p) {
  const char* reason = joined_groups(p) > 1 ? nullptr : wide_groups_exclude<Gradient>(p, false);
  return reason ? reason : group_axes_exclude(p);
}

using PairsGroupTiles = GroupTiles<BFloat16, BFloat16Pair>;

template <bool Gradient>
const char* group_tiles_bf16_refuses(const ConvProblem& p) {
  if (const char* reason = pairs_excludes<Gradient>(p)) return reason;
  if (const char* reason = wide_groups_exclude<Gradient>(p, p.layout == Layout::kChannelsLast)) return reason;
  return group_axes_exclude(p);
}

template <bool Gradient>
constexpr ConvKernel kConvGroupTilesBf16 = entry<Only<PairsGroupTiles, Gradient>>(
    "group_tiles_bf16", "a tile of pixels for each group, by products of pairs of bfloat16",
    group_tiles_bf16_refuses<Gradient>);

template <class T>
using GroupTilesOf = GroupTiles<T>;
template <bool Gradient>
const char* group_tiles_refuses(const ConvProblem& p);  // conv_choice.h
template <bool Gradient>
constexpr ConvKernel kConvGroupTiles = entry<ByType<GroupTilesOf, Gradient>>(
    "group_tiles", "a tile of pixels for each group", group_tiles_refuses<Gradient>);

}  // namespace cnnext::cpu::CNNEXT_ISA
