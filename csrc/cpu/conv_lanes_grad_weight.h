// Gradient of a convolution of many narrow groups with respect to the weight, a lane for each group:
//   grad_weight[k, c, tap] = sum over output pixels of grad_output[pixel, k] * input[pixel + tap, c]
// for every group of a block at once (conv_lanes.h), in one pass over both operands.
//
// Depthwise float32 and float64 in channels last are read in place, otherwise a box of either is loaded into
// the thread's scratch memory. A task is some blocks times a split of the boxes of all images; the splits
// depend on the shape alone and their sums are added in order: threads do not change the result.
#pragma once

#include "conv_lanes_grad_tile.h"
#include "conv_lanes_kernel.h"

namespace cnnext::cpu::CNNEXT_ISA {

template <class T>
struct LanesGradWeight {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;
  static constexpr int64_t kBoxElements = (192 << 10) / sizeof(A);  // of scratch memory, where rows are short
  static constexpr int64_t kRowsInCache = (256 << 10) / sizeof(A);  // elements of both operands, in place
  static constexpr int64_t kTasks = 16;                             // splits are made until there are so many
  static constexpr int64_t kChain = 64;   // pixels that are summed before they are added to memory
  static constexpr int64_t kMaxRows = 8;  // of pixels in such a chain

  LanesGradWeight(const ConvProblem& p, const ConvBuffers& b, char* workspace)
      : shape(p.shape),
        blocks(shape.groups),
        in(LanesConv<T>::layout(p, true)),
        out(LanesConv<T>::layout(p, false)),
        input(static_cast<const T*>(b.input)),
        grad_output(static_cast<const T*>(b.output)),
        grad_weight(static_cast<T*>(b.weight)),
        w(weight_strides_of(p.weight_layout, shape.C_per_group(), shape.taps())) {
    for (int a = 0; a < kAxes; ++a) {
      x[a] = forward_phase(shape.axis[a]);
      box_size[a] = shape.axis[a].output;
    }
    const int64_t row_elements = (source_extent(1, 1) * in.extent[2] + out.extent[2]) * L;
    in_place = sizeof(T) == sizeof(A) && in.last && in.planes == 1 && out.planes == 1 && blocks.lanes == L &&
               row_elements <= kRowsInCache / 4;
    tap_rows = shape.axis[0].kernel * shape.axis[1].kernel;
    block_weights = shape.K_per_group() * w.k * L;
    if (in_place) {
      part_blocks = clamp(kRowsInCache / row_elements, 1, blocks.count);
      box_size[0] = 1;
      box_size[1] = rows_of_chain();
    } else {
      choose_box();
      scratch_input = in.planes * box_input() * L;
      scratch = scratch_input + out.planes * box_size[0] * box_size[1] * box_size[2] * L;
    }
    units = shape.N * boxes(0) * boxes(1) * boxes(2);
    splits = clamp(kTasks / blocks.parts(part_blocks), 1, units);

    const auto take = [&](int64_t bytes) {
      char* at = workspace + bytes_taken;
      bytes_taken += round_up(bytes, kAlignment);
      return at;
    };
    partial = reinterpret_cast<A*>(take(splits * blocks.count * block_weights * sizeof(A)));
    scratches = reinterpret_cast<A*>(take(p.threads * scratch * sizeof(A)));
    inside = reinterpret_cast<Range*>(take(shape.axis[2].kernel * sizeof(Range)));
  }

