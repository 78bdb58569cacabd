// Convolution of many narrow groups and its gradient with respect to the input, a lane for each group:
//   destination[pixel, k] = bias[k] + sum over (c, tap) of source[pixel, tap, c] * weight[k, c, tap]
// for every group of a block at once (conv_lanes.h). Any stride, padding, dilation and number of axes: the
// gradient runs as a gather for each residue of the stride, taps in the padding are left out.
//
// Depthwise in channels last is read and written in place, float16 excepted. Otherwise a task loads a box of
// the source, computes a box of the destination in the thread's scratch memory and stores it. Each element
// is summed in one order, whatever the boxes and threads.
#pragma once

#include "conv_lanes.h"
#include "conv_lanes_tile.h"
#include "conv_phases.h"
#include "entry.h"
#include "scratch.h"

namespace cnnext::cpu::CNNEXT_ISA {

template <class T>
struct LanesConv {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;
  // float16 takes long to convert: once, as it is copied.
  static constexpr bool kMayBeInPlace = std::is_same_v<T, A> || std::is_same_v<T, BFloat16>;
  static constexpr int64_t kRowsInCache = (512 << 10) / sizeof(A);  // elements of the source, in place
  static constexpr int64_t kLeastProducts = 1 << 17;                // of a task, in place
  static constexpr int64_t kFewBoxes = 4;

  LanesConv(const ConvProblem& p, bool is_gradient, const ConvBuffers& b, char* workspace)
      : shape(p.shape),
        gradient(is_gradient),
        blocks(shape.groups),
        from(grouped_layout(p, !gradient)),
        to(grouped_layout(p, gradient)),
        operands(operands_of<T>(b, gradient)),
        w(weight_strides_of(p.weight_layout, shape.C_per_group(), shape.taps())),
        boxes(shape, gradient, from, to) {
    choose_tiles();
    in_place = (std::is_same_v<T, A> || (kMayBeInPlace && tiled)) && from.channels_last &&
               from.channels == 1 && to.channels == 1 && blocks.lanes == L &&
               rows_read() <= kRowsInCache / 16;
    for (int a = 0; a < kAxes; ++a) {
      phase_count[a] = gradient ? min_of(shape.axis[a].stride, shape.axis[a].input) : 1;
      if (a == 2) phase_count[a] *= column_step;
    }
    streamed = in_place && tiled && streams();
    if (in_place) {
      choose_boxes_in_place(4 * p.threads);
    } else {
      boxes.cut_to_fit(from.channels_last && sizeof(T) < sizeof(A) ? 2 : 1);
      boxes.join_small(shape.N * boxes.count());
    }
    far = beyond_caches(p) && !(reads_planes(p) && boxes.count() > kFewBoxes);
    block_weights = to.channels * from.channels * shape.taps() * L;
    if (!in_place) {  // the last part has a block more
      source_scratch = (boxes.part_blocks + 1) * boxes.source_elements();
      scratch = (boxes.part_blocks + 1) * boxes.elements();
    }
    most_tap_rows = from.channels * shape.axis[0].kernel * shape.axis[1].kernel * kTileRows;

    memory.base = workspace;
    packed = memory.take<A>(blocks.count * block_weights);
    packed_bias = memory.take<A>(blocks.count * to.channels * L);
    tap_rows = memory.take_each<char>(p.threads, most_tap_rows * int64_t(sizeof(TapRow<A>)));
    for (int a = 0; a < kAxes; ++a) phase[a] = memory.take<PhaseAxis>(phase_count[a]);
    insides = memory.take<Range>(phase_count[2] * shape.axis[2].kernel);
    scratches = memory.take_each<A>(p.threads, scratch);
  }

  int64_t workspace_bytes() const { return memory.bytes; }
  bool applies_epilogue() const { return in_place; }

