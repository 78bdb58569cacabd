// Convolution of many narrow groups and its gradient with respect to the input, a lane for each group:
//   destination[pixel, plane] = bias[plane] + sum over (source plane, tap) of source[pixel, tap, plane] *
//   weight
// for every group of a block at once (conv_lanes.h). Any stride, padding, dilation and number of axes: the
// gradient runs as a gather for each residue of the stride, taps in the padding are left out.
//
// Depthwise float32 and float64 in channels last are read and written in place. Otherwise a task loads a box
// of the source, computes a box of the destination in the thread's scratch memory and stores it. Each element
// is summed in one order, whatever the boxes and threads.
#pragma once

#include "conv_lanes.h"
#include "conv_lanes_tile.h"

namespace cnnext::cpu::CNNEXT_ISA {

template <class T>
struct LanesConv {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;
  static constexpr int64_t kBoxElements = (192 << 10) / sizeof(A);  // of scratch memory, where rows are short
  static constexpr int64_t kTaskProducts = 1 << 18;                 // in place
  static constexpr int64_t kRowsInCache = (512 << 10) / sizeof(A);  // elements of the source, in place
  static constexpr int64_t kFewTasks = 16, kMostBlocks = 8;

  LanesConv(const ConvProblem& p, bool is_gradient, const ConvBuffers& b, char* workspace)
      : shape(p.shape),
        gradient(is_gradient),
        blocks(shape.groups),
        from(layout(p, !gradient)),
        to(layout(p, gradient)),
        source(static_cast<const T*>(gradient ? b.output : b.input)),
        weight(static_cast<const T*>(b.weight)),
        bias(static_cast<const T*>(b.bias)),
        destination(static_cast<T*>(gradient ? b.input : b.output)),
        w(weight_strides_of(p.weight_layout, shape.C_per_group(), shape.taps())) {
    in_place = sizeof(T) == sizeof(A) && from.last && from.planes == 1 && to.planes == 1 &&
               blocks.lanes == L && rows_read() <= kRowsInCache / 16;
    for (int a = 0; a < kAxes; ++a) {
      phases[a] = gradient ? min_of(shape.axis[a].stride, shape.axis[a].input) : 1;
      box_size[a] = to.extent[a];
    }
    choose_boxes();
    block_weights = to.planes * from.planes * shape.taps() * L;
    if (!in_place) {  // the last part has a block more
      source_scratch = (part_blocks + 1) * source_elements();
      scratch = (part_blocks + 1) * box_elements();
    }
    rows = from.planes * shape.axis[0].kernel * shape.axis[1].kernel;

    const auto take = [&](int64_t bytes) {
      char* at = workspace + bytes_taken;
      bytes_taken += round_up(bytes, kAlignment);
      return at;
    };
    packed = reinterpret_cast<A*>(take(blocks.count * block_weights * sizeof(A)));
    packed_bias = reinterpret_cast<A*>(take(blocks.count * to.planes * L * sizeof(A)));
    tap_rows = reinterpret_cast<TapRow<A>*>(take(p.threads * rows * sizeof(TapRow<A>)));
    insides = reinterpret_cast<Range*>(take(p.threads * shape.axis[2].kernel * sizeof(Range)));
    scratches = reinterpret_cast<A*>(take(p.threads * scratch * sizeof(A)));
  }

  static GroupedLayout layout(const ConvProblem& p, bool of_input) {
    int64_t extent[kAxes];
    for (int a = 0; a < kAxes; ++a) extent[a] = of_input ? p.shape.axis[a].input : p.shape.axis[a].output;
    return {p.layout, of_input ? p.shape.C : p.shape.K, p.shape.groups, extent};
  }