  int64_t rows_of_chain() const { return clamp(kChain / out.extent[2], 1, min_of(kMaxRows, out.extent[1])); }
  int64_t source_extent(int a, int64_t size) const {
    const Window& axis = shape.axis[a];
    return min_of(axis.input, (size - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1);
  }
  int64_t box_input() const {
    return source_extent(0, box_size[0]) * source_extent(1, box_size[1]) * source_extent(2, box_size[2]);
  }
  int64_t boxes(int a) const { return ceil_div(out.extent[a], box_size[a]); }

  void choose_box() {
    part_blocks = in.last && sizeof(T) < sizeof(A) ? 4 : 1;  // these share lines of the cache
    const int64_t parts = blocks.parts(part_blocks);
    for (int a = 0; a < kAxes; ++a) {
      const auto is_large = [&] {
        const int64_t pixels = box_size[0] * box_size[1] * box_size[2];
        return (in.planes * box_input() + out.planes * pixels) * L > kBoxElements ||
               (shape.N * boxes(0) * boxes(1) * boxes(2) * parts < kTasks && pixels > 512);
      };
      while (box_size[a] > 1 && is_large()) box_size[a] = ceil_div(box_size[a], 2);
    }
  }

  void run(const Parallel& parallel) const {
    for (int64_t m = 0; m < x[2].taps; ++m) inside[m] = positions_inside(x[2], m);
    const int64_t parts = blocks.parts(part_blocks), size = blocks.count * block_weights;
    parallel(parts * splits, [&](int64_t task, int thread) {
      const Range part = blocks.part(task % parts, part_blocks);
      const int64_t split = task / parts;
      A* sums = partial + split * size + part.begin * block_weights;
      fill_zero(sums, part.size() * block_weights);
      for (int64_t unit = units * split / splits; unit < units * (split + 1) / splits; ++unit) {
        add_unit(unit, part, sums, scratches + thread * scratch);
      }
    });
    parallel(blocks.count, [&](int64_t b, int) {
      A* total = partial + b * block_weights;
      for (int64_t split = 1; split < splits; ++split) {
        const A* from = total + split * size;
        for (int64_t i = 0; i < block_weights; i += L) store(total + i, load(total + i) + load(from + i));
      }
    });
    parallel(blocks.parts(1), [&](int64_t b, int) {  // blocks that overlap in one task
      const Range part = blocks.part(b, 1);
      const int64_t count = shape.K_per_group() * w.k;
      for (int64_t block = part.begin; block < part.end; ++block) {
        T* to = grad_weight + blocks.first(block) * count;
        transpose_block(partial + block * block_weights, L, count, blocks.lanes,
                        [&](int64_t lane) { return to + lane * count; });
      }
    });
  }

  // One box of one image, for blocks [part).
  void add_unit(int64_t unit, Range part, A* sums, A* loaded) const {
    Box box, read;
    for (int a = kAxes - 1; a >= 0; unit /= boxes(a), --a) {
      const Range range = cnnext::cpu::CNNEXT_ISA::block(unit % boxes(a), box_size[a], out.extent[a]);
      box.begin[a] = range.begin;
      box.end[a] = range.end;
      read.begin[a] = clamp(x[a].source_index(range.begin, 0), 0, in.extent[a]);
      read.end[a] = clamp(x[a].source_index(range.end - 1, x[a].taps - 1) + 1, read.begin[a], in.extent[a]);
    }
    const T* image = input + unit * in.strides.image;
    const T* grad = grad_output + unit * out.strides.image;
    if constexpr (sizeof(T) == sizeof(A)) {
      if (in_place) {
        const int64_t first = blocks.first(part.begin);
        return add_box(view_in_place(image + first, in), view_in_place(grad + first, out), box, part, sums);
      }
    }
    A* grad_loaded = loaded + scratch_input;
    for (int64_t b = part.begin; b < part.end; ++b, sums += block_weights) {
      const int64_t first = blocks.first(b);
      load_lanes(image + first * in.planes * in.strides.channel, in, blocks.lanes, read, loaded);
      load_lanes(grad + first * out.planes * out.strides.channel, out, blocks.lanes, box, grad_loaded);
      add_box(staged_view<const A>(loaded, read), staged_view<const A>(grad_loaded, box), box, {b, b + 1},
              sums);
    }
  }

  void add_box(const LanesView<const A>& read, const LanesView<const A>& grad, const Box& box, Range part,
               A* sums) const {
    const LanesGradSteps steps = {grad.stride[2],
                                  grad.stride[1],
                                  x[2].source_step * read.stride[2],
                                  x[2].offset_step * read.stride[2],
                                  w.tap * L,
                                  shape.axis[2].kernel * w.tap * L};
    const int64_t taps = x[2].taps, chunks = ceil_div(taps, kGradTaps), height = rows_of_chain();
    const int64_t pixels = ceil_div(box.size(2), ceil_div(box.size(2), 2 * kChain));
    for (int64_t z = box.begin[0]; z < box.end[0]; ++z) {
      for (int64_t y = box.begin[1]; y < box.end[1]; y += height) {
        const int64_t rows = min_of(height, box.end[1] - y);
        for (int64_t j = box.begin[2]; j < box.end[2]; j += pixels) {
          const Range range = {j, min_of(j + pixels, box.end[2])};
          if (in_place) fetch_next(read, grad, z, y + rows, range, part);
          for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const Range some = {chunk * taps / chunks, (chunk + 1) * taps / chunks};
            add_taps(read, grad, z, y, rows, range, some, part, sums, steps);
          }
        }
      }
    }
  }

