// Convolution of groups as wide as one or two vectors, and its gradient with respect to the input, in
// channels last: a tile of pixels for each group,
//   destination[pixel, channel] = bias[channel] + sum over (tap, source channel) of source * weight
// where source elements are broadcast and destination channels are the lanes.
//
// A task copies its group's channels of some source rows into scratch memory, where pixels are close to each
// other and zeros stand for the columns in the padding; pixels that a stride separates are put side by side.
// Rows of taps in the padding are left out. Two spatial axes at most. Each element is summed in one order.
#pragma once

#include "conv_phases.h"

namespace cnnext::cpu::CNNEXT_ISA {

template <class A>
struct GroupTap {
  const A *source, *weight;  // of pixel 0 of the row; [source channel][kCols]
};

// Some taps' sums of Rows pixels, `depth` source channels a tap, on top of the bias or, if that is null, of
// what is there. Pixels are Pixel elements apart in the source.
template <class T, int Rows, int Vectors, int64_t Pixel>
void group_tile(const GroupTap<Acc<T>>* tap, int64_t taps, int64_t at, int64_t depth, const Acc<T>* bias,
                T* to, int64_t to_pixel) {
  using A = Acc<T>;
  constexpr int64_t L = kLanes<A>;
  Vec<A> sum[Rows][Vectors] = {};
  for (; taps > 0; --taps, ++tap) {
    const A *a = tap->source + at * Pixel, *b = tap->weight;
    for (int64_t d = 0; d < depth; ++d, ++a, b += kCols<A>) {
      Vec<A> y[Vectors];
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) y[v] = load(b + v * L);
#pragma GCC unroll 14
      for (int r = 0; r < Rows; ++r) {
        const Vec<A> x = broadcast(a[r * Pixel]);
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) sum[r][v] += x * y[v];
      }
    }
  }
#pragma GCC unroll 14
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      T* out = to + r * to_pixel + v * L;
      store(out, (bias ? load(bias + v * L) : load(out)) + sum[r][v]);
    }
  }
}

template <class T>
using RunGroupTile = void (*)(const GroupTap<Acc<T>>*, int64_t, int64_t, int64_t, const Acc<T>*, T*, int64_t);

template <class T, int Vectors, int64_t Pixel, int Rows = kRows>
RunGroupTile<T> group_tile_of(int64_t rows) {
  if (rows == Rows) return &group_tile<T, Rows, Vectors, Pixel>;
  if constexpr (Rows > 1) return group_tile_of<T, Vectors, Pixel, Rows - 1>(rows);
  return nullptr;
}

// The rows of one group's source, side by side: columns of each residue of the stride, padded with zeros.
struct GroupRows {
  GroupRows(const ConvShape& shape, bool gradient) : step(gradient ? 1 : shape.axis[2].stride) {
    const Window& w = shape.axis[2];
    low = high = 0;
    for (int64_t r = 0; r < (gradient ? min_of(w.stride, w.input) : 1); ++r) {
      const PhaseAxis x = gradient ? grad_input_phase(w, r) : forward_phase(w);
      if (x.taps == 0 || x.count == 0) continue;
      low = min_of(low, x.source_index(0, 0));
      high = max_of(high, x.source_index(x.count - 1, x.taps - 1) + 1);
    }
    of_residue = ceil_div(high - low, step);
  }
  int64_t size() const { return of_residue * step; }
  int64_t at(int64_t column) const { return (column - low) % step * of_residue + (column - low) / step; }
  int64_t step, low, high, of_residue;  // columns
};

// S channels of some rows of `width` columns to to[row][column][pixel]. What lies `next` elements further is
// fetched for the next copy.
template <class T>
void copy_group_rows(const T* source, int64_t step, int64_t width, Range rows, const GroupRows& row,
                     int64_t S, int64_t pixel, int64_t next, Acc<T>* to) {
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    const T* from = source + i * width * step;
    for (int64_t residue = 0; residue < row.step; ++residue) {
      int64_t c = row.low + residue;
      for (int64_t n = 0; n < row.of_residue; ++n, c += row.step, to += pixel) {
        if (c < 0 || c >= width) {
          fill_zero(to, pixel);
          continue;
        }
        copy_run(from + c * step, to, S);
        for (int64_t k = 0; k < S; k += kAlignment / int64_t(sizeof(T)))
          __builtin_prefetch(from + c * step + next + k, 0, 2);
      }
    }
  }
}