  int64_t rows_read() const {  // by a row in a plane, of one block, in elements
    return shape.axis[1].kernel * from.extent[2] * L;
  }
  // Whether nothing of the result would be left in the caches for the operator that reads it, and whether it
  // is whole lines for each vector.
  bool streams() const {
    const int64_t pixel = shape.groups * int64_t(sizeof(T));
    return shape.N * to.extent[0] * to.extent[1] * to.extent[2] * pixel > kStreamedBytes &&
           pixel % kAlignment == 0 && reinterpret_cast<uintptr_t>(operands.destination) % kAlignment == 0;
  }

  void choose_tiles() {
    const Window& x = shape.axis[2];
    if (to.channels >= kRunChannels || (x.dilation > 1 && x.stride > 1)) return;
    spread = gradient && x.stride > 1;
    tiled = tiles_of_residue<A>(0) != nullptr;
    spread = spread && tiled;
    if (!tiled) return;
    const Window& y = shape.axis[1];
    tile_rows = kTileRows;
    if (y.kernel > 1) row_step = y.dilation / (gradient ? 1 : gcd_of(y.stride, y.dilation));
    column_step = min_of(x.dilation, to.extent[2]);
  }

  // The rows of a tile are `row_step` apart, so that with a dilation too they read the same rows of the
  // source. Tiles follow each other in the order of these residues: each row of the source is read once.
  int64_t chain_rows() const { return tile_rows * row_step; }
  int64_t next_tile(int64_t y, int64_t height) const {  // of a box; its height is the end
    const int64_t next = y + chain_rows(), residue = y % row_step + 1;
    return next < height ? next : residue < min_of(row_step, height) ? residue : height;
  }

  template <class E>
  const TilesOf<E>* tiles_of_residue(int64_t residue) const {
    const Window& x = shape.axis[2];
    return spread ? backward_tiles<E>(x.kernel, x.stride, residue)
                  : forward_tiles<E>(x.kernel, gradient ? 1 : x.stride);
  }

  // So many blocks that the rows which a row reads stay in L2, and with several planes of taps so many rows;
  // but boxes as large as balance the threads, because what two of them read comes from memory twice.
  void choose_boxes_in_place(int64_t few) {
    int64_t *size = boxes.size, &part_blocks = boxes.part_blocks;
    part_blocks = clamp(kRowsInCache / rows_read(), 1, blocks.count);
    const auto cut_rows = [&](int64_t rows) {
      rows = round_up(max_of(rows, 1), chain_rows());
      if (rows >= size[1]) return false;
      size[1] = rows;
      return true;
    };
    if (shape.axis[0].kernel > 1)
      cut_rows(kRowsInCache / (shape.axis[0].kernel * from.extent[2] * L * part_blocks));
    while (boxes.tasks() < few && boxes.pixels() * L * part_blocks * shape.taps() > 2 * kLeastProducts) {
      if (size[0] > size[1]) {
        size[0] = ceil_div(size[0], 2);
      } else if (!cut_rows(ceil_div(size[1], 2))) {
        if (part_blocks == 1) break;
        part_blocks = ceil_div(part_blocks, 2);
      }
    }
  }

