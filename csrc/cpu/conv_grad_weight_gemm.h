// Gradient of dense convolution with respect to the weight, as one blocked matrix product summed over pixels:
//   grad_weight[k, (tap, c)] = sum over pixels of grad_output[pixel, k] * gathered input[pixel, (tap, c)]
//
// Of the two factors the one that is not gathered is transposed as it is packed, which is the smaller work.
// Few output channels are gathered instead of many input channels (`swapped`): without a stride, input pixels
// see the gradient of the output through the taps in the opposite order.
// Channels last: output channels are the rows of a tile, (tap, c) its vectors. Channels first: (c, tap) are
// the rows, output channels the vectors. A task is a block of rows times a block of columns times a split of
// the pixels (conv_splits.h). Many threads get smaller blocks, for which more is packed in all.
#pragma once

#include "conv_gemm_bf16.h"
#include "conv_splits.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kGradRows = 2 * kBlockRows;
constexpr int64_t kGradPanels = 4;               // columns packed at a time, in panels
constexpr int64_t kGradTasks = 16;               // splits are made until there are this many tasks
constexpr int64_t kGradPixels = 3 * kDepth / 4;  // of a split, at least

// Sums of columns (tap, c) to the weights of an output channel: runs of c, as far as a tap goes.
template <class T>
void store_columns_of(const Acc<T>* sums, Range columns, int64_t channels, const WeightStrides& w,
                      T* weight) {
  constexpr int64_t L = kLanes<Acc<T>>;
  for (int64_t at = columns.begin; at < columns.end;) {
    const int64_t tap = at / channels, c = at % channels;
    const int64_t count = min_of(channels - c, columns.end - at);
    const Acc<T>* from = sums + at - columns.begin;
    T* to = weight + tap * w.tap + c * w.c;
    for (int64_t n = 0; n < count; n += L) {
      const int64_t some = min_of(L, count - n);
      if (w.c == 1 && some == L) {
        store(to + n, load(from + n));
      } else {
        for (int64_t lane = 0; lane < some; ++lane) store_one(to + (n + lane) * w.c, from[n + lane]);
      }
    }
    at += count;
  }
}

inline bool swaps_factors(const ConvShape& s) {
  for (const Window& x : s.axis) {
    if (x.stride != 1) return false;
  }
  const bool alike = 4 * s.input_pixels() <= 5 * s.output_pixels();  // else more is summed
  return alike && s.groups == 1 && s.taps() > 1 && s.K <= 32 && 4 * s.K <= s.C;
}

// The factor that is gathered: the input or, swapped, the gradient of the output.
inline Gather gathered_factor(const ConvShape& s, bool swapped) {
  Gather g;
  for (int a = 0; a < kAxes; ++a) {
    const Window& x = s.axis[a];
    g.axis[a] = swapped ? grad_input_phase(x, 0) : forward_phase(x);
    g.extent[a] = swapped ? x.input : x.output;
  }
  g.images = s.N;
  g.channels = swapped ? s.K_per_group() : s.C_per_group();
  return g;
}

// Whether products with the padding are left out in channels last: where they are many, and the columns that
// are packed at a time all of one tap.
inline bool leaves_out_padding(const ConvProblem& p) {
  const Gather g = gathered_factor(p.shape, swaps_factors(p.shape));
  return g.channels % (kGradPanels * kVectors * lanes_of(p.dtype)) == 0 &&
         4 * g.images * products_inside(g) < 3 * g.taps() * g.pixels();
}

// T is the type of the tensors; their products are those of numbers or of pairs of pixels in bfloat16,
// channels last.
template <class T, Product P = Product::kNumbers>
struct GradWeightGemm {
  using A = Acc<T>;
  static constexpr int64_t kWide = kCols<A>, kGradCols = kGradPanels * kWide;
  static constexpr int64_t kColsStride = kGradCols + 16;       // off the powers of two
  static constexpr int64_t kSums = 2 * kGradRows * kGradCols;  // of a task, at most
  static constexpr bool kMayReadInPlace = std::is_same_v<T, float>;
  static constexpr int64_t kRowsSize = kGradRows * kDepthStride, kColsSize = kDepth * kColsStride;

