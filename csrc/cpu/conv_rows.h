// Convolution by whole rows of the destination: few source channels in channels first, as in a network's
// first layer on images that are stored plane by plane, and in channels last groups of up to 3.
//
// gemm copies the window of each pixel, so that with few channels it copies more than it multiplies. Here the
// source rows that a block of destination rows reads are copied once, with zeros for the padding, split by
// the residue of the stride: what a tap reads for neighbouring pixels are then neighbours too. A tile is some
// channels times some vectors of pixels of a row; its vectors are loaded for each tap at the tap's distance.
// The last vector of a row overlaps the one before, and writes the same there again.
#pragma once

#include "entry.h"
#include "packed_weights.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kRowsChannels = 16;              // more push each other out of the cache
constexpr int64_t kRowsDepth = 512;                // most taps times source channels
constexpr int64_t kRowsWeights = kRowsDepth + 16;  // elements from a channel's weights to the next one's
constexpr int64_t kRowsCopied = 32 << 10;          // bytes of copied rows, about, of a block of rows
constexpr int64_t kRowsMost = 256 << 10;           // bytes that the windows of one row may read

// The source rows that a block of destination rows reads, as they are copied.
template <class T>
struct CopiedRows {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

  // Of as many destination rows, up to the most, as need this many bytes.
  CopiedRows(const Phases& phases, const T* source, int64_t bytes, int64_t most_rows)
      : g(phases.at(0)), source(source), s(phases.source) {
    const PhaseAxis &h = g.axis[1], &w = g.axis[2];
    planes = g.axis[0].taps * g.channels;
    pitch = round_up(w.count + (w.taps - 1) * w.offset_step / w.source_step, L);
    const int64_t row_bytes = planes * w.source_step * pitch * int64_t(sizeof(A));
    const int64_t taps_height = (h.taps - 1) * h.offset_step + 1;
    block_rows = clamp(min_of((bytes / row_bytes - taps_height) / h.source_step + 1, most_rows), 1, h.count);
    row_blocks = ceil_div(h.count, block_rows);
    height = (block_rows - 1) * h.source_step + taps_height;
    row_step = h.source_step * w.source_step * pitch;
    size = round_up(planes * height * w.source_step * pitch + L, 64) + 64;  // the last vector reads on
    place_taps();
  }

  // to[plane][row][residue][pitch]: the source rows of a block of destination rows.
  void copy_rows(int64_t image, int64_t group, int64_t j0, int64_t j1, A* to) const {
    const PhaseAxis &d = g.axis[0], &h = g.axis[1], &w = g.axis[2];
    for (int64_t plane = 0; plane < planes; ++plane) {
      const int64_t i0 = d.source_index(j0, plane / g.channels), c = group * g.channels + plane % g.channels;
      const T* from = source + image * s.image + c * s.channel;
      for (int64_t row = 0; row < height; ++row) {
        const int64_t i1 = h.source_index(j1, 0) + row;
        const bool inside = i0 >= 0 && i0 < d.source && i1 >= 0 && i1 < h.source;
        for (int64_t residue = 0; residue < w.source_step; ++residue, to += pitch) {
          const int64_t first = w.offset + residue;  // source position of the first element
          const int64_t begin = inside ? clamp(ceil_div(max_of(-first, 0), w.source_step), 0, pitch) : pitch;
          const int64_t end = clamp(ceil_div(max_of(w.source - first, 0), w.source_step), begin, pitch);
          fill_zero(to, begin);
          if (begin < end) {
            const int64_t pixel = (i0 * h.source + i1) * w.source + first + begin * w.source_step;
            copy_strided(from + pixel * s.pixel, w.source_step * s.pixel, to + begin, end - begin, false);
          }
          fill_zero(to + end, pitch - end);
        }
      }
    }
  }

  Gather g;
  const T* source;
  Strides s;
  int64_t planes, pitch, height;  // channels times taps of the first axis; a row's elements, and rows of each
  int64_t block_rows, row_blocks;  // of the destination
  int64_t row_step, size;          // elements from a destination row's source to the next one's; of all
  int32_t place[kRowsDepth];

 private:
  // Where each term of a sum is read: elements from the place of a pixel. Channels are outside, taps inside,
  // as in the memory of a weight in channels first.
  void place_taps() {
    const PhaseAxis &h = g.axis[1], &w = g.axis[2];
    int64_t n = 0;
    for (int64_t c = 0; c < g.channels; ++c) {
      for (int64_t m = 0; m < g.taps(); ++m) {
        const int64_t m2 = m % w.taps * w.offset_step, m1 = m / w.taps % h.taps, m0 = m / w.taps / h.taps;
        const int64_t row = (m0 * g.channels + c) * height + m1 * h.offset_step;
        place[n++] = int32_t((row * w.source_step + m2 % w.source_step) * pitch + m2 / w.source_step);
      }
    }
  }
};