  void run(const Parallel& parallel) const {
    for (int a = 0; a < kAxes; ++a) {
      for (int64_t r = 0; r < phase_count[a]; ++r) {
        const int64_t step = a == 2 ? column_step : 1;
        phase[a][r] =
            every_nth(gradient ? grad_input_phase(shape.axis[a], r / step) : forward_phase(shape.axis[a]),
                      r % step, step);
      }
    }
    for (int64_t r = 0; r < phase_count[2]; ++r) {
      for (int64_t m = 0; m < phase[2][r].taps; ++m)
        insides[r * shape.axis[2].kernel + m] = positions_inside(phase[2][r], m);
    }
    parallel(blocks.count, [&](int64_t b, int) {
      pack_lanes(operands.weight, block_weights / L, operands.bias, to.channels, blocks, b,
                 packed + b * block_weights, packed_bias + b * to.channels * L);
    });
    parallel(boxes.tasks(), [&](int64_t task, int thread) {
      const int64_t parts = boxes.parts();
      const Range part = boxes.part(task % parts);
      int64_t number = task / parts;
      const Box box = boxes.take(number);
      const T* image = operands.source + number * from.strides.image;
      T* result = operands.destination + number * to.strides.image;
      char* list = tap_rows[thread];
      if constexpr (kMayBeInPlace) {
        if (in_place) {
          const int64_t first = blocks.first(part.begin);
          compute<T>(view_in_place(image + first, from), view_in_place(result + first, to), box, part,
                     image + first, result + first, list);
          if (streamed) end_streams();
          return;
        }
      }
      const Box read = boxes.source_of(box);
      A* loaded = scratches[thread];
      A* sums = loaded + source_scratch;
      const auto reading = staged_view<const A>(loaded, read, from.channels);
      const auto writing = staged_view(sums, box, to.channels);
      for (int64_t b = part.begin; b < part.end; ++b) {
        const T* first = image + blocks.first(b) * from.channels * from.strides.channel;
        load_lanes(first, from, blocks.lanes, read, loaded + (b - part.begin) * reading.block);
      }
      const int64_t first = blocks.first(part.begin);
      compute<A>(reading, writing, box, part, image + first * from.channels * from.strides.channel,
                 result + first * to.channels * to.strides.channel, list);
      for (int64_t b = part.begin; b < part.end; ++b) {
        T* first = result + blocks.first(b) * to.channels * to.strides.channel;
        store_lanes(sums + (b - part.begin) * writing.block, to, blocks.lanes, box, first);
      }
    });
  }
  // Of what is written to the destination itself, or null.
  template <class E>
  const EpilogueOf<E>* epilogue_in_place() const {
    if constexpr (std::is_same_v<E, T>) return in_place ? operands.any_epilogue() : nullptr;
    return nullptr;
  }

  // The box of the destination, for some blocks; image and result point to the first channel of these.
  // Elements E are T in place, else A.
  template <class E>
  void compute(const LanesView<const E>& read, const LanesView<E>& write, const Box& box, Range part,
               const T* image, const T* result, char* scratch_list) const {
    TapRow<E>* list = reinterpret_cast<TapRow<E>*>(scratch_list);
    const A* weights = packed + part.begin * block_weights;
    for (int64_t z = box.begin[0]; z < box.end[0]; ++z) {
      for (int64_t at = 0; at < box.size(1); at = next_tile(at, box.size(1))) {
        const int64_t y = box.begin[1] + at;
        const int64_t height = min_of(tile_rows, ceil_div(box.end[1] - y, row_step));
        const int64_t count = list_rows(z, y, height, read, weights, list);
        Ahead next = far && in_place ? ahead_of(z, at, box, part, image, result) : Ahead();
        const NextPart of_next =
            far && !in_place ? ahead_of_part(z, y, box, part, image, result) : NextPart();
        const Rows<E> of_tile = {
            list, count, height, write.at(z, y, 0), part, far && in_place ? &next : nullptr, of_next};
        int64_t run = 0;
        for (int64_t r2 = 0; r2 < (spread ? 1 : phase_count[2]); ++r2) {
          if (tiled) {
            run = compute_tiles<E>(r2, run, box, of_tile, read, write);
          } else if constexpr (std::is_same_v<E, A>) {
            run = compute_runs(r2, run, box, of_tile, read, write);
          }
        }
      }
    }
  }

  using NextPart = LanesAhead<T, true>;

  template <class E>
  struct Rows {  // of a tile
    const TapRow<E>* list;
    int64_t count, height;
    E* to;  // pixel 0 of the first row
    Range part;
    Ahead* ahead;  // in place, else null
    NextPart of_next;
  };

