// Gradient of a convolution of many narrow groups with respect to the weight, a lane for each group:
//   grad_weight[k, c, tap] = sum over output pixels of grad_output[pixel, k] * input[pixel + tap, c]
// for every group of a block at once (conv_lanes.h), in one pass over both operands.
//
// Depthwise in channels last is read in place, float16 excepted; otherwise a box of either is loaded into
// the thread's scratch memory. A task is some blocks times a split of the boxes of all images
// (conv_splits.h).
#pragma once

#include "conv_grad_weight_lanes_run.h"
#include "conv_grad_weight_lanes_tile.h"
#include "conv_lanes_kernel.h"
#include "conv_splits.h"
#include "scratch.h"

namespace cnnext::cpu::CNNEXT_ISA {

template <class T>
struct LanesGradWeight {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;
  static constexpr bool kMayBeInPlace = LanesConv<T>::kMayBeInPlace;
  static constexpr int64_t kRowsInCache = (256 << 10) / sizeof(A);  // elements of both operands, in place
  static constexpr int64_t kChain = 64;   // pixels that are summed before they are added to memory
  static constexpr int64_t kMaxRows = 8;  // of pixels in such a chain

  LanesGradWeight(const ConvProblem& p, const ConvBuffers& b, char* workspace)
      : shape(p.shape),
        blocks(shape.groups),
        in(grouped_layout(p, true)),
        out(grouped_layout(p, false)),
        input(static_cast<const T*>(b.input)),
        grad_output(static_cast<const T*>(b.output)),
        grad_weight(static_cast<T*>(b.weight)),
        w(weight_strides_of(p.weight_layout, shape.C_per_group(), shape.taps())),
        boxes(shape, false, in, out) {
    for (int a = 0; a < kAxes; ++a) x[a] = forward_phase(shape.axis[a]);
    const int64_t row_elements = (source_extent(shape.axis[1], false, 1) * in.extent[2] + out.extent[2]) * L;
    tiled =
        in.channels == 1 && out.channels <= kGradRunChannels && grad_tiles<A>(shape.axis[1], shape.axis[2]);
    in_place = (std::is_same_v<T, A> || (kMayBeInPlace && tiled)) && in.channels_last && in.channels == 1 &&
               out.channels == 1 && blocks.lanes == L && row_elements <= kRowsInCache / 4;
    far = beyond_caches(p) && !reads_planes(p);
    tap_rows = shape.axis[0].kernel * shape.axis[1].kernel;
    block_weights = shape.K_per_group() * w.k * L;
    if (in_place) {
      boxes.part_blocks = clamp(kRowsInCache / row_elements, 1, blocks.count);
      boxes.size[0] = 1;
      boxes.size[1] = tiled ? round_up(rows_of_chain(), kTileRows) : rows_of_chain();
    } else {
      boxes.cut_to_fit(in.channels_last && sizeof(T) < sizeof(A) ? 2 : 1);
      boxes.join_small(1);
      scratch_input = (boxes.part_blocks + 1) * boxes.source_elements();  // the last part has a block more
      scratch = (boxes.part_blocks + 1) * boxes.elements();
    }
    units = shape.N * boxes.count();
    splits = clamp(boxes.kFewTasks / boxes.parts(), 1, units);  // made until there are so many tasks

    memory.base = workspace;
    partial = memory.take<A>(splits * blocks.count * block_weights);
    scratches = memory.take_each<A>(p.threads, scratch);
    offsets = memory.take_each<int64_t>(p.threads, kMaxRows * tap_rows);
    tile_count = tiled ? ceil_div(boxes.size[1], kTileRows) * ceil_div(boxes.size[2], kGradTilePixels) : 0;
    tile_list = memory.take_each<char>(p.threads, tile_count * int64_t(sizeof(GradTile<A>)));
    inside = memory.take<Range>(shape.axis[2].kernel);
  }

  int64_t workspace_bytes() const { return memory.bytes; }

  int64_t rows_of_chain() const { return clamp(kChain / out.extent[2], 1, min_of(kMaxRows, out.extent[1])); }

  void run(const Parallel& parallel) const {
    for (int64_t m = 0; m < x[2].taps; ++m) inside[m] = positions_inside(x[2], m);
    const int64_t parts = boxes.parts(), size = blocks.count * block_weights;
    parallel(parts * splits, [&](int64_t task, int thread) {
      const Range part = boxes.part(task % parts);
      const int64_t split = task / parts;
      A* sums = partial + split * size + part.begin * block_weights;
      fill_zero(sums, part.size() * block_weights);
      for (int64_t unit = units * split / splits; unit < units * (split + 1) / splits; ++unit) {
        add_unit(unit, part, sums, thread);
      }
    });
    parallel(blocks.count,
             [&](int64_t b, int) { add_splits(partial + b * block_weights, splits, block_weights, size); });
    parallel(blocks.parts(1), [&](int64_t b, int) {  // blocks that overlap in one task
      const Range part = blocks.part(b, 1);
      const int64_t count = shape.K_per_group() * w.k;
      for (int64_t block = part.begin; block < part.end; ++block) {
        lanes_to_rows(partial + block * block_weights, count, blocks.lanes,
                      grad_weight + blocks.first(block) * count);
      }
    });
  }