  GradWeightGemm(const ConvProblem& p, const ConvBuffers& b, char* workspace)
      : shape(p.shape),
        channels_last(p.layout == Layout::kChannelsLast),
        swapped(swaps_factors(shape)),
        gathered(static_cast<const T*>(swapped ? b.output : b.input)),
        plain(static_cast<const T*>(swapped ? b.input : b.output)),
        grad_weight(static_cast<T*>(b.weight)),
        gathered_strides(strides_of(p.layout, shape.C, shape.input_pixels())),
        plain_strides(strides_of(p.layout, shape.K, shape.output_pixels())),
        w(weight_strides_of(p.weight_layout, shape.C_per_group(), shape.taps())),
        threads(p.threads),
        g(gathered_factor(shape, swapped)),
        plain_g(g) {
    for (PhaseAxis& x : plain_g.axis) x = {0, 1, x.count, x.count, 1, 1, 0, 1, 0, 1};
    plain_g.channels = swapped ? shape.C_per_group() : shape.K_per_group();
    if (swapped) {
      swap(gathered_strides, plain_strides);
      swap(w.k, w.c);
      grad_weight += (shape.taps() - 1) * w.tap;
      w.tap = -w.tap;
    }
    by_tap = channels_last && P == Product::kNumbers && leaves_out_padding(p);
    cols_in_place = kMayReadInPlace && channels_last && g.channels % kLanes<A> == 0;
    for (const PhaseAxis& x : g.axis) cols_in_place &= is_plain(x);
    // Pixels a multiple of 4 KiB apart would push each other out of the caches.
    rows_in_place = cols_in_place && plain_strides.pixel * int64_t(sizeof(T)) % 4096 != 0;
    if (!by_tap) g = joined(g);
    if (!by_tap) plain_g = joined(plain_g);
    order = channels_last || w.tap != 1 ? ColumnOrder{g.channels, 1} : ColumnOrder{1, g.taps()};
    rows = CutAxis(channels_last ? plain_g.channels : g.depth(), 1);
    cols = CutAxis(channels_last ? g.depth() : plain_g.channels, kWide);
    choose_blocks();
    scratch = reinterpret_cast<A*>(workspace);
    split.memory = scratch + threads * kScratch;
  }

  int64_t workspace_bytes() const { return (threads * kScratch + split.elements()) * int64_t(sizeof(A)); }

  // Blocks of rows and columns, and splits of the pixels. Splits divide the sums: they follow from the shape
  // alone. Threads may only ask for smaller blocks.
  void choose_blocks() {
    int64_t most_splits = max_of(1, ceil_div(g.pixels(), kDepth) / 4);
    rows.cut(ceil_div(rows.size, kGradRows));
    // Few rows take more columns: the factor that is the rows is packed again for each block of columns.
    const int64_t most_cols = kSums / rows.block_size / kGradCols * kGradCols;
    int64_t row_cuts = rows.blocks, col_cuts = ceil_div(cols.size, by_tap ? kGradCols : most_cols);
    // For few blocks the splits are smaller; where the pixels are too few for that, so are the blocks.
    const int64_t fewest = 4, few_blocks = shape.groups * row_cuts * col_cuts;
    most_splits = max_of(most_splits, min_of(ceil_div(fewest, few_blocks), g.pixels() / kGradPixels));
    while (!by_tap && shape.groups * row_cuts * col_cuts * most_splits < fewest &&
           rows.size * cols.size > kGradRows * kWide) {
      ++(2 * ceil_div(rows.size, row_cuts) > ceil_div(cols.size, col_cuts) ? row_cuts : col_cuts);
    }
    rows.cut(row_cuts);
    cols.cut(col_cuts);
    split.splits = clamp(kGradTasks / (shape.groups * rows.blocks * cols.blocks), 1, most_splits);
    if (!by_tap) cut_for_threads(rows, cols, shape.groups * split.splits, threads, kRows, 2);
    split.blocks = shape.groups * rows.blocks * cols.blocks;
    split.size = round_up(rows.block_size * cols.block_size, 64);
  }

  static constexpr int64_t kScratch = kRowsSize + kColsSize + kSums;

  void run(const Parallel& parallel) const {
    parallel(split.tasks(), [&](int64_t task, int thread) {
      A* packed = scratch + thread * kScratch;
      A* sums = split.of_task(task, packed + kRowsSize + kColsSize);
      const int64_t b = split.block_of(task);
      const Factors f = factors_of(b);
      const Range pixels = split.part(task, f.g.pixels());
      if (pixels.size() == 0) {
        fill_zero(sums, split.size);
        if (!split.divided()) store_weight(b, sums);
      }
      for (Range part = {pixels.begin, 0}; part.begin < pixels.end; part.begin = part.end) {
        part.end = min_of(part.begin + kDepth, pixels.end);
        const bool add = part.begin > pixels.begin, store = !split.divided() && part.end == pixels.end;
        const Range next = {part.end, min_of(part.end + kDepth, pixels.end)};
        if (channels_last) {
          add_rows_by_taps(b, f, part, next, packed, packed + kRowsSize, sums, add, store);
        } else {
          add_taps_by_columns(b, part, next, packed, packed + kRowsSize, sums, add);
          if (store) store_weight(b, sums);
        }
      }
    });
    split.add_up(parallel, [&](int64_t b, const A* sums) { store_weight(b, sums); });
  }

