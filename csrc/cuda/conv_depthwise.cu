#include "conv_depthwise.cuh"
#include "kernels.h"
#include "reduce.cuh"

namespace cnnext::cuda {
namespace {

template <class T, int kPack, int kLanes, int kStrip, int kTaps, int kStep>
void start(const DepthwiseGather& a, const Stream& stream) {
  int64_t most = 0;
  for (int i = 0; i < a.g.phases; ++i) most = max_of(most, a.strips[i]);
  const Grid grid = {ceil_div(a.g.images * most, kDepthwiseThreads / kLanes),
                     ceil_div(a.g.groups, kLanes * kPack), a.g.phases};
  const int shared = a.g.kernel[2] * kLanes * kPack * int(sizeof(Acc<T>));
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

void gather(Direction direction, const ConvProblem& p, const ConvBuffers& b, const Stream& stream) {
  with_type(p.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    const bool vectors = p.layout == Layout::kChannelsLast && p.shape.C % kPerVector<T> == 0;
    for_each_phases(direction, p, b, [&](const ConvGather& g) {
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
    if (p.layout == Layout::kChannelsLast) {
      grad_weight<T, 32, min_of(4, kPerVector<T>)>(p, g, stream);
    } else {
      grad_weight<T, 1, 1>(p, g, stream);
    }
    reduce_parts<T>(p, g, b.weight, stream);
  });
}

}  // namespace cnnext::cuda