  // One box of one image, for some blocks.
  void add_unit(int64_t unit, Range part, A* sums, int thread) const {
    int64_t image = unit;
    const Box box = boxes.take(image), read = boxes.source_of(box);
    const auto input_of = [&](int64_t b) {
      return input + image * in.strides.image + blocks.first(b) * in.channels * in.strides.channel;
    };
    const auto grad_of = [&](int64_t b) {
      return grad_output + image * out.strides.image + blocks.first(b) * out.channels * out.strides.channel;
    };
    const Images all = {input_of(part.begin), grad_of(part.begin), image + 1 == shape.N};
    if constexpr (kMayBeInPlace) {
      if (in_place) {
        return add_box<T>(view_in_place(all.input, in), view_in_place(all.grad, out), box, part, all, sums,
                          thread);
      }
    }
    A* loaded = scratches[thread];
    const auto reading = staged_view<const A>(loaded, read, in.channels);
    A* grads = loaded + scratch_input;
    const auto grad = staged_view<const A>(grads, box, out.channels);
    for (int64_t b = part.begin; b < part.end; ++b) {
      load_lanes(input_of(b), in, blocks.lanes, read, loaded + (b - part.begin) * reading.block);
      load_lanes(grad_of(b), out, blocks.lanes, box, grads + (b - part.begin) * grad.block);
    }
    add_box<A>(reading, grad, box, part, all, sums, thread);
  }

  struct Images {  // of both operands, from the first channel of a part on
    const T *input, *grad;
    bool last_image;
  };

  // Elements E are T in place, else A.
  template <class E>
  void add_box(const LanesView<const E>& read, const LanesView<const E>& grad, const Box& box, Range part,
               const Images& images, A* sums, int thread) const {
    if (tiled) {
      return add_tiles(read, grad, box, part, images, sums,
                       reinterpret_cast<GradTile<E>*>(tile_list[thread]));
    }
    if constexpr (std::is_same_v<E, A>) add_rows(read, grad, box, part, images, sums, offsets[thread]);
  }

  void add_rows(const LanesView<const A>& read, const LanesView<const A>& grad, const Box& box, Range part,
                const Images& images, A* sums, int64_t* row_offsets) const {
    const LanesGradSteps steps = {grad.stride[2],
                                  grad.stride[1],
                                  grad.channel,
                                  x[2].source_step * read.stride[2],
                                  x[2].offset_step * read.stride[2],
                                  w.tap * L,
                                  shape.axis[2].kernel * w.tap * L,
                                  w.k * L,
                                  tap_rows};
    const int64_t height = rows_of_chain();
    const int64_t pixels = ceil_div(box.size(2), ceil_div(box.size(2), 2 * kChain));
    for (int64_t z = box.begin[0]; z < box.end[0]; ++z) {
      for (int64_t y = box.begin[1]; y < box.end[1]; y += height) {
        const int64_t rows = min_of(height, box.end[1] - y);
        list_offsets(read, z, y, rows, row_offsets);
        Ahead ahead = ahead_of(z, y, part, images, ceil_div(box.size(2), pixels));
        const NextPart of_next = ahead_of_part(z, y, part, images, 1);
        for (int64_t j = box.begin[2]; j < box.end[2]; j += pixels) {
          const Range range = {j, min_of(j + pixels, box.end[2])};
          for (int64_t b = part.begin; b < part.end; ++b) {
            ahead.fetch();
            if (j == box.begin[2]) of_next.next(blocks.first(b) - blocks.first(part.begin), 0);
            LanesGradRun<A> run = {grad.at(z, y, 0) + offset(grad, part, b),
                                   read.base + offset(read, part, b) - read.origin[2] * read.stride[2],
                                   row_offsets,
                                   rows,
                                   range,
                                   inside,
                                   sums + (b - part.begin) * block_weights};
            add_channels(run, steps, read);
          }
        }
      }
    }
  }

