// Convolution to few destination channels, as in a network's last layer or the gradient of an image: the
// products of a source pixel with all taps and channels are one row of a matrix product, and are then added
// to the pixels they belong to (GEMM and col2im, a block at a time, so that the matrix stays in the cache).
//
// Kernels that give each destination channel a lane use three of 16 for an image's colours. Here the columns
// are (tap, channel), which fill vectors: 147 of 160 lanes for 7x7 on three channels.
//
// A task is a box of destination pixels. It goes through all source pixels that reach the box, in the order
// of memory, and adds to a copy of the box (the band) with room for what lies in the padding. All channels of
// the taps of a row are neighbours there: a run. The order of additions to an element does not depend on how
// the boxes are cut: blocks of source pixels begin at fixed places.
#pragma once

#include "conv_gemm_bf16.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kColumnsAtOnce = 160;    // columns computed at a time, about
constexpr int64_t kBandBytes = 256 << 10;  // bytes of a band, about

// A source position j reaches destination positions j * step + offset + m * dilation, by tap m or, if
// `backwards`, by the m-th from the end.
struct SpreadAxis {
  SpreadAxis(const Window& w, bool gradient)
      : source(gradient ? w.output : w.input),
        destination(gradient ? w.input : w.output),
        taps(w.kernel),
        step(gradient ? w.stride : 1),
        dilation(w.dilation),
        offset(gradient ? -w.padding : w.padding - (w.kernel - 1) * w.dilation),
        backwards(!gradient) {}

  int64_t reached(int64_t j, int64_t m) const { return j * step + offset + m * dilation; }
  int64_t tap(int64_t m) const { return backwards ? taps - 1 - m : m; }
  // Source positions that reach into a range of the destination.
  Range reaching(Range to) const {
    const int64_t begin = clamp(ceil_div(max_of(to.begin - reached(0, taps - 1), 0), step), 0, source);
    return {begin, clamp(ceil_div(max_of(to.end - offset, 0), step), begin, source)};
  }

  int64_t source, destination, taps, step, dilation, offset;
  bool backwards;
};

template <class T>
struct Col2Im {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>, kWide = kCols<A>;

  Col2Im(const ConvProblem& p, bool gradient, const ConvBuffers& b, char* workspace)
      : phases(p, gradient),
        d(p.shape.axis[0], gradient),
        h(p.shape.axis[1], gradient),
        w(p.shape.axis[2], gradient),
        operands(operands_of<T>(b, gradient)),
        threads(p.threads) {
    pixels = {{kUnitAxis, kUnitAxis, kUnitAxis}, {1, 1, 1}, p.shape.N, phases.source_channels};
    pixels.axis[2].count = pixels.axis[2].source = pixels.extent[2] = d.source * h.source * w.source;
    run_size = w.taps * phases.channels;
    taps_at_once = clamp(kColumnsAtOnce / run_size, 1, d.taps * h.taps);
    column_blocks = ceil_div(d.taps * h.taps, taps_at_once);
    panels = ceil_div(taps_at_once * run_size, kWide);
    stride = odd_lines(panels * kWide + L);
    block_rows = max_of(1, kBlockRows / w.source);
    block_width = ceil_div(w.source, ceil_div(w.source, kBlockRows));
    cut_boxes(p);
    packed = reinterpret_cast<A*>(workspace);
    packed_size = round_up(column_blocks * panels * phases.source_channels * kWide, 64);
    channels_last = phases.source.channel == 1;
    gathered_size = round_up(channels_last ? kBlockRows * kDepthStride : kDepth * kPixelStride, 64);
    products_size = round_up(kBlockRows * stride + L, 64);
    scratch_size = gathered_size + products_size + round_up(box_rows * pitch + L, 64) + 64;
    scratch = packed + packed_size;
  }

  int64_t workspace_bytes() const { return (packed_size + threads * scratch_size) * int64_t(sizeof(A)); }

  void run(const Parallel& parallel) const {
    parallel(phases.source_channels, [&](int64_t k, int) { pack_weights(k); });
    parallel(pixels.images * boxes[0] * boxes[1] * boxes[2], [&](int64_t task, int thread) {
      const Box box = box_at(task);
      A* memory = scratch + thread * scratch_size;
      A* band = memory + gathered_size + products_size;
      clear(box, band);
      for (int64_t j0 = box.source[0].begin; j0 < box.source[0].end; ++j0) {
        for_each_block(box, [&](Range rows, Range columns) {
          add_block(box, j0, rows, columns, memory, memory + gathered_size, band);
        });
      }
      store_band(box, band);
    });
  }