template <class T>
struct GroupTiles {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;
  static constexpr int64_t kBoxElements = (96 << 10) / sizeof(A);  // of scratch memory, where rows are short
  static constexpr int64_t kFewTasks = 16;
  static constexpr int64_t kChain = 160;  // products summed before they are added to memory, for accuracy

  GroupTiles(const ConvProblem& p, bool gradient, const ConvBuffers& b, char* workspace)
      : phases(p, gradient),
        shape(p.shape),
        row(shape, gradient),
        S(phases.source_channels),
        D(phases.channels),
        pixel(S <= 16 ? 16 : 32),
        width(gradient ? shape.axis[2].output : shape.axis[2].input),
        height(gradient ? shape.axis[1].output : shape.axis[1].input),
        to_width(gradient ? shape.axis[2].input : shape.axis[2].output),
        to_height(gradient ? shape.axis[1].input : shape.axis[1].output),
        source(static_cast<const T*>(gradient ? b.output : b.input)),
        weight(static_cast<const T*>(b.weight)),
        bias(static_cast<const T*>(b.bias)),
        destination(static_cast<T*>(gradient ? b.input : b.output)) {
    panels = ceil_div(D, kCols<A>);
    band = to_height;
    while (band > 1 && (source_rows(band) * row.size() * pixel > kBoxElements ||
                        shape.N * shape.groups * ceil_div(to_height, band) < kFewTasks)) {
      band = ceil_div(band, 2);
    }
    scratch_size = source_rows(band) * row.size() * pixel;
    panel_size = phases.max_taps * S * kCols<A>;
    const auto take = [&](int64_t bytes) {
      char* at = workspace + bytes_taken;
      bytes_taken += round_up(bytes, kAlignment);
      return at;
    };
    packed = reinterpret_cast<A*>(take(phases.size() * shape.groups * panels * panel_size * sizeof(A)));
    scratch = reinterpret_cast<A*>(take(p.threads * scratch_size * sizeof(A)));
    lists = reinterpret_cast<GroupTap<A>*>(take(p.threads * phases.max_taps * sizeof(GroupTap<A>)));
  }

  int64_t source_rows(int64_t rows) const {  // at most, that so many rows read
    const Window& y = shape.axis[1];
    const int64_t reach = (y.kernel - 1) * y.dilation;
    return min_of(height,
                  phases.gradient ? (rows - 1 + reach) / y.stride + 1 : (rows - 1) * y.stride + reach + 1);
  }

  void run(const Parallel& parallel) const {
    parallel(phases.size() * shape.groups, [&](int64_t task, int) {
      const Gather g = phase(task / shape.groups);
      const int64_t group = task % shape.groups;
      if (g.depth() == 0) return;
      for (int64_t n = 0; n < panels; ++n) {
        pack_weight_panel(phases, g, weight, group, block(n, kCols<A>, D), {0, g.depth()},
                          panel(task / shape.groups, group, n));
      }
    });
    const int64_t bands = ceil_div(to_height, band);
    parallel(shape.N * bands * shape.groups, [&](int64_t task, int thread) {
      const int64_t group = task % shape.groups, image = task / shape.groups / bands;
      compute(image, group, block(task / shape.groups % bands, band, to_height),
              scratch + thread * scratch_size, lists + thread * phases.max_taps);
    });
  }

  Gather phase(int64_t number) const {
    Gather g = {{kUnitAxis, kUnitAxis, kUnitAxis}, {1, to_height, to_width}, shape.N, S};
    for (int a = kAxes - 1; a > 0; --a) {
      const Window& w = shape.axis[a];
      g.axis[a] = phases.gradient ? grad_input_phase(w, number % phases.count[a]) : forward_phase(w);
      number /= phases.count[a];
    }
    return g;
  }
  A* panel(int64_t phase, int64_t group, int64_t n) const {
    return packed + ((phase * shape.groups + group) * panels + n) * panel_size;
  }