  template <class E>
  void add_tiles(const LanesView<const E>& read, const LanesView<const E>& grad, const Box& box, Range part,
                 const Images& images, A* sums, GradTile<E>* list) const {
    const GradTilesOf<E>& tiles = *grad_tiles<E>(shape.axis[1], shape.axis[2]);
    const GradTileSteps steps = {grad.stride[2], grad.stride[1], read.stride[2], w.tap * L};
    for (int64_t z = box.begin[0]; z < box.end[0]; ++z) {
      for (int64_t m0 = 0; m0 < x[0].taps; ++m0) {
        const int64_t i0 = x[0].source_index(z, m0);
        if (!shape.axis[0].contains(i0)) continue;
        TileGroup<E> groups[4];
        const int64_t count = list_tiles(read, grad, box, z, i0, list, groups), runs = count > 0 ? count : 1;
        Ahead ahead = m0 == 0 ? ahead_of(z, box.begin[1], part, images, runs) : Ahead();
        const NextPart of_next = m0 == 0 ? ahead_of_part(z, box.begin[1], part, images, runs) : NextPart();
        int64_t run = 0;
        for (const TileGroup<E>& g : groups) {
          for (int64_t i = 0; i < g.count; i += chain(), ++run) {
            for (int64_t b = part.begin; b < part.end; ++b) {  // their lines follow each other, in place
              ahead.fetch();
              of_next.next(blocks.first(b) - blocks.first(part.begin), run);
              for (int64_t k = 0; k < out.channels; ++k) {
                tiles.run[g.height - 1][g.width - 1](
                    g.first + i, min_of(chain(), g.count - i), offset(read, part, b),
                    offset(grad, part, b) + k * grad.channel,
                    sums + (b - part.begin) * block_weights +
                        (k * w.k + m0 * kSharedTaps * kSharedTaps * w.tap) * L,
                    steps);
              }
            }
          }
        }
      }
    }
  }

  // Tiles between which lines are fetched: products hide less of it where rows are long and far.
  int64_t chain() const { return far && out.extent[2] > 2 * kGradTilePixels ? 1 : kTilesOfChain; }

  template <class E>
  struct TileGroup {  // of one size
    const GradTile<E>* first;
    int64_t height, width, count;
  };

  // The box's tiles in plane z for the source's plane i0, of two heights and two widths at most. Returns how
  // many runs they make.
  template <class E>
  int64_t list_tiles(const LanesView<const E>& read, const LanesView<const E>& grad, const Box& box,
                     int64_t z, int64_t i0, GradTile<E>* list, TileGroup<E>* group) const {
    const int64_t across = ceil_div(box.size(2), kGradTilePixels), narrow = box.size(2) / max_of(across, 1);
    const int64_t wider = box.size(2) - narrow * across, whole = box.size(1) / kTileRows;
    int64_t runs = 0;
    for (const bool last : {false, true}) {
      for (const bool wide : {true, false}) {
        const int64_t height = last ? box.size(1) % kTileRows : kTileRows, width = narrow + wide;
        const int64_t rows = last ? height > 0 : whole, columns = wide ? wider : across - wider;
        *group = {list, height, width, rows * columns};
        runs += ceil_div(group++->count, chain());
        for (int64_t n = 0; n < rows * columns; ++n, ++list) {
          const int64_t y = box.begin[1] + (last ? whole : n / columns) * kTileRows;
          const int64_t j = box.begin[2] + (wide ? 0 : wider * (narrow + 1)) + n % columns * width;
          const int64_t column = x[2].source_index(j, 0);
          list->grad = grad.at(z, y, j);
          list->columns = {-column, x[2].source - column};
          for (int64_t i = 0; i < (height - 1) * x[1].source_step + kSharedTaps; ++i) {
            const int64_t i1 = x[1].source_index(y, i);
            list->source[i] = shape.axis[1].contains(i1) ? read.at(i0, i1, column) : nullptr;
          }
        }
      }
    }
    return runs;
  }