 private:
  static constexpr int64_t kPixelStride = kBlockRows + 16;  // of channels, in channels first

  struct Box {
    int64_t image;
    Range to[kAxes], source[kAxes];  // destination positions; source positions that reach them
    int64_t first_column;            // of the band, as a position in the destination
  };

  // As few boxes as the cache and the threads allow: source pixels between two boxes are multiplied for both.
  void cut_boxes(const ConvProblem& p) {
    const auto most = [](const SpreadAxis& x) {  // boxes large beside what they share
      const int64_t shared = max_of(0, (x.taps - 1) * x.dilation + 1 - x.step);
      return max_of(1, x.destination / max_of(4 * shared, 8));
    };
    const int64_t row_bytes = (w.destination + run_size) * phases.channels * int64_t(sizeof(A));
    const int64_t fitting = max_of(1, kBandBytes / row_bytes);
    const bool line = d.destination * h.destination == 1;
    const SpreadAxis* axes[kAxes] = {&d, &h, &w};
    boxes[2] = line ? clamp(ceil_div(row_bytes, kBandBytes), 1, most(w)) : 1;
    boxes[1] = clamp(ceil_div(h.destination, fitting), 1, most(h));
    boxes[0] = clamp(ceil_div(d.destination * ceil_div(h.destination, boxes[1]), fitting), 1, most(d));
    const int a = line ? 2 : h.destination > 1 ? 1 : 0;  // cut once more for the threads
    boxes[a] = blocks_for(p.threads, p.shape.N * boxes[0] * boxes[1] * boxes[2] / boxes[a],
                          max_of(boxes[a], most(*axes[a])), boxes[a]);
    for (int b = 0; b < kAxes; ++b) box_size[b] = ceil_div(axes[b]->destination, boxes[b]);
    box_rows = box_size[0] * box_size[1];
    pitch = 0;
    for (int64_t box = 0; box < boxes[2]; ++box) {
      const Range columns = band_columns(block(box, box_size[2], w.destination));
      pitch = max_of(pitch, columns.size() * phases.channels);
    }
  }
  // Source columns of a box: whole rows where several are a block, else those that reach it.
  Range columns_for(Range to) const { return block_rows > 1 ? Range{0, w.source} : w.reaching(to); }
  // What they reach.
  Range band_columns(Range to) const {
    const Range from = columns_for(to);
    if (from.size() == 0) return to;
    return {min_of(to.begin, w.reached(from.begin, 0)),
            max_of(to.end, w.reached(from.end - 1, w.taps - 1) + 1)};
  }
  Box box_at(int64_t task) const {
    Box box;
    const SpreadAxis* axes[kAxes] = {&d, &h, &w};
    for (int a = kAxes - 1; a >= 0; task /= boxes[a], --a) {
      box.to[a] = block(task % boxes[a], box_size[a], axes[a]->destination);
      box.source[a] = a == 2 ? columns_for(box.to[a]) : axes[a]->reaching(box.to[a]);
    }
    box.image = task;
    box.first_column = band_columns(box.to[2]).begin;
    return box;
  }

  // Rows and columns of the source that are one block, cut at places that do not depend on the box.
  template <class Body>
  void for_each_block(const Box& box, Body&& body) const {
    const Range rows = box.source[1], columns = box.source[2];
    for (int64_t row = rows.begin / block_rows; row * block_rows < rows.end; ++row) {
      const Range some = {max_of(rows.begin, row * block_rows), min_of(rows.end, (row + 1) * block_rows)};
      if (block_rows > 1) {  // they follow each other in memory
        body(some, columns);
        continue;
      }
      for (int64_t n = columns.begin / block_width; n * block_width < columns.end; ++n)
        body(some, Range{max_of(columns.begin, n * block_width), min_of(columns.end, (n + 1) * block_width)});
    }
  }

  // packed[column block][panel][source channel][kWide]; the columns of a block are (tap of the first two
  // axes, tap of the last, channel).
  void pack_weights(int64_t k) const {
    const T* from = operands.weight + k * phases.weight_source;
    for (int64_t n = 0; n < column_blocks; ++n) {
      const Range taps = block(n, taps_at_once, d.taps * h.taps);
      A* to = packed + (n * panels * phases.source_channels + k) * kWide;
      const auto put = [&](int64_t column, A value) {
        to[column / kWide * phases.source_channels * kWide + column % kWide] = value;
      };
      int64_t column = 0;
      for (int64_t m = taps.begin; m < taps.end; ++m) {
        const int64_t first = (d.tap(m / h.taps) * h.taps + h.tap(m % h.taps)) * w.taps;
        for (int64_t x = 0; x < w.taps; ++x) {
          const T* tap = from + (first + w.tap(x)) * phases.weight_tap;
          for (int64_t c = 0; c < phases.channels; ++c)
            put(column++, load_one(tap + c * phases.weight_channel));
        }
      }
      for (; column < panels * kWide; ++column) put(column, 0);
    }
  }