  // The most source positions along an axis that `size` destination positions read.
  int64_t source_extent(int a, int64_t size) const {
    const Window& x = shape.axis[a];
    const int64_t reach = (x.kernel - 1) * x.dilation;
    return min_of(from.extent[a],
                  gradient ? (size - 1 + reach) / x.stride + 1 : (size - 1) * x.stride + reach + 1);
  }
  Range source_range(int a, int64_t begin, int64_t end) const {
    const Window& x = shape.axis[a];
    const int64_t first = gradient ? x.first_output(begin) : x.input_index(begin, 0);
    const int64_t last = gradient ? x.end_output(end - 1) : x.input_index(end - 1, x.kernel - 1) + 1;
    const int64_t low = clamp(first, 0, from.extent[a]);
    return {low, clamp(last, low, from.extent[a])};
  }

  int64_t rows_read() const {  // from the first row to the last that a row reads, of one block, in elements
    return ((shape.axis[1].kernel - 1) * shape.axis[1].dilation + 1) * from.extent[2] * L;
  }
  int64_t box_pixels() const { return box_size[0] * box_size[1] * box_size[2]; }
  int64_t boxes(int a) const { return ceil_div(to.extent[a], box_size[a]); }
  int64_t box_count() const { return boxes(0) * boxes(1) * boxes(2); }
  int64_t tasks() const { return shape.N * box_count() * blocks.parts(part_blocks); }

  void choose_boxes() {
    if (in_place) {  // some rows of the destination, and so many blocks that the rows they read stay in L2
      part_blocks = clamp(kRowsInCache / rows_read(), 1, blocks.count);
      box_size[0] = 1;
      box_size[1] = clamp(kTaskProducts / (to.extent[2] * L * part_blocks * shape.taps()), 1, to.extent[1]);
      return;
    }
    part_blocks = from.last && sizeof(T) < sizeof(A) ? 2 : 1;  // these share lines of the cache
    for (int a = 0; a < kAxes; ++a) {
      while (box_size[a] > 1 &&
             (part_blocks * box_elements() > kBoxElements || (tasks() < kFewTasks && box_pixels() > 512))) {
        box_size[a] = ceil_div(box_size[a], 2);
      }
    }
    while (part_blocks < kMostBlocks && 2 * part_blocks * box_elements() <= kBoxElements / 4 &&
           tasks() >= 2 * kFewTasks) {
      part_blocks *= 2;  // small planes share what is done once for a row
    }
  }
  // Of scratch memory for a block; the source comes first.
  int64_t source_elements() const {
    return from.planes * L * source_extent(0, box_size[0]) * source_extent(1, box_size[1]) *
           source_extent(2, box_size[2]);
  }
  int64_t box_elements() const { return source_elements() + to.planes * box_pixels() * L; }

  void run(const Parallel& parallel) const {
    parallel(blocks.count, [&](int64_t block, int) { pack(block); });
    parallel(tasks(), [&](int64_t task, int thread) {
      const int64_t parts = blocks.parts(part_blocks);
      const Range part = blocks.part(task % parts, part_blocks);
      int64_t index = task / parts;
      Box box;
      for (int a = kAxes - 1; a >= 0; index /= boxes(a), --a) {
        const Range range = cnnext::cpu::CNNEXT_ISA::block(index % boxes(a), box_size[a], to.extent[a]);
        box.begin[a] = range.begin;
        box.end[a] = range.end;
      }
      const T* image = source + index * from.strides.image;
      T* result = destination + index * to.strides.image;
      Scratch lists = {tap_rows + thread * rows, insides + thread * shape.axis[2].kernel};
      if constexpr (sizeof(T) == sizeof(A)) {
        if (in_place) {
          const int64_t first = blocks.first(part.begin);
          return compute(view_in_place(image + first, from), view_in_place(result + first, to), box, part,
                         image + first, result + first, index + 1 == shape.N, lists);
        }
      }
      Box read;
      for (int a = 0; a < kAxes; ++a) {
        const Range range = source_range(a, box.begin[a], box.end[a]);
        read.begin[a] = range.begin;
        read.end[a] = range.end;
      }
      A* loaded = scratches + thread * scratch;
      A* sums = loaded + source_scratch;
      const auto reading = staged_view<const A>(loaded, read, from.planes);
      const auto writing = staged_view(sums, box, to.planes);
      for (int64_t b = part.begin; b < part.end; ++b) {
        const T* first = image + blocks.first(b) * from.planes * from.strides.channel;
        load_lanes(first, from, blocks.lanes, read, loaded + (b - part.begin) * reading.block);
      }
      const int64_t first = blocks.first(part.begin);
      compute(reading, writing, box, part, image + first * from.planes * from.strides.channel,
              result + first * to.planes * to.strides.channel, false, lists);
      for (int64_t b = part.begin; b < part.end; ++b) {
        T* first = result + blocks.first(b) * to.planes * to.strides.channel;
        store_lanes(sums + (b - part.begin) * writing.block, to, blocks.lanes, box, first);
      }
    });
  }