  Range source_of(int a, int64_t position) const {
    return source_range(shape.axis[a], gradient, position, position + 1);
  }
  // Rows of the source that a tile's rows read and the rows before them do not.
  Range newest_rows(int64_t y, int64_t last) const {
    const int64_t step = phase[1][0].offset_step;
    const auto newest = [&](int64_t row) { return source_of(1, row).end - 1; };
    return {y < row_step ? newest(y) % step : newest(y - row_step) + step, newest(last) + 1};
  }
  int64_t last_row(int64_t y) const { return min_of(y + chain_rows() - row_step, to.extent[1] - 1); }
  int64_t runs_of_row(int64_t width, int64_t pixels) const {
    return column_step * ceil_div(ceil_div(width, column_step), pixels);
  }

  // In place, what the box's next tiles touch first. In the order of memory, so that the hardware fetches
  // ahead of the requests: each waits in one of the few places for lines on their way to the first level.
  Ahead ahead_of(int64_t z, int64_t at, const Box& box, Range part, const T* image, const T* result) const {
    at = next_tile(at, box.size(1));
    if (at == box.size(1)) {
      at = 0;
      if (++z == box.end[0]) return {};
    }
    const int64_t y = box.begin[1] + at, last = last_row(y), channels = part.size() * L;
    const int64_t calls = runs_of_row(box.size(2), tiled ? kTilePixels : kRunPixels) * part.size();
    const int64_t plane = max_of(source_of(0, z).end - 1, 0);
    const Range read = newest_rows(y, last);
    return {fetched_rows(image, from, channels, plane, read, phase[1][0].offset_step, calls),
            streamed ? FetchedRows() : fetched_rows(result, to, channels, z, {y, last + 1}, row_step, calls),
            {}};
  }

  // Else these rows of the result, and of the next part of the source as many rows as these move on by.
  NextPart ahead_of_part(int64_t z, int64_t y, const Box& box, Range part, const T* image,
                         const T* result) const {
    const int64_t last = last_row(y), shares = runs_of_row(box.size(2), kTilePixels);
    NextPart ahead;
    ahead.other = FetchedShares<T>(result, to, blocks.lanes, z, {y, last + 1}, row_step, shares);
    if (part.end + part.size() <= blocks.count) {
      const int64_t plane = min_of(source_of(0, z).begin, from.extent[0] - 1);
      const T* next = image + part.size() * L * from.channels * from.strides.channel;
      ahead.source = FetchedShares<T>(next, from, blocks.lanes, plane, newest_rows(y, last),
                                      phase[1][0].offset_step, shares);
    }
    return ahead;
  }

  // Rows of taps inside the source of `height` rows from y on, of all source channels. Each source row is
  // listed once for all of them.
  template <class E>
  int64_t list_rows(int64_t z, int64_t y, int64_t height, const LanesView<const E>& read, const A* weights,
                    TapRow<E>* list) const {
    const int64_t step0 = phase[0][0].step, step1 = phase[1][0].step;
    const PhaseAxis& x0 = phase[0][z % step0];
    const Range taps0 = taps_inside(x0, z / step0);
    int64_t count = 0;
    for (int64_t c = 0; c < from.channels; ++c) {
      for (int64_t m0 = taps0.begin; m0 < taps0.end; ++m0) {
        const int64_t tap0 = (x0.tap + m0 * x0.tap_step) * shape.axis[1].kernel;
        const int64_t first = count;
        for (int64_t r = 0; r < height; ++r) {
          const int64_t at1 = y + r * row_step, j1 = at1 / step1;
          const PhaseAxis& x1 = phase[1][at1 % step1];
          const Range taps1 = taps_inside(x1, j1);
          int64_t at = first;  // both lists are in the order of the source rows
          for (int64_t m1 = taps1.begin; m1 < taps1.end; ++m1) {
            const E* row =
                read.at(x0.source_index(z / step0, m0), x1.source_index(j1, m1), 0) + c * read.channel;
            while (at < count && list[at].source < row) ++at;
            if (at == count || list[at].source != row) {
              for (int64_t i = count++; i > at; --i) list[i] = list[i - 1];
              list[at] = {row, {}};
            }
            const int64_t tap = (tap0 + x1.tap + m1 * x1.tap_step) * shape.axis[2].kernel;
            list[at].weight[r] = weights + (c * (gradient ? w.k : w.c) + tap * w.tap) * L;
          }
        }
      }
    }
    return count;
  }