  // The bias, or zeros.
  void clear(const Box& box, A* band) const {
    const int64_t rows = box.to[0].size() * box.to[1].size();
    if (!operands.bias) return fill_zero(band, rows * pitch + L);
    for (int64_t i = 0; i < pitch; ++i) band[i] = load_one(operands.bias + i % phases.channels);
    for (int64_t row = 1; row < rows; ++row) __builtin_memcpy(band + row * pitch, band, pitch * sizeof(A));
    fill_zero(band + rows * pitch, L);
  }

  void add_block(const Box& box, int64_t j0, Range rows, Range columns, A* gathered, A* products,
                 A* band) const {
    const int64_t first = (j0 * h.source + rows.begin) * w.source + columns.begin;
    const Range block_pixels = {first, first + (rows.size() - 1) * w.source + columns.size()};
    const int64_t depth = phases.source_channels, depth_blocks = ceil_div(depth, kDepth);
    for (int64_t n = 0; n < column_blocks; ++n) {
      const Range taps = block(n, taps_at_once, d.taps * h.taps);
      const A* b = packed + n * panels * depth * kWide;
      for (int64_t part = 0; part < depth_blocks; ++part) {
        const Range channels = block(part, kDepth, depth);
        if (n == 0 || depth_blocks > 1) gather(box.image, block_pixels, channels, gathered);
        for (int64_t column = 0; column < taps.size() * run_size; column += kWide) {
          const A* panel = b + (column * depth / kWide + channels.begin) * kWide;
          multiply(block_pixels.size(), channels.size(), taps.size() * run_size - column, gathered, panel,
                   tile_sums(products + column, part > 0, stride));
        }
      }
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        const A* from = products + (row - rows.begin) * w.source * stride;
        for (int64_t m = taps.begin; m < taps.end; ++m, from += run_size) {
          const int64_t i0 = d.reached(j0, m / h.taps) - box.to[0].begin;
          const int64_t i1 = h.reached(row, m % h.taps) - box.to[1].begin;
          if (i0 < 0 || i0 >= box.to[0].size() || i1 < 0 || i1 >= box.to[1].size()) continue;
          const int64_t column = w.reached(columns.begin, 0) - box.first_column;
          add_row(columns, from, band + (i0 * box.to[1].size() + i1) * pitch + column * phases.channels);
        }
      }
    }
  }

  void gather(int64_t image, Range some, Range channels, A* gathered) const {
    const T* from = operands.source + image * phases.source.image;
    if (channels_last) {
      pack_pixels(from, phases.source, pixels, some, channels, gathered, kDepthStride);
    } else {
      pack_columns(from, phases.source, pixels, some, channels, taps_outside(pixels), gathered, kPixelStride);
    }
  }
  void multiply(int64_t rows, int64_t depth, int64_t cols, const A* gathered, const A* panel,
                const TileOutput<A>& out) const {
    if (channels_last) {
      tile_column<kDepthStride, 1, kWide>(rows, depth, cols, gathered, panel, out);
    } else {
      tile_column<1, kPixelStride, kWide>(rows, depth, cols, gathered, panel, out);
    }
  }

  // Adds the runs of neighbouring source pixels. Pixels whose runs overlap take turns: an addition does not
  // wait for the store before it.
  void add_row(Range columns, const A* from, A* to) const {
    const int64_t to_step = w.step * phases.channels;
    const int64_t turns = ceil_div(round_up(run_size, L), to_step);
    for (int64_t turn = 0; turn < turns; ++turn) {
      const int64_t fixed = columns.begin % block_width;  // turns are those of the whole block
      const int64_t j = (turn - fixed % turns + turns) % turns;
      const int64_t count = ceil_div(columns.size() - j, turns);
      for (int64_t part = 0; part < run_size; part += 2 * L) {
        const A* first = from + j * stride + part;
        A* out = to + j * to_step + part;
        if (run_size - part > L) {
          add_runs<2>(min_of(run_size - part, 2 * L), first, turns * stride, out, turns * to_step, count);
        } else {
          add_runs<1>(run_size - part, first, turns * stride, out, turns * to_step, count);
        }
      }
    }
  }
  // Runs that end in the last of the vectors.
  template <int Vectors>
  static void add_runs(int64_t size, const A* from, int64_t from_step, A* to, int64_t to_step,
                       int64_t count) {
    A lane[L];
    for (int64_t i = 0; i < L; ++i) lane[i] = A(i);
    const auto inside = load(lane) < broadcast(A(size - (Vectors - 1) * L));
    for (; count > 0; --count, from += from_step, to += to_step) {
      if constexpr (Vectors == 2) store(to, load(to) + load(from));
      constexpr int64_t end = (Vectors - 1) * L;
      const Vec<A> x = load(from + end);
      store(to + end, load(to + end) + (inside ? x : Vec<A>{}));
    }
  }

  void store_band(const Box& box, const A* band) const {
    const Strides& s = phases.destination;
    const int64_t channels = phases.channels, columns = box.to[2].size();
    band += (box.to[2].begin - box.first_column) * channels;
    for (int64_t i0 = box.to[0].begin; i0 < box.to[0].end; ++i0) {
      for (int64_t i1 = box.to[1].begin; i1 < box.to[1].end; ++i1, band += pitch) {
        const int64_t pixel = (i0 * h.destination + i1) * w.destination + box.to[2].begin;
        T* to = operands.destination + box.image * s.image + pixel * s.pixel;
        if (s.channel == 1 || channels == 1) {
          store_run(band, columns * channels, to);
          continue;
        }
        for (int64_t c = 0; c < channels; ++c) {
          for (int64_t j = 0; j < columns; ++j) store_one(to + c * s.channel + j, band[j * channels + c]);
        }
      }
    }
  }
  static void store_run(const A* from, int64_t count, T* to) {
    int64_t i = 0;
    for (; i + L <= count; i += L) store(to + i, load(from + i));
    for (; i < count; ++i) store_one(to + i, from[i]);
  }

  Phases phases;
  SpreadAxis d, h, w;
  Gather pixels;  // of the source, as they are
  Operands<T> operands;
  int64_t threads;
  int64_t run_size;  // elements
  int64_t taps_at_once, column_blocks, panels, stride;
  int64_t block_rows, block_width;  // of a block of source pixels
  int64_t boxes[kAxes], box_size[kAxes], box_rows, pitch;
  bool channels_last;
  int64_t packed_size, gathered_size, products_size, scratch_size;  // in elements
  A *packed, *scratch;
};