  PhaseAxis phase(int a, int64_t residue) const {
    return gradient ? grad_input_phase(shape.axis[a], residue) : forward_phase(shape.axis[a]);
  }

  // packed[block][k, c and tap of a group as in memory][lane] and packed_bias[block][destination plane][lane]
  void pack(int64_t b) const {
    A* out = packed + b * block_weights;
    A* add = packed_bias + b * to.planes * L;
    const int64_t first = blocks.first(b), K = shape.K_per_group();
    if (blocks.lanes < L) fill_zero(out, block_weights);
    transpose_block(weight + first * K * w.k, K * w.k, blocks.lanes, K * w.k,
                    [&](int64_t i) { return out + i * L; });
    fill_zero(add, to.planes * L);
    if (!bias) return;
    for (int64_t lane = 0; lane < blocks.lanes; ++lane) {
      for (int64_t p = 0; p < to.planes; ++p) {
        add[p * L + lane] = load_one(bias + (first + lane) * to.planes + p);
      }
    }
  }

  struct Scratch {  // of a thread
    TapRow<A>* rows;
    Range* inside;
  };
  // Runs of pixels in memory, of the first block of a part, that are fetched while a row is computed.
  struct Ahead {
    const T *source, *to;
    int64_t source_pixels, to_pixels;
  };

  // The box of the destination, for some blocks; image and result point to the first channel of these.
  void compute(const LanesView<const A>& read, const LanesView<A>& write, const Box& box, Range part,
               const T* image, const T* result, bool last_image, const Scratch& lists) const {
    const A* weights = packed + part.begin * block_weights;
    for (int64_t r2 = 0; r2 < phases[2]; ++r2) {
      const PhaseAxis x2 = phase(2, r2);
      for (int64_t m = 0; m < x2.taps; ++m) lists.inside[m] = positions_inside(x2, m);
      for (int64_t r0 = 0; r0 < phases[0]; ++r0) {
        const PhaseAxis x0 = phase(0, r0);
        const Range z = positions(x0, box, 0);
        for (int64_t r1 = 0; r1 < phases[1]; ++r1) {
          const PhaseAxis x1 = phase(1, r1);
          const Range y = positions(x1, box, 1);
          for (int64_t j0 = z.begin; j0 < z.end; ++j0) {
            for (int64_t j1 = y.begin; j1 < y.end; ++j1) {
              const int64_t count = list_rows(x0, x1, j0, j1, read, weights, lists.rows);
              A* row = write.at(x0.start + j0 * x0.step, x1.start + j1 * x1.step, x2.start);
              const Ahead ahead =
                  r2 == 0 ? ahead_of(x0, x1, j0, j1, part, image, result, last_image) : Ahead{};
              compute_row(x2, positions(x2, box, 2), lists, count, read, write, part, row, ahead);
            }
          }
        }
      }
    }
  }