  Range rows_of(int64_t b) const { return rows.at(b % rows.blocks); }
  Range cols_of(int64_t b) const { return cols.at(b / rows.blocks % cols.blocks); }
  int64_t group_of(int64_t b) const { return b / rows.blocks / cols.blocks; }
  const T* gathered_of(int64_t b) const {
    return gathered + group_of(b) * g.channels * gathered_strides.channel;
  }
  const T* plain_of(int64_t b) const {
    return plain + group_of(b) * plain_g.channels * plain_strides.channel;
  }
  T* weight_of(int64_t b) const { return grad_weight + group_of(b) * plain_g.channels * w.k; }

  // The factors of a block: by taps, its columns are of one, and its pixels those for which it lies inside of
  // the input.
  struct Factors {
    Gather g, plain_g;
    int64_t first;  // of the columns of all taps
  };
  Factors factors_of(int64_t b) const {
    Factors f = {g, plain_g, 0};
    if (!by_tap) return f;
    int64_t tap = cols_of(b).begin / g.channels;
    f.first = tap * g.channels;
    for (int a = kAxes - 1; a >= 0; --a) {
      PhaseAxis &x = f.g.axis[a], &plain_axis = f.plain_g.axis[a];
      const int64_t m = tap % x.taps;
      tap /= x.taps;
      const Range inside = positions_inside(x, m);
      x.offset = x.source_index(inside.begin, m);
      x.start = plain_axis.start = plain_axis.offset = inside.begin;
      x.count = plain_axis.count = inside.size();
      x.taps = 1;
    }
    return f;
  }
  // sums[panel][row][kWide] += over at most kDepth pixels, written to the weight to finish. Channels last.
  // Meanwhile those that come next are fetched.
  void add_rows_by_taps(int64_t b, const Factors& f, Range pixels, Range next, A* packed_rows, A* packed_cols,
                        A* sums, bool add, bool finish) const {
    const Range k = rows_of(b), taps = cols_of(b);
    const int64_t depth = rows_in_place ? pixels.size()
                          : by_tap      ? pack_rows_of_tap(b, f, pixels, k, packed_cols, packed_rows)
                                        : pack_rows(b, pixels, k, packed_rows);
    const auto columns_from = [&](int64_t begin) {
      return Range{begin - f.first, min_of(begin + kGradCols, taps.end) - f.first};
    };
    const int64_t calls = fetch_calls(k.size(), depth);  // for a panel
    Ahead ahead = {};
    ahead.destination =
        fetched_pixels(plain_of(b), plain_strides, f.plain_g, next, k, ceil_div(taps.size(), kWide) * calls);
    for (Range part = {taps.begin, 0}; part.begin < taps.end; part.begin = part.end) {
      part.end = min_of(part.begin + kGradCols, taps.end);
      if (!cols_in_place) {
        pack_pixels(gathered_of(b), gathered_strides, f.g, pixels, columns_from(part.begin), packed_cols,
                    kColsStride);
      }
      const bool more = part.end < taps.end;
      ahead.source =
          fetched_pixels(gathered_of(b), gathered_strides, f.g, more ? pixels : next,
                         columns_from(more ? part.end : taps.begin), ceil_div(part.size(), kWide) * calls);
      if constexpr (P != Product::kNumbers) pair_rows(packed_cols, kColsStride, pixels.size(), part.size());
      for (Range panel = {part.begin, 0}; panel.begin < part.end; panel.begin = panel.end) {
        panel.end = min_of(panel.begin + kWide, part.end);
        A* c = sums + (panel.begin - taps.begin) * rows.block_size;
        const auto multiply = [&](auto output) {
          if constexpr (kMayReadInPlace) {
            if (cols_in_place) return multiply_in_place(b, pixels, panel, packed_rows, output, ahead);
          }
          tile_column<kDepthStride, 1, kColsStride, P>(k.size(), depth, panel.size(), packed_rows,
                                                       packed_cols + panel.begin - part.begin, output,
                                                       &ahead);
        };
        const int64_t tap = panel.begin / g.channels, channel = panel.begin % g.channels;
        const bool whole = w.c == 1 && fills_tiles<A>(panel.size()) && channel + panel.size() <= g.channels;
        if (finish && whole) {
          T* to = weight_of(b) + k.begin * w.k + tap * w.tap + channel;
          multiply(TileOutput<T, P>{to, w.k, add ? c : nullptr});
        } else {
          multiply(tile_sums(c, add));
          if (finish) store_rows(b, panel, c);
        }
      }
    }
  }