  // The pixels of one phase of the last axis, or of all of them, in tiles. Counts these, of which `begun` are
  // done.
  template <class E>
  int64_t compute_tiles(int64_t r2, int64_t begun, const Box& box, const Rows<E>& rows,
                        const LanesView<const E>& read, const LanesView<E>& write) const {
    const TilesOf<E>* tiles[2] = {tiles_of_residue<E>(0), tiles_of_residue<E>(1)};
    const PhaseAxis& x = phase[2][r2];
    const Window& window = shape.axis[2];
    const Range pixels = spread ? Range{box.begin[2], box.end[2]} : positions_in(x, box.begin[2], box.end[2]);
    const int64_t runs = ceil_div(pixels.size(), kTilePixels);
    const int64_t least = pixels.size() / max_of(runs, 1), longer = pixels.size() - least * runs;
    const TileSteps steps = {x.offset_step * read.stride[2], (spread ? 1 : x.tap_step) * w.tap * L,
                             (spread ? 1 : x.step) * write.stride[2], row_step * write.stride[1],
                             block_weights};
    const auto columns_in = [apart = x.offset_step](int64_t pixels) {
      pixels = max_of(pixels, 0);
      return apart == 1 ? pixels : ceil_div(pixels, apart);  // a division takes as long as a row of a tile
    };
    // In place a call takes all blocks: their lines follow each other in memory.
    for (int64_t b = rows.part.begin, together = 1; b < rows.part.end; b += together) {
      if (in_place) together = blocks.neighbours(b, rows.part.end);
      const int64_t source_offset = offset(read, rows.part, b);
      const int64_t first = blocks.first(b) - blocks.first(rows.part.begin);
      for (int64_t k = 0; k < to.channels; ++k) {
        const int64_t weight_at = (b - rows.part.begin) * block_weights +
                                  ((spread ? 0 : x.tap * w.tap) + k * (gradient ? w.c : w.k)) * L;
        const A* add = packed_bias + (b * to.channels + k) * L;
        E* out = rows.to + (spread ? 0 : x.start) * write.stride[2] + k * write.channel +
                 offset(write, rows.part, b);
        for (int64_t i = 0, j = pixels.begin, count; i < runs; ++i, j += count) {
          count = least + (i < longer);
          if (k == 0) rows.of_next.next(first, begun + i);
          const int64_t last = j + window.padding - (window.kernel - 1);  // where the last tap would reach
          const int64_t residue = spread ? last & 1 : 0;
          const int64_t column = spread ? (last - residue) / 2 : x.source_index(j, 0);
          const LanesTile<E> tile = {rows.list,
                                     spread || x.taps > 0 ? rows.count : 0,
                                     {columns_in(-column), columns_in(x.source - column)},
                                     together,
                                     column * read.stride[2] + source_offset,
                                     weight_at,
                                     add,
                                     out + j * steps.to_pixel,
                                     rows.ahead,
                                     epilogue_in_place<E>(),
                                     streamed};
          tiles[residue]->run[rows.height - 1][count - 1](tile, steps);
        }
      }
    }
    return begun + runs;
  }