template <class T>
struct ConvRows {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

  ConvRows(const ConvProblem& p, bool gradient, const ConvBuffers& b, char* workspace)
      : phases(p, gradient),
        g(phases.at(0)),
        operands(operands_of<T>(b, gradient)),
        copied(phases, operands.source, kRowsCopied, clamp(rows() / (4 * p.threads), 1, 8)),
        threads(p.threads),
        cut_channels(phases.channels, 1) {
    // Where rows are few, as in one dimension, channels are cut too; each block copies the rows again.
    const int64_t tasks = g.images * phases.shape.groups * g.axis[0].count * copied.row_blocks;
    cut_channels.cut(blocks_for(p.threads, tasks, ceil_div(phases.channels, kRows)));
    packed = PackedWeights<A>(p, phases.shape.groups, phases.channels * kRowsWeights);
    scratch = reinterpret_cast<A*>(packed.place(b, workspace));
  }

  int64_t workspace_bytes() const { return packed.bytes() + threads * copied.size * int64_t(sizeof(A)); }
  bool applies_epilogue() const { return true; }

  void run(const Parallel& parallel) const {
    const auto pack = [&](int64_t group, A* to, int) { pack_weights(group, to); };
    packed.start(parallel, pack);
    const int64_t blocks = cut_channels.blocks * copied.row_blocks;
    parallel(g.images * phases.shape.groups * g.axis[0].count * blocks, [&](int64_t task, int thread) {
      const Range channels = cut_channels.at(task % cut_channels.blocks);
      const Range rows =
          block(task / cut_channels.blocks % copied.row_blocks, copied.block_rows, g.axis[1].count);
      task /= blocks;
      const int64_t j0 = task % g.axis[0].count, group = task / g.axis[0].count % phases.shape.groups;
      const int64_t image = task / g.axis[0].count / phases.shape.groups;
      A* copy = scratch + thread * copied.size;
      copied.copy_rows(image, group, j0, rows.begin, copy);
      fill_rows(image, group, j0, rows, channels, packed.get(group, thread, pack), copy);
    });
  }

 private:
  int64_t rows() const { return g.images * phases.shape.groups * g.axis[0].count * g.axis[1].count; }

  // to[channel][kRowsWeights], in the order of place_taps.
  void pack_weights(int64_t group, A* to) const {
    const T* from = operands.weight + group * phases.weight_group;
    const int64_t taps = g.taps();
    const bool as_in_memory = !phases.gradient && phases.weight_tap == 1;
    for (int64_t k = 0; k < phases.channels; ++k, from += phases.weight_channel, to += kRowsWeights) {
      if (as_in_memory) {
        copy_run(from, to, g.depth());
        continue;
      }
      for (int64_t m = 0; m < taps; ++m) {
        const T* tap = from + phases.weight_offset(g, m);
        for (int64_t c = 0; c < g.channels; ++c) to[c * taps + m] = load_one(tap + c * phases.weight_source);
      }
    }
  }

  void fill_rows(int64_t image, int64_t group, int64_t j0, Range rows, Range part, const A* weights,
                 const A* copy) const {
    const Strides& s = phases.destination;
    const int64_t channels = phases.channels, width = g.axis[2].count;
    T* to = operands.destination + image * s.image + group * channels * s.channel +
            j0 * g.extent[1] * width * s.pixel;
    for (int64_t tiles = ceil_div(part.size(), kRows), k = part.begin; tiles > 0; --tiles) {
      const int64_t some = ceil_div(part.end - k, tiles);
      for (int64_t j1 = rows.begin; j1 < rows.end; ++j1) {
        fill_row(some, weights + k * kRowsWeights, copy + (j1 - rows.begin) * copied.row_step,
                 operands.bias ? operands.bias + group * channels + k : nullptr,
                 to + k * s.channel + j1 * width * s.pixel);
      }
      k += some;
    }
  }

  // Few channels take many vectors, so that there are sums enough to hide the latency of a product.
  template <int Rows = kRows>
  void fill_row(int64_t channels, const A* weights, const A* copy, const T* add, T* to) const {
    if constexpr (Rows > 1) {
      if (channels < Rows) return fill_row<Rows - 1>(channels, weights, copy, add, to);
    }
    constexpr int kMost = Rows == 1 ? 8 : Rows <= 3 ? 4 : kVectors;
    const int64_t width = g.axis[2].count;
    if (width <= L) return fill_tile<Rows, 1>(0, weights, copy, add, to);
    int64_t j = 0;
    for (; j + kMost * L <= width; j += kMost * L) fill_tile<Rows, kMost>(j, weights, copy, add, to);
    for (; j < width; j += kVectors * L) fill_tile<Rows, kVectors>(j, weights, copy, add, to);
  }

