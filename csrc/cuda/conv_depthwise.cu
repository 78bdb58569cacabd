#include "conv_depthwise.cuh"
#include "conv_depthwise_pairs.cuh"
#include "conv_depthwise_slide.cuh"
#include "conv_depthwise_strip.cuh"
#include "kernels.h"
#include "reduce.cuh"

namespace cnnext::cuda {
namespace {

// Sizes and strides of the kernels that have bodies of their own.
const std::integral_constant<int, 1> one;
const std::integral_constant<int, 2> two;
const std::integral_constant<int, 3> three;
const std::integral_constant<int, 5> five;
const std::integral_constant<int, 7> seven;

template <class T, int kPack, int kLanes, int kStrip, int kTaps, int kStep>
void start(const DepthwiseGather& a, const Stream& stream) {
  int64_t most = 0;
  for (int i = 0; i < a.g.phases; ++i) most = max_of(most, a.strips[i]);
  const Grid grid = {ceil_div(a.g.images * most, kDepthwiseThreads / kLanes),
                     ceil_div(a.g.groups, kLanes * kPack), a.g.phases};
  // Of 16 bytes: nvcc reads two weights at once before it knows whether the second is needed.
  const int shared = int(round_up(a.g.kernel[2] * kLanes * kPack * sizeof(Acc<T>), 16));
  launch(conv_gather_depthwise<T, kPack, kLanes, kStrip, kTaps, kStep>, grid, kDepthwiseThreads, shared,
         stream, a);
}

// Chooses the body for the taps of the last axis.
template <class T, int kPack, int kLanes, int kStrip>
void gather(const ConvGather& g, const Stream& stream) {
  DepthwiseGather a = {g, {}, {}, {}};
  for (int i = 0; i < g.phases; ++i) {
    const PhaseAxes& phase = g.phase[i];
    const int64_t in_row = ceil_div(phase.axis[2].count, kStrip);
    a.strips[i] = int(in_row * phase.axis[1].count * phase.axis[0].count);
    a.by_strips_in_row[i] = Divisor(max_of(1, in_row));
    a.by_strips[i] = Divisor(max_of(1, a.strips[i]));
  }
  if constexpr (kStrip > 1) {  // neighbours share inputs where taps are neighbours too
    const Phase& w = g.phase[0].axis[2];
    const bool neighbours = g.phases == 1 && w.offset_step == 1;
    if (neighbours && w.taps == 3 && w.source_step == 1)
      return start<T, kPack, kLanes, kStrip, 3, 1>(a, stream);
    if (neighbours && w.taps == 3 && w.source_step == 2)
      return start<T, kPack, kLanes, kStrip, 3, 2>(a, stream);
    if (neighbours && w.taps == 5 && w.source_step == 1)
      return start<T, kPack, kLanes, kStrip, 5, 1>(a, stream);
    if (neighbours && w.taps == 7 && w.source_step == 1)
      return start<T, kPack, kLanes, kStrip, 7, 1>(a, stream);
  }
  start<T, kPack, kLanes, kStrip, 0, 0>(a, stream);
}

// As for_each_phases, for so many channels at a time that a grid has a row for each.
template <class T, class Run>
void for_each_gather(Direction direction, const ConvProblem& p, const ConvBuffers& b, const Run& run) {
  for_each_phases(direction, p, b, [&](const ConvGather& all) { for_each_groups<T>(all, 1, run); });
}

// Calls run(taps, step, dilated) for a square kernel that strips are computed by, in channels first; false if
// it is none. Float64 would not find room in registers.
template <class T, class Run>
bool with_strips(const ConvProblem& p, const Run& run) {
  constexpr int64_t kMostDilation = 1 << 26;  // a strip's rows are numbered in 32 bits
  const Window &h = p.shape.axis[1], &w = p.shape.axis[2];
  if (p.layout != Layout::kChannelsFirst || h.kernel != w.kernel || h.stride != w.stride ||
      h.dilation > h.output || h.dilation > h.input || h.dilation > kMostDilation ||
      max_of(p.shape.input_pixels(), p.shape.output_pixels()) > kMostPixels / 2) {
    return false;
  }
  const bool is_dilated = h.dilation > 1 || w.dilation > 1;
  const auto is = [&](auto taps, auto step, auto dilated) {
    const bool found = h.kernel == taps && h.stride == step && is_dilated == dilated;
    if (found) run(taps, step, dilated);
    return found;
  };
  if constexpr (sizeof(T) < 8) {
    const std::false_type neighbours;
    return is(three, one, neighbours) || is(three, one, std::true_type()) || is(three, two, neighbours) ||
           is(five, one, neighbours) || is(five, two, neighbours) || is(seven, one, neighbours);
  }
  return false;
}

// Strips of the one phase that there is, or false: then there are others, or other kernels.
template <class T>
bool gather_strips(Direction direction, const ConvProblem& p, const ConvBuffers& b, const Stream& stream) {
  const Window* axis = p.shape.axis;
  const bool forward = direction == Direction::kForward;
  if (!forward && (axis[0].stride > 1 || axis[1].stride > 1)) return false;
  return with_strips<T>(p, [&](auto taps, auto step, auto dilated) {
    for_each_gather<T>(direction, p, b, [&](const ConvGather& g) {
      const Phase* count = g.phase[0].axis;
      const DepthwiseStrips a = {g, {count[0].count, count[1].count, count[2].count, axis[1].dilation}};
      launch(conv_gather_depthwise_strip<T, taps, step, dilated>,
             {ceil_div(g.images * a.strips.in_image, kStripThreads), g.groups}, kStripThreads, 0, stream, a);
    });
  });
}

template <class T>
bool grad_weight_strips(const ConvProblem& p, const ConvGradWeight& g, void* weight, const Stream& stream) {
  return with_strips<T>(p, [&](auto taps, auto step, auto dilated) {
    DepthwiseGradWeightStrips a = {g, {g.output[0], g.output[1], g.output[2], g.dilation[1]}};
    a.g.per_part = ceil_div(g.images * a.strips.in_image, g.parts);
    a.g.parts = int(ceil_div(g.images * a.strips.in_image, a.g.per_part));
    launch(conv_grad_weight_depthwise_strip<T, taps, step, dilated>, {g.groups, g.kernel[0], a.g.parts},
           kStripThreads, kStripThreads / 32 * taps * taps * int(sizeof(Acc<T>)), stream, a);
    reduce_parts<T>(p, a.g, weight, stream);
  });
}

// Whether there is one plane and a window's only row of taps reads it, not the padding.
bool is_plane(const Window& depth) {
  return depth.kernel == 1 && depth.input == 1 && depth.output == 1 && depth.padding == 0;
}

// Whether channels can be read and written in pairs.
template <class T>
bool has_pairs(const ConvProblem& p, const ConvBuffers& b) {
  const auto is_aligned = [](const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % (kSlideChannels * sizeof(T)) == 0;
  };
  return p.layout == Layout::kChannelsLast && p.shape.C % kSlideChannels == 0 && is_aligned(b.input) &&
         is_aligned(b.output);
}

Slides slides_of(const ConvProblem& p, int64_t channels, int64_t rows, int64_t columns) {
  const Window *axis = p.shape.axis, &h = axis[1], &w = axis[2];
  return {p.shape.N,
          channels / kSlideChannels,
          slide_tiles(channels),
          rows,
          columns,
          slide_columns(int(w.kernel)),
          h.dilation,
          w.dilation};
}

// Calls run(taps, step) for a square kernel that slides, in channels last; false if it is none.
template <class T, class Run>
bool with_slides(const ConvProblem& p, const ConvBuffers& b, const Run& run) {
  const Window &d = p.shape.axis[0], &h = p.shape.axis[1], &w = p.shape.axis[2];
  // Where taps lie so far apart that few outputs share an input, a strip is not worth its weights.
  const auto is_far = [](const Window& axis) {
    return axis.dilation > 1 && axis.dilation * 4 > min_of(axis.input, axis.output);
  };
  if (!has_pairs<T>(p, b) || !is_plane(d) || h.kernel != w.kernel || h.stride != w.stride || is_far(h) ||
      is_far(w) || w.dilation * p.shape.C >= int64_t{1} << 31) {
    return false;
  }
  const auto is = [&](auto taps, auto step) {
    const bool found = h.kernel == taps && h.stride == step && (step == 1 || h.dilation * w.dilation == 1);
    if (found) run(taps, step);
    return found;
  };
  if constexpr (sizeof(T) < 8) {
    return is(three, one) || is(three, two) || is(five, one) || is(five, two) || is(seven, one);
  }
  return false;
}

template <class T>
bool gather_slides(Direction direction, const ConvProblem& p, const ConvBuffers& b, const Stream& stream) {
  const Window* axis = p.shape.axis;
  if (direction == Direction::kGradInput && axis[1].stride > 1) return false;
  return with_slides<T>(p, b, [&](auto taps, auto step) {
    for_each_gather<T>(direction, p, b, [&](const ConvGather& g) {
      const Phase* count = g.phase[0].axis;
      const DepthwiseSlides a = {g, slides_of(p, g.groups, count[1].count, count[2].count)};
      launch(conv_gather_depthwise_slide<T, taps, step>,
             {ceil_div(g.images * a.slides.in_image, a.slides.per_block), slide_tiles(g.groups)},
             a.slides.threads(), 0, stream, a);
    });
  });
}

template <class T>
bool grad_weight_slides(const ConvProblem& p, const ConvGradWeight& g, const ConvBuffers& b,
                        const Stream& stream) {
  return with_slides<T>(p, b, [&](auto taps, auto step) {
    DepthwiseGradWeightSlides a = {g, slides_of(p, g.groups, g.output[1], g.output[2]), {}};
    // What no window reads is not multiplied by zeros either: it may be infinite.
    for (int i = 1; i < kAxes; ++i) {
      const int64_t read = (g.output[i] - 1) * g.stride[i] + (taps - 1) * g.dilation[i] - g.padding[i] + 1;
      a.read[i - 1] = int(max_of(0, min_of(p.shape.axis[i].input, read)));
    }
    a.g.per_part = ceil_div(g.images * a.slides.in_image, g.parts);
    a.g.parts = int(ceil_div(g.images * a.slides.in_image, a.g.per_part));
    launch(conv_grad_weight_depthwise_slide<T, taps, step>, {slide_tiles(g.groups), 1, a.g.parts},
           a.slides.threads(), a.slides.threads() * taps * kSlideChannels * int(sizeof(Acc<T>)), stream, a);
    reduce_parts<T>(p, a.g, b.weight, stream);
  });
}

template <class T, int kPack, int kTaps, bool kOdd>
void start_pairs(const ConvProblem& p, const ConvGather& g, const Stream& stream) {
  const Window &h = p.shape.axis[1], &w = p.shape.axis[2];
  const int64_t packs = g.groups / kPack, tiles = kPack == 1 ? packs : slide_tiles(g.groups);
  const DepthwisePairs a = {
      g,
      {g.images, packs, tiles, ceil_div(h.input, 2), ceil_div(w.input, 2), 1, 1, 1},
      {int(h.padding / 2), int(w.padding / 2)},
      w.input % 2 == 0 && reinterpret_cast<uintptr_t>(g.destination) % (2 * sizeof(T)) == 0};
  launch(conv_grad_input_depthwise_pairs<T, kPack, kTaps, kOdd>,
         {ceil_div(g.images * a.slides.in_image, a.slides.per_block), tiles}, a.slides.threads(), 0, stream,
         a);
}

// The gradient for the input with stride 2, or false if others must compute it.
template <class T>
bool grad_input_pairs(const ConvProblem& p, const ConvBuffers& b, const Stream& stream) {
  const Window &d = p.shape.axis[0], &h = p.shape.axis[1], &w = p.shape.axis[2];
  const bool last = p.layout == Layout::kChannelsLast;
  if (!is_plane(d) || h.stride != 2 || w.stride != 2 || h.dilation * w.dilation > 1 || h.kernel != w.kernel ||
      (h.kernel != 3 && h.kernel != 5) || (h.padding - w.padding) % 2 != 0 || (last && !has_pairs<T>(p, b))) {
    return false;
  }
  if constexpr (sizeof(T) < 8) {
    for_each_gather<T>(Direction::kGradInput, p, b, [&](const ConvGather& g) {  // of four phases at most
      const auto start = [&](auto taps, auto odd) {
        if (h.kernel != taps || h.padding % 2 != odd) return;
        last ? start_pairs<T, kSlideChannels, taps, odd>(p, g, stream)
             : start_pairs<T, 1, taps, odd>(p, g, stream);
      };
      start(three, std::false_type());
      start(three, std::true_type());
      start(five, std::false_type());
      start(five, std::true_type());
    });
    return true;
  }
  return false;
}

void gather(Direction direction, const ConvProblem& p, const ConvBuffers& b, const Stream& stream) {
  with_type(p.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    if (gather_slides<T>(direction, p, b, stream)) return;
    if (direction == Direction::kGradInput && grad_input_pairs<T>(p, b, stream)) return;
    if (gather_strips<T>(direction, p, b, stream)) return;
    const bool vectors = p.layout == Layout::kChannelsLast && p.shape.C % kPerVector<T> == 0;
    for_each_gather<T>(direction, p, b, [&](const ConvGather& g) {
      if (vectors && are_aligned(g.source, g.destination)) {
        gather<T, kPerVector<T>, 8, 4>(g, stream);
      } else if (p.layout == Layout::kChannelsLast) {
        gather<T, 1, 8, 1>(g, stream);
      } else {
        gather<T, 1, 1, 1>(g, stream);
      }
    });
  });
}

template <class T, int kPack, int kLanes, int kTile>
void start_grad_weight(const ConvProblem& p, const ConvGradWeight& g, const Stream& stream) {
  const Grid grid = {ceil_div(g.groups, kLanes * kPack), depthwise_tap_tiles(p, kTile), g.parts};
  launch(conv_grad_weight_depthwise<T, kPack, kLanes, kTile, kTile>, grid, kDepthwiseThreads,
         kDepthwiseThreads * kPack * int(sizeof(Acc<T>)), stream, g);
}

// kPack: as many channels as leave room for the sums of a tile in registers.
template <class T, int kLanes, int kMostPack>
void grad_weight(const ConvProblem& p, const ConvGradWeight& g, const Stream& stream) {
  const auto fits = [&](int pack) {
    return pack <= kMostPack && g.groups % pack == 0 && are_aligned(g.grad_output, g.input);
  };
  switch (depthwise_tile(p)) {
    case 3:
      return fits(4) ? start_grad_weight<T, min_of(4, kMostPack), kLanes, 3>(p, g, stream)
                     : start_grad_weight<T, 1, kLanes, 3>(p, g, stream);
    case 5:
      return fits(2) ? start_grad_weight<T, min_of(2, kMostPack), kLanes, 5>(p, g, stream)
                     : start_grad_weight<T, 1, kLanes, 5>(p, g, stream);
    default:
      return start_grad_weight<T, 1, kLanes, 7>(p, g, stream);
  }
}

}  // namespace

void run_conv_depthwise(const ConvProblem& p, const ConvBuffers& b, const Stream& stream, char*) {
  gather(Direction::kForward, p, b, stream);
}
void run_conv_grad_input_depthwise(const ConvProblem& p, const ConvBuffers& b, const Stream& stream, char*) {
  gather(Direction::kGradInput, p, b, stream);
}
void run_conv_grad_weight_depthwise(const ConvProblem& p, const ConvBuffers& b, const Stream& stream,
                                    char* workspace) {
  with_type(p.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    const ConvGradWeight g = grad_weight_arguments(p, b, workspace, depthwise_parts(p));
    if (grad_weight_slides<T>(p, g, b, stream) || grad_weight_strips<T>(p, g, b.weight, stream)) return;
    if (p.layout == Layout::kChannelsLast) {
      grad_weight<T, 32, min_of(4, kPerVector<T>)>(p, g, stream);
    } else {
      grad_weight<T, 1, 1>(p, g, stream);
    }
    reduce_parts<T>(p, g, b.weight, stream);
  });
}

}  // namespace cnnext::cuda