  // A panel's products where each pixel's channels are a row of columns as they are, and of rows unless
  // packed.
  template <class Output>
  void multiply_in_place(int64_t b, Range pixels, Range panel, const A* packed_rows, const Output& output,
                         Ahead& ahead) const {
    const Range k = rows_of(b);
    const int64_t pixel = gathered_strides.pixel;
    const T* columns = gathered_of(b) + pixels.begin * pixel + panel.begin;
    if (!rows_in_place) {
      return tile_column<kDepthStride, 1, 0>(k.size(), pixels.size(), panel.size(), packed_rows, columns,
                                             output, &ahead, {kDepthStride, 1, pixel});
    }
    const T* first = plain_of(b) + pixels.begin * plain_strides.pixel + k.begin;
    tile_column<1, 0, 0>(k.size(), pixels.size(), panel.size(), first, columns, output, &ahead,
                         {1, plain_strides.pixel, pixel});
  }

  // to[k][pixel], or pairs of pixels; returns their number. Channels last: pixels of all images are one
  // matrix [pixel][K].
  int64_t pack_rows(int64_t b, Range pixels, Range k, A* to) const {
    const T* from = plain_of(b) + pixels.begin * plain_strides.pixel + k.begin;
    const auto row = [&](int64_t j) { return to + j * kDepthStride; };
    if constexpr (P != Product::kNumbers) {
      const int64_t pairs = pixels.size() / 2;
      transpose_block(BFloat16Pairs{from, plain_strides.pixel}, 2 * plain_strides.pixel, pairs, k.size(),
                      row);
      if (pixels.size() % 2 == 0) return pairs;
      for (int64_t j = 0; j < k.size(); ++j) {
        row(j)[pairs] = bit_cast<float>(uint32_t(from[2 * pairs * plain_strides.pixel + j].bits));
      }
      return pairs + 1;
    } else {
      transpose_block(from, plain_strides.pixel, pixels.size(), k.size(), row);
      return pixels.size();
    }
  }

  // The same for the pixels of one tap, which are copied first.
  int64_t pack_rows_of_tap(int64_t b, const Factors& f, Range pixels, Range k, A* copy, A* to) const {
    for (Range part = {k.begin, 0}; part.begin < k.end; part.begin = part.end) {
      part.end = min_of(part.begin + kGradCols, k.end);
      pack_pixels(plain_of(b), plain_strides, f.plain_g, pixels, part, copy, kColsStride);
      transpose_block(copy, kColsStride, pixels.size(), part.size(),
                      [&](int64_t j) { return to + (part.begin - k.begin + j) * kDepthStride; });
    }
    return pixels.size();
  }

  // The sums of all columns, channels first.
  void add_taps_by_columns(int64_t b, Range pixels, Range next, A* packed_rows, A* packed_cols, A* sums,
                           bool add) const {
    const Range taps = rows_of(b), k = cols_of(b);
    const int64_t calls = ceil_div(k.size(), kWide) * fetch_calls(taps.size(), pixels.size());
    Ahead ahead = {
        fetched_columns(gathered_of(b), gathered_strides, g, next, taps, order, calls),
        fetched_columns(plain_of(b), plain_strides, plain_g, next, k, {plain_g.channels, 1}, calls)};
    pack_columns(gathered_of(b), gathered_strides, g, pixels, taps, order, packed_rows, kDepthStride);
    for (int64_t first = 0; first < k.size(); first += kGradCols) {
      const int64_t channel = k.begin + first, count = min_of(kGradCols, k.size() - first);
      for_each_run(plain_g, pixels, [&](int64_t at, int64_t image, int64_t pixel, int64_t, int64_t length) {
        transpose_block(plain_of(b) + image * plain_strides.image + channel * plain_strides.channel + pixel,
                        plain_strides.channel, count, length,
                        [&](int64_t i) { return packed_cols + (at + i) * kColsStride; });
      });
      for (int64_t col = 0; col < count; col += kWide) {
        tile_column<kDepthStride, 1, kColsStride>(
            taps.size(), pixels.size(), count - col, packed_rows, packed_cols + col,
            tile_sums(sums + (first + col) * rows.block_size, add), &ahead);
      }
    }
  }