  // Some taps of the last axis in all their rows, for some rows of pixels.
  void add_taps(const LanesView<const A>& read, const LanesView<const A>& grad, int64_t z, int64_t y,
                int64_t rows, Range pixels, Range taps, Range part, A* sums,
                const LanesGradSteps& steps) const {
    const int64_t most = grad_tap_rows(static_cast<int>(taps.size()));
    const int64_t column = x[2].source_index(0, taps.begin);
    for (int64_t row = 0; row < tap_rows; row += most) {
      const int64_t count = min_of(most, tap_rows - row);
      const A* source[kMaxRows * kGradTapRows];
      bool any = false;
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t r = 0; r < count; ++r) {
          const int64_t i0 = x[0].source_index(z, (row + r) / shape.axis[1].kernel);
          const int64_t i1 = x[1].source_index(y + i, (row + r) % shape.axis[1].kernel);
          const bool contains = shape.axis[0].contains(i0) && shape.axis[1].contains(i1);
          source[i * count + r] = contains ? read.at(i0, i1, column) : nullptr;
          any = any || contains;
        }
      }
      if (!any) continue;
      for (int64_t b = part.begin; b < part.end; ++b) {
        const int64_t offset = blocks.first(b) - blocks.first(part.begin);
        const A* moved[kMaxRows * kGradTapRows];
        for (int64_t k = 0; k < out.planes; ++k) {
          for (int64_t c = 0; c < in.planes; ++c) {
            for (int64_t i = 0; i < rows * count; ++i) {
              moved[i] = source[i] ? source[i] + c * read.plane + offset : nullptr;
            }
            A* to = sums + (b - part.begin) * block_weights + row * steps.sum_row +
                    (k * w.k + c * w.c + taps.begin * w.tap) * L;
            const LanesGradRun<A> run = {
                grad.at(z, y, 0) + k * grad.plane + offset, moved, rows, pixels, inside + taps.begin, to};
            lanes_grad_of<A>(count, taps.size(), run, steps);
          }
        }
      }
    }
  }

  // Rows of both operands that the next rows of pixels read first. Inlined by force: compilers drop calls of
  // functions that only prefetch.
  __attribute__((always_inline)) void fetch_next(const LanesView<const A>& read,
                                                 const LanesView<const A>& grad, int64_t z, int64_t y,
                                                 Range pixels, Range part) const {
    if (y >= out.extent[1]) return;
    const int64_t height = rows_of_chain(), bytes = part.size() * L * sizeof(A);
    const int64_t end = clamp(x[1].source_index(y + height - 1, x[1].taps - 1) + 1, 0, in.extent[1]);
    const int64_t begin = clamp(end - height * x[1].source_step, 0, end);
    const int64_t plane = clamp(x[0].source_index(z, x[0].taps - 1), 0, in.extent[0] - 1);
    const Range columns = {pixels.begin * x[2].source_step,
                           min_of(pixels.end * x[2].source_step, in.extent[2])};
    for (int64_t i1 = begin; i1 < end; ++i1) {
      for (int64_t i2 = columns.begin; i2 < columns.end; ++i2) {
        const char* at = reinterpret_cast<const char*>(read.at(plane, i1, i2));
        for (int64_t i = 0; i < bytes; i += kAlignment) __builtin_prefetch(at + i, 0, 2);
      }
    }
    for (int64_t i1 = y; i1 < min_of(y + height, out.extent[1]); ++i1) {
      for (int64_t i2 = pixels.begin; i2 < pixels.end; ++i2) {
        const char* at = reinterpret_cast<const char*>(grad.at(z, i1, i2));
        for (int64_t i = 0; i < bytes; i += kAlignment) __builtin_prefetch(at + i, 0, 2);
      }
    }
  }

  ConvShape shape;
  LaneBlocks<A> blocks;
  GroupedLayout in, out;
  const T *input, *grad_output;
  T* grad_weight;
  WeightStrides w;
  PhaseAxis x[kAxes];
  bool in_place;
  int64_t box_size[kAxes], part_blocks = 1, tap_rows, block_weights;
  int64_t scratch_input = 0, scratch = 0, units, splits, bytes_taken = 0;
  A *partial, *scratches;
  Range* inside;
};

inline int64_t lanes_grad_weight_workspace(const ConvProblem& p) {
  int64_t bytes = 0;
  with_type(p.dtype,
            [&](auto* tag) { bytes = LanesGradWeight<Pointee<decltype(tag)>>(p, {}, nullptr).bytes_taken; });
  return bytes;
}
inline void lanes_grad_weight(const ConvProblem& p, const ConvBuffers& b, const Parallel& parallel,
                              char* workspace) {
  with_type(p.dtype,
            [&](auto* tag) { LanesGradWeight<Pointee<decltype(tag)>>(p, b, workspace).run(parallel); });
}

inline const char* grouped_grad_weight_refuses(const ConvProblem& p) { return grouped_refuses(p, 8); }

constexpr ConvKernel kConvGradWeightDepthwise = {"depthwise", "a lane for each channel", depthwise_refuses,
                                                 lanes_grad_weight_workspace, lanes_grad_weight};
constexpr ConvKernel kConvGradWeightGrouped = {"grouped", "a lane for each of many narrow groups",
                                               grouped_grad_weight_refuses, lanes_grad_weight_workspace,
                                               lanes_grad_weight};

}  // namespace cnnext::cpu::CNNEXT_ISA