  // Where each row of taps reads, for some rows of pixels: an offset from the first row, or -1 in the
  // padding.
  void list_offsets(const LanesView<const A>& read, int64_t z, int64_t y, int64_t rows, int64_t* to) const {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t m0 = 0; m0 < x[0].taps; ++m0) {
        for (int64_t m1 = 0; m1 < x[1].taps; ++m1) {
          const int64_t i0 = x[0].source_index(z, m0), i1 = x[1].source_index(y + i, m1);
          const bool contains = shape.axis[0].contains(i0) && shape.axis[1].contains(i1);
          *to++ =
              contains ? (i0 - read.origin[0]) * read.stride[0] + (i1 - read.origin[1]) * read.stride[1] : -1;
        }
      }
    }
  }

  // All taps of all pairs of channels.
  void add_channels(const LanesGradRun<A>& of_block, const LanesGradSteps& steps,
                    const LanesView<const A>& read) const {
    const int64_t taps = x[2].taps, chunks = ceil_div(taps, kGradTaps);
    for (int64_t k = 0; k < out.channels;) {
      const int channels = k + kGradRunChannels <= out.channels ? kGradRunChannels : 1;
      for (int64_t c = 0; c < in.channels; ++c) {
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          const int64_t tap = chunk * taps / chunks, count = (chunk + 1) * taps / chunks - tap;
          const int64_t most = grad_tap_rows(static_cast<int>(count), channels);
          LanesGradRun<A> run = of_block;
          run.grad += k * steps.grad_channel;
          run.source += c * read.channel + x[2].source_index(0, tap) * read.stride[2];
          run.inside += tap;
          run.sums += (k * w.k + c * w.c + tap * w.tap) * L;
          for (int64_t row = 0; row < tap_rows; row += most) {
            const int64_t some = min_of(most, tap_rows - row);
            if (channels == 1) {
              lanes_grad_of<A, 1>(some, count, run, steps);
            } else {
              lanes_grad_of<A, kGradRunChannels>(some, count, run, steps);
            }
            run.offsets += some;
            run.sums += some * steps.sum_row;
          }
        }
      }
      k += channels;
    }
  }

  template <class View>
  int64_t offset(const View& view, Range part, int64_t b) const {
    return in_place ? blocks.first(b) - blocks.first(part.begin) : (b - part.begin) * view.block;
  }

  using NextPart = LanesAhead<T, false>;

  // The rows of both operands that rows of pixels from y on read first.
  struct NewRows {
    int64_t plane;
    Range input, grad;
  };
  NewRows new_rows(int64_t z, int64_t y, int64_t height) const {
    const int64_t last = x[1].source_index(y + height - 1, x[1].taps - 1) + 1;
    const int64_t end = clamp(last, 0, in.extent[1]);
    const int64_t begin = y == 0 ? 0 : clamp(last - height * x[1].source_step, 0, end);
    return {clamp(x[0].source_index(z, x[0].taps - 1), 0, in.extent[0] - 1),
            {begin, end},
            {y, min_of(y + height, out.extent[1])}};
  }
  int64_t rows_at_once() const { return tiled ? boxes.size[1] : rows_of_chain(); }

  // In place, what the rows of pixels after these touch first, be it of the next image.
  Ahead ahead_of(int64_t z, int64_t y, Range part, const Images& images, int64_t runs) const {
    if (!far || !in_place) return {};
    Images from = images;
    if ((y += rows_at_once()) >= out.extent[1]) {
      y = 0;
      if (++z == out.extent[0]) {
        if (images.last_image) return {};
        z = 0;
        from.input += in.strides.image;
        from.grad += out.strides.image;
      }
    }
    const NewRows rows = new_rows(z, y, rows_at_once());
    const int64_t channels = part.size() * L, calls = runs * part.size();
    return {fetched_rows(from.input, in, channels, rows.plane, rows.input, 1, calls),
            fetched_rows(from.grad, out, channels, z, rows.grad, 1, calls),
            {}};
  }
  // Else these rows of the next part.
  NextPart ahead_of_part(int64_t z, int64_t y, Range part, const Images& images, int64_t shares) const {
    if (!far || in_place || part.end + part.size() > blocks.count) return {};
    const NewRows rows = new_rows(z, y, rows_at_once());
    const int64_t next = part.size() * L;  // in groups
    return {FetchedShares<T>(images.input + next * in.channels * in.strides.channel, in, blocks.lanes,
                             rows.plane, rows.input, 1, shares),
            FetchedShares<T>(images.grad + next * out.channels * out.strides.channel, out, blocks.lanes, z,
                             rows.grad, 1, shares)};
  }

  ConvShape shape;
  LaneBlocks<A> blocks;
  GroupedLayout in, out;
  const T *input, *grad_output;
  T* grad_weight;
  WeightStrides w;
  PhaseAxis x[kAxes];
  bool in_place, far, tiled;
  LaneBoxes<A> boxes;
  int64_t tap_rows, block_weights;
  int64_t scratch_input = 0, scratch = 0;  // elements where boxes are copied: of the input first, and of both
  int64_t units, splits;                   // boxes of all images, and the splits of them
  ScratchLayout memory;
  A* partial;
  PerThread<A> scratches;
  PerThread<int64_t> offsets;
  PerThread<char> tile_list;
  int64_t tile_count;
  Range* inside;
};

constexpr ConvKernel kConvGradWeightDepthwise =
    entry<ByType<LanesGradWeight>>("depthwise", "a lane for each channel", depthwise_refuses);

inline const char* grouped_grad_weight_refuses(const ConvProblem& p);  // conv_grad_weight_choice.h
constexpr ConvKernel kConvGradWeightGrouped = entry<ByType<LanesGradWeight>>(
    "grouped", "a lane for each of many narrow groups", grouped_grad_weight_refuses);

}  // namespace cnnext::cpu::CNNEXT_ISA