  void store_weight(int64_t b, const A* sums) const {
    const Range taps = cols_of(b);
    if (!channels_last) return store_columns(b, sums);
    for (Range panel = {taps.begin, 0}; panel.begin < taps.end; panel.begin = panel.end) {
      panel.end = min_of(panel.begin + kWide, taps.end);
      store_rows(b, panel, sums + (panel.begin - taps.begin) * rows.block_size);
    }
  }

  // A panel, sums[k][kWide].
  void store_rows(int64_t b, Range panel, const A* sums) const {
    const Range k = rows_of(b);
    for (int64_t i = 0; i < k.size(); ++i)
      store_columns_of(sums + i * kWide, panel, g.channels, w, weight_of(b) + (k.begin + i) * w.k);
  }

  // Rows are (tap, c), in the order of the weight unless swapped: turned to rows of output channels.
  void store_columns(int64_t b, const A* sums) const {
    constexpr int64_t L = kLanes<A>;
    const Range taps = rows_of(b), k = cols_of(b);
    T* to = weight_of(b);
    if (swapped) {
      for (int64_t row = 0; row < taps.size(); ++row) {
        const int64_t tap = (taps.begin + row) / g.channels, c = (taps.begin + row) % g.channels;
        T* out = to + tap * w.tap + c * w.c;
        for (int64_t i = 0; i < k.size(); ++i)
          store_one(out + (k.begin + i) * w.k,
                    sums[i / kWide * kWide * rows.block_size + row * kWide + i % kWide]);
      }
      return;
    }
    for (int64_t col = 0; col < k.size(); col += L) {
      const A* from = sums + col / kWide * kWide * rows.block_size + col % kWide;
      const int64_t count = min_of(L, k.size() - col);
      for (int64_t row = 0; row < taps.size(); row += L) {
        const int64_t height = min_of(L, taps.size() - row);
        Vec<A> x[L] = {};
        for (int64_t n = 0; n < height; ++n) x[n] = load(from + (row + n) * kWide);
        transpose<A>(x);
        for (int64_t lane = 0; lane < count; ++lane) {
          store_part(to + (k.begin + col + lane) * w.k + taps.begin + row, x[lane], height);
        }
      }
    }
  }

  ConvShape shape;
  bool channels_last, swapped;
  const T *gathered, *plain;  // the input and the gradient of the output, or, swapped, the other way round
  T* grad_weight;
  Strides gathered_strides, plain_strides;
  WeightStrides w;
  int64_t threads;
  Gather g, plain_g;                  // of what is gathered, and of the other factor as it is
  ColumnOrder order;                  // of (tap, c)
  bool rows_in_place, cols_in_place;  // channels last
  bool by_tap;                        // products with the padding are left out, see factors_of
  CutAxis rows, cols;
  SplitSums<A> split;
  A* scratch;
};

// Whether the operands are turned to channels last: where products with the padding are left out, and for few
// output channels where every input pixel of a row would be copied alone.
inline bool grad_weight_turns(const ConvProblem& p) {
  if (p.layout == Layout::kChannelsLast) return false;
  if (!copies_vectors(p.shape.axis[2].stride) && p.shape.C_per_group() >= 16 && p.shape.K_per_group() <= 64)
    return true;
  return leaves_out_padding(p);
}
inline bool is_channels_first(const ConvProblem& p) { return p.layout == Layout::kChannelsFirst; }

template <class T>
using GradWeightGemmOf = GradWeightGemm<T>;
using GradWeightGemmClasses =
    MaySample<MayTurn<ByType<GradWeightGemmOf>, ConvOp::kGradWeight, true, grad_weight_turns>,
              ConvOp::kGradWeight>;

constexpr ConvKernel kConvGradWeightGemm =
    entry<GradWeightGemmClasses>("gemm", "blocked implicit matrix product over pixels", accepts_all);

using PairsGradWeight = GradWeightGemm<BFloat16, Product::kPairs>;
using PairsGradWeightClasses =
    MaySample<MayTurn<Only<PairsGradWeight>, ConvOp::kGradWeight, true, is_channels_first>,
              ConvOp::kGradWeight>;

inline const char* gemm_bf16_grad_weight_refuses(const ConvProblem& p) {
  if (p.dtype != DType::kBFloat16) return "takes bfloat16";
  if (const char* reason = processor_excludes_pairs()) return reason;
  return p.layout == Layout::kChannelsLast ? nullptr : turning_refuses(p, p.shape.N);
}

constexpr ConvKernel kConvGradWeightGemmBf16 = entry<PairsGradWeightClasses>(
    "gemm_bf16", "blocked implicit matrix product over pairs of pixels in bfloat16",
    gemm_bf16_grad_weight_refuses);

}  // namespace cnnext::cpu::CNNEXT_ISA