  // In place, what the next row touches first, be it of the next image. Else this row of the result, and of
  // the next part of the source as many rows as this one moves on by.
  Ahead ahead_of(const PhaseAxis& x0, const PhaseAxis& x1, int64_t j0, int64_t j1, Range part, const T* image,
                 const T* result, bool last_image) const {
    if (in_place && ++j1 == x1.count) {
      j1 = 0;
      if (++j0 == x0.count) {
        if (last_image) return {};
        j0 = 0;
        image += from.strides.image;
        result += to.strides.image;
      }
    }
    const int64_t row = (x0.start + j0 * x0.step) * to.extent[1] + x1.start + j1 * x1.step;
    Ahead ahead = {nullptr, result + row * to.extent[2] * to.strides.pixel, 0, to.extent[2]};
    if (in_place || part.end + part.size() <= blocks.count) {
      const int64_t plane = clamp(x0.source_index(j0, x0.taps - 1), 0, from.extent[0] - 1);
      const int64_t last = x1.source_index(j1, x1.taps - 1) + 1, end = clamp(last, 0, from.extent[1]);
      const int64_t begin = j1 == 0 ? 0 : clamp(last - x1.source_step, 0, end);
      const int64_t pixel = (plane * from.extent[1] + begin) * from.extent[2];
      const int64_t next = in_place ? 0 : part.size() * L * from.planes * from.strides.channel;
      ahead.source = image + next + pixel * from.strides.pixel;
      ahead.source_pixels = (end - begin) * from.extent[2];
    }
    return ahead;
  }

  Range positions(const PhaseAxis& x, const Box& box, int a) const {
    const int64_t begin = min_of(x.count, ceil_div(max_of(0, box.begin[a] - x.start), x.step));
    return {begin, max_of(begin, min_of(x.count, ceil_div(max_of(0, box.end[a] - x.start), x.step)))};
  }

  // Rows of taps inside the source, of all source planes.
  int64_t list_rows(const PhaseAxis& x0, const PhaseAxis& x1, int64_t j0, int64_t j1,
                    const LanesView<const A>& read, const A* weights, TapRow<A>* list) const {
    const Range taps0 = taps_inside(x0, j0), taps1 = taps_inside(x1, j1);
    int64_t count = 0;
    for (int64_t p = 0; p < from.planes; ++p) {
      for (int64_t m0 = taps0.begin; m0 < taps0.end; ++m0) {
        for (int64_t m1 = taps1.begin; m1 < taps1.end; ++m1) {
          const int64_t tap0 = x0.tap + m0 * x0.tap_step, tap1 = x1.tap + m1 * x1.tap_step;
          const int64_t tap = (tap0 * shape.axis[1].kernel + tap1) * shape.axis[2].kernel;
          list[count++] = {read.at(x0.source_index(j0, m0), x1.source_index(j1, m1), read.origin[2]) +
                               p * read.plane - read.origin[2] * read.stride[2],
                           weights + (p * (gradient ? w.k : w.c) + tap * w.tap) * L};
        }
      }
    }
    return count;
  }

  void compute_row(const PhaseAxis& x, Range positions, const Scratch& lists, int64_t count,
                   const LanesView<const A>& read, const LanesView<A>& write, Range part, A* row,
                   const Ahead& ahead) const {
    const RunSteps steps = {x.source_step * read.stride[2], x.offset_step * read.stride[2],
                            x.tap_step * w.tap * L,         (gradient ? w.c : w.k) * L,
                            x.step * write.stride[2],       write.plane};
    const bool three = x.taps == 3 && x.source_step == 1 && x.offset_step == 1;
    for (int64_t b = part.begin; b < part.end; ++b) {
      const int64_t source_offset = offset(read, part, b), to_offset = offset(write, part, b);
      const int64_t first = blocks.first(b) - blocks.first(part.begin);
      for (int64_t plane = 0; plane < to.planes;) {
        const bool single = plane + kRunPlanes > to.planes;
        const int64_t runs = ceil_div(positions.size(), single ? kRunPixels : kPlanePixels);
        int64_t j = positions.begin;
        for (int64_t i = 0; i < runs; ++i) {
          const int64_t pixels = ceil_div(positions.end - j, runs - i);
          if (plane == 0) {
            fetch<false>(ahead.source + first * from.planes * from.strides.channel, from, blocks.lanes,
                         ahead.source_pixels, i, runs);
            fetch<true>(ahead.to + first * to.planes * to.strides.channel, to, blocks.lanes, ahead.to_pixels,
                        i, runs);
          }
          const LanesRun<A> run = {
              lists.rows,
              x.taps > 0 ? count : 0,
              x.source_index(j, 0) * read.stride[2] + source_offset,
              x.tap * w.tap * L + (b - part.begin) * block_weights + plane * steps.weight_plane,
              lists.inside,
              x.taps,
              j,
              {-x.source_index(j, 0), x.source - x.source_index(j, 0)},
              packed_bias + (b * to.planes + plane) * L,
              row + j * steps.to_pixel + plane * write.plane + to_offset};
          if (single && three) {
            lanes_run_of_three_of<A>(pixels, std::make_integer_sequence<int, kRunPixels>())(run, steps);
          } else if (single) {
            lanes_run_of<A, 1>(pixels, std::make_integer_sequence<int, kRunPixels>())(run, steps);
          } else {
            lanes_run_of<A, kRunPlanes>(pixels, std::make_integer_sequence<int, kPlanePixels>())(run, steps);
          }
          j += pixels;
        }
        plane += single ? 1 : kRunPlanes;
      }
    }
  }