  // The same by runs of pixels.
  int64_t compute_runs(int64_t r2, int64_t begun, const Box& box, const Rows<A>& rows,
                       const LanesView<const A>& read, const LanesView<A>& write) const {
    const PhaseAxis& x = phase[2][r2];
    const Range pixels = positions_in(x, box.begin[2], box.end[2]);
    const RunSteps steps = {x.source_step * read.stride[2], x.offset_step * read.stride[2],
                            x.tap_step * w.tap * L,         (gradient ? w.c : w.k) * L,
                            x.step * write.stride[2],       write.channel};
    for (int64_t b = rows.part.begin; b < rows.part.end; ++b) {
      const int64_t source_offset = offset(read, rows.part, b), to_offset = offset(write, rows.part, b);
      const int64_t first = blocks.first(b) - blocks.first(rows.part.begin);
      const int64_t weight_at = (b - rows.part.begin) * block_weights + x.tap * w.tap * L;
      for (int64_t k = 0; k < to.channels;) {
        const bool single = k + kRunChannels > to.channels;
        const int64_t runs = ceil_div(pixels.size(), single ? kRunPixels : kSharedRunPixels);
        const int64_t least = pixels.size() / max_of(runs, 1), longer = pixels.size() - least * runs;
        A* out = rows.to + x.start * write.stride[2] + k * write.channel + to_offset;
        for (int64_t i = 0, j = pixels.begin, count; i < runs; ++i, j += count) {
          count = least + (i < longer);
          if (k == 0) rows.of_next.next(first, begun + i);
          const LanesRun<A> run = {rows.list,
                                   x.taps > 0 ? rows.count : 0,
                                   x.source_index(j, 0) * read.stride[2] + source_offset,
                                   weight_at + k * steps.weight_channel,
                                   insides + r2 * shape.axis[2].kernel,
                                   x.taps,
                                   j,
                                   packed_bias + (b * to.channels + k) * L,
                                   out + j * steps.to_pixel,
                                   epilogue_in_place<A>()};
          if (rows.ahead) rows.ahead->fetch();
          if (single) {
            lanes_run_of<A, 1>(count, std::make_integer_sequence<int, kRunPixels>())(run, steps);
          } else {
            lanes_run_of<A, kRunChannels>(count, std::make_integer_sequence<int, kSharedRunPixels>())(run,
                                                                                                      steps);
          }
        }
        k += single ? 1 : kRunChannels;
      }
    }
    return begun + ceil_div(pixels.size(), kRunPixels);
  }

  // Of a block from the first of its part, in elements: in place they are neighbours.
  template <class View>
  int64_t offset(const View& view, Range part, int64_t b) const {
    return in_place ? blocks.first(b) - blocks.first(part.begin) : (b - part.begin) * view.block;
  }

  ConvShape shape;
  bool gradient;
  LaneBlocks<A> blocks;
  GroupedLayout from, to;
  Operands<T> operands;
  WeightStrides w;
  LaneBoxes<A> boxes;
  bool in_place, streamed, far;
  bool tiled = false, spread = false;  // spread: a gradient's phases of the last axis in one tile
  int64_t tile_rows = 1, row_step = 1, column_step = 1;
  int64_t phase_count[kAxes];
  int64_t block_weights, most_tap_rows;
  int64_t source_scratch = 0,
          scratch = 0;  // elements where boxes are copied: of the source first, and of both
  ScratchLayout memory;
  A *packed, *packed_bias;
  PhaseAxis* phase[kAxes];
  Range* insides;  // [phase][tap] of the last axis
  PerThread<char> tap_rows;
  PerThread<A> scratches;
};

template <bool Gradient>
constexpr ConvKernel kConvDepthwise =
    entry<ByType<LanesConv, Gradient>>("depthwise", "a lane for each channel", depthwise_refuses);

template <bool Gradient>
const char* grouped_refuses(const ConvProblem& p);  // conv_choice.h
template <bool Gradient>
constexpr ConvKernel kConvGrouped = entry<ByType<LanesConv, Gradient>>(
    "grouped", "a lane for each of many narrow groups", grouped_refuses<Gradient>);

}  // namespace cnnext::cpu::CNNEXT_ISA