  void compute(int64_t image, int64_t group, Range rows, A* box, GroupTap<A>* taps) const {
    const Range read = copy_rows(image, group, rows, box);
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
              taps[count++] = {box + column * pixel, panel(f, group, n) + (m1 * x.taps + m2) * S * kCols<A>};
            }
          }
          row_of_tiles(taps, count, x, group * D + n * kCols<A>, min_of(kCols<A>, D - n * kCols<A>),
                       (image * to_height + at) * to_width);
        }
      }
    }
  }

  void row_of_tiles(const GroupTap<A>* taps, int64_t count, const PhaseAxis& x, int64_t channel,
                    int64_t channels, int64_t to_pixel) const {
    A add[kCols<A>] = {};
    if (bias) copy_run(bias + channel, add, channels);
    const int64_t step = x.step * phases.destination.pixel;
    T* to = destination + (to_pixel + x.start) * phases.destination.pixel + channel;
    const int64_t next_row = to_width * phases.destination.pixel;
    const int64_t tiles = ceil_div(x.count, kRows), least = x.count / max_of(tiles, 1);
    const int64_t longer = x.count - least * tiles;
    const int64_t part = sizeof(T) < sizeof(A) ? max_of(count, 1) : kChain / S;
    for (int64_t i = 0, j = 0; i < tiles; ++i) {
      const int64_t size = least + (i < longer);
      for (int64_t i = j; i < j + size; ++i) __builtin_prefetch(to + i * step + next_row, 1);
      for (int64_t first = 0; first < max_of(count, 1); first += part) {
        tile(size, channels > L)(taps + first, min_of(part, count - first), j, S, first == 0 ? add : nullptr,
                                 to + j * step, step);
      }
      j += size;
    }
  }
  RunGroupTile<T> tile(int64_t rows, bool wide) const {
    if (pixel == 16) return wide ? group_tile_of<T, 2, 16>(rows) : group_tile_of<T, 1, 16>(rows);
    return wide ? group_tile_of<T, 2, 32>(rows) : group_tile_of<T, 1, 32>(rows);
  }

  // The source rows that some rows read, to box[row][column][pixel].
  Range copy_rows(int64_t image, int64_t group, Range rows, A* box) const {
    const Window& y = shape.axis[1];
    const int64_t first = phases.gradient ? y.first_output(rows.begin) : y.input_index(rows.begin, 0);
    const int64_t last =
        phases.gradient ? y.end_output(rows.end - 1) : y.input_index(rows.end - 1, y.kernel - 1) + 1;
    Range read = {clamp(first, 0, height), 0};
    read.end = clamp(last, read.begin, height);
    copy_group_rows(source + image * phases.source.image + group * S, phases.source.pixel, width, read, row,
                    S, pixel, S, box);
    return read;
  }

  Phases phases;
  ConvShape shape;
  GroupRows row;
  int64_t S, D, pixel;  // channels of a group in source and destination; elements of a copied pixel
  int64_t width, height, to_width, to_height;
  const T *source, *weight, *bias;
  T* destination;
  int64_t panels, band, scratch_size, panel_size, bytes_taken = 0;
  A *packed, *scratch;
  GroupTap<A>* lists;
};

template <bool Gradient>
int64_t group_tiles_workspace(const ConvProblem& p) {
  int64_t bytes = 0;
  with_type(p.dtype, [&](auto* tag) {
    bytes = GroupTiles<Pointee<decltype(tag)>>(p, Gradient, {}, nullptr).bytes_taken;
  });
  return bytes;
}
template <bool Gradient>
void group_tiles(const ConvProblem& p, const ConvBuffers& b, const Parallel& parallel, char* workspace) {
  with_type(p.dtype,
            [&](auto* tag) { GroupTiles<Pointee<decltype(tag)>>(p, Gradient, b, workspace).run(parallel); });
}

template <bool Gradient>
const char* group_tiles_refuses(const ConvProblem& p) {
  const int64_t C = p.shape.C_per_group(), K = p.shape.K_per_group();
  const int64_t from = Gradient ? K : C, to = Gradient ? C : K;
  const int64_t lanes = p.dtype == DType::kFloat64 ? kLanes<double> : kLanes<float>;
  if (p.layout != Layout::kChannelsLast) return "takes channels last";
  if (p.shape.groups < 4) return "takes four groups or more";
  if (from < 16 || from > 32) return "takes 16 to 32 channels in a group";
  if (to != lanes && to % (2 * lanes) != 0) return "takes whole vectors of channels in a group";
  const Window& z = p.shape.axis[0];
  if (z.input != 1 || z.kernel != 1 || z.padding != 0) return "takes two axes";
  return nullptr;
}

constexpr ConvKernel kConvGroupTiles = {"group_tiles", "a tile of pixels for each group",
                                        group_tiles_refuses<false>, group_tiles_workspace<false>,
                                        group_tiles<false>};
constexpr ConvKernel kConvGradInputGroupTiles = {"group_tiles", "a tile of pixels for each group",
                                                 group_tiles_refuses<true>, group_tiles_workspace<true>,
                                                 group_tiles<true>};

}  // namespace cnnext::cpu::CNNEXT_ISA