  // Of a block from the first of its part, in elements: in place they are neighbours.
  template <class View>
  int64_t offset(const View& view, Range part, int64_t b) const {
    return in_place ? blocks.first(b) - blocks.first(part.begin) : (b - part.begin) * view.block;
  }

  ConvShape shape;
  bool gradient, in_place;
  LaneBlocks<A> blocks;
  GroupedLayout from, to;
  const T *source, *weight, *bias;
  T* destination;
  WeightStrides w;
  int64_t phases[kAxes], box_size[kAxes];
  int64_t part_blocks = 1, block_weights, source_scratch = 0, scratch = 0, rows, bytes_taken = 0;
  A *packed, *packed_bias, *scratches;
  Range* insides;
  TapRow<A>* tap_rows;
};

template <bool Gradient>
int64_t lanes_workspace(const ConvProblem& p) {
  int64_t bytes = 0;
  with_type(p.dtype, [&](auto* tag) {
    bytes = LanesConv<Pointee<decltype(tag)>>(p, Gradient, {}, nullptr).bytes_taken;
  });
  return bytes;
}
template <bool Gradient>
void lanes_conv(const ConvProblem& p, const ConvBuffers& b, const Parallel& parallel, char* workspace) {
  with_type(p.dtype,
            [&](auto* tag) { LanesConv<Pointee<decltype(tag)>>(p, Gradient, b, workspace).run(parallel); });
}

inline const char* depthwise_refuses(const ConvProblem& p) {
  if (p.shape.C_per_group() > 1) return "takes one channel in a group";
  if (p.shape.groups < 4) return "takes four groups or more";
  return nullptr;
}
// Wider groups fill vectors by themselves.
inline const char* grouped_refuses(const ConvProblem& p) {
  const int64_t C = p.shape.C_per_group(), K = p.shape.K_per_group();
  if (C == 1) return "takes more than one channel in a group";
  if (max_of(C, K) > 16) return "takes up to 16 channels in a group";
  if (p.shape.groups < (max_of(C, K) > 4 ? kLanes<float> : 8)) return "takes as many groups as fill a vector";
  return nullptr;
}

constexpr ConvKernel kConvDepthwise = {"depthwise", "a lane for each channel", depthwise_refuses,
                                       lanes_workspace<false>, lanes_conv<false>};
constexpr ConvKernel kConvGradInputDepthwise = {"depthwise", "a lane for each channel", depthwise_refuses,
                                                lanes_workspace<true>, lanes_conv<true>};
constexpr ConvKernel kConvGrouped = {"grouped", "a lane for each of many narrow groups", grouped_refuses,
                                     lanes_workspace<false>, lanes_conv<false>};
constexpr ConvKernel kConvGradInputGrouped = {"grouped", "a lane for each of many narrow groups",
                                              grouped_refuses, lanes_workspace<true>, lanes_conv<true>};

}  // namespace cnnext::cpu::CNNEXT_ISA