// Vector products of an image, counted roughly: of direct sums, and with all taps at once together with what
// it takes to add them.
struct Col2ImCost {
  Col2ImCost(const ConvProblem& p, bool gradient) {
    const ConvShape& s = p.shape;
    const int64_t lanes = lanes_of(p.dtype);
    const int64_t channels = gradient ? s.C : s.K, depth = gradient ? s.K : s.C;
    const int64_t run = s.axis[2].kernel * channels, rows = s.axis[0].kernel * s.axis[1].kernel;
    // With those that direct sums take in the padding: most, where the kernel is as large as the plane.
    const Phases phases(p, gradient);
    direct = double(Regions(phases).products()) * double(depth * ceil_div(channels, lanes));
    at_once = double(gradient ? s.output_pixels() : s.input_pixels()) *
              double(depth * ceil_div(rows * run, lanes) + 5 * rows * ceil_div(run, lanes));
  }
  double direct, at_once;
};

// Why it does not apply at all, or null.
inline const char* col2im_excludes(const ConvProblem& p, bool gradient) {
  const ConvShape& s = p.shape;
  if (p.dtype == DType::kFloat64) return kExcludesFloat64;
  if (s.groups != 1) return "takes one group";
  if (s.taps() == 1) return "takes several taps";
  if (s.axis[2].kernel > 1 && s.axis[2].dilation != 1) return "takes rows of neighbouring taps";
  for (const Window& w : s.axis) {
    if (!gradient && w.stride != 1) return "takes a stride in gradients only";
  }
  return nullptr;
}

template <bool Gradient>
const char* col2im_refuses(const ConvProblem& p);  // conv_choice.h
template <bool Gradient>
constexpr ConvKernel kConvCol2Im = entry<ByFloat32Type<Col2Im, Gradient>>(
    "col2im", "few channels: products with all taps at once, added where they belong",
    col2im_refuses<Gradient>);

}  // namespace cnnext::cpu::CNNEXT_ISA