  // The first of a tile's v-th vector.
  int64_t pixel_of(int64_t j, int v) const { return max_of(min_of(j + v * L, g.axis[2].count - L), 0); }

  template <int Rows, int Vectors>
  void fill_tile(int64_t j, const A* weights, const A* copy, const T* add, T* to) const {
    int64_t at[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) at[v] = pixel_of(j, v);
    Vec<A> sum[Rows][Vectors] = {};
    const int32_t* distance = copied.place;
    for (int64_t d = g.depth(); d > 0; --d, ++weights) {
      const A* x = copy + *distance++;
      Vec<A> y[Vectors];
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) y[v] = load(x + at[v]);
#pragma GCC unroll 14
      for (int r = 0; r < Rows; ++r) {
        const Vec<A> factor = broadcast(weights[r * kRowsWeights]);
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) sum[r][v] += factor * y[v];
      }
    }
    const Strides& s = phases.destination;
    if (add) {
#pragma GCC unroll 14
      for (int r = 0; r < Rows; ++r) {
        const Vec<A> added = broadcast(load_one(add + r));
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) sum[r][v] += added;
      }
    }
    if (s.pixel != 1 || g.axis[2].count < L || operands.epilogue.any()) {
      Vec<A> results[Rows][Vectors];  // a copy: the sums stay in registers
#pragma GCC unroll 14
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) results[r][v] = sum[r][v];
      }
      return put_apart(results[0], Rows, Vectors, j, to);
    }
#pragma GCC unroll 14
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) store(to + r * s.channel + at[v], sum[r][v]);
    }
  }

  // With an epilogue, and pixels of rows shorter than a vector or that are not neighbours: out of line, as it
  // would be most of the code of each tile.
  __attribute__((noinline)) void put_apart(const Vec<A>* results, int rows, int vectors, int64_t j,
                                           T* to) const {
    const Strides& s = phases.destination;
    const int64_t count = min_of(L, g.axis[2].count);
    for (int r = 0; r < rows; ++r, to += s.channel) {
      for (int v = 0; v < vectors; ++v, ++results) {
        T* out = to + pixel_of(j, v) * s.pixel;
        if (s.pixel == 1) {
          store_part(out, operands.epilogue(out, *results, count), count);
          continue;
        }
        for (int64_t i = 0; i < count; ++i, out += s.pixel)
          store_one(out, operands.epilogue.one(out, (*results)[i]));
      }
    }
  }

  Phases phases;
  Gather g;
  Operands<T> operands;
  CopiedRows<T> copied;
  int64_t threads;
  CutAxis cut_channels;  // of the destination
  PackedWeights<A> packed;
  A* scratch;
};

template <bool Gradient>
const char* rows_refuses(const ConvProblem& p) {
  const ConvShape& s = p.shape;
  if (p.dtype == DType::kFloat64) return kExcludesFloat64;
  const bool narrow = s.groups > 1 && max_of(s.C_per_group(), s.K_per_group()) < 4;
  if (p.layout != Layout::kChannelsFirst && !narrow) return "takes channels first, or groups of up to 3";
  for (const Window& w : s.axis) {
    if (Gradient && w.stride != 1) return "takes gradients of stride 1";
  }
  const int64_t channels = Gradient ? s.K_per_group() : s.C_per_group();
  if (s.axis[2].kernel == 1) return "takes rows of several taps";
  if (channels > kRowsChannels || channels * s.taps() > kRowsDepth)
    return "takes at most 16 source channels, and sums of 512 products";
  const int64_t width = Gradient ? s.axis[2].input : s.axis[2].output;
  if (2 * width < lanes_of(p.dtype)) return "takes rows of half a vector or more";
  // In floating point, as a dilation may be any number.
  double bytes = sizeof(float) * double(channels * s.axis[0].kernel) * double(s.axis[2].stride);
  bytes *= double(s.axis[1].kernel - 1) * double(s.axis[1].dilation) + 1;
  bytes *=
      double(width) + double(s.axis[2].kernel - 1) * double(s.axis[2].dilation) / double(s.axis[2].stride);
  return bytes > kRowsMost ? "takes windows that fit the cache with all their row" : nullptr;
}

template <bool Gradient>
constexpr ConvKernel kConvRows = entry<ByFloat32Type<ConvRows, Gradient>>(
    "rows", "few channels, the source's rows copied once", rows_refuses<Gradient>);

}  // namespace cnnext::cpu::CNNEXT_ISA
