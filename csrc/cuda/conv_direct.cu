#include "conv_direct.cuh"
#include "kernels.h"

namespace cnnext::cuda {
namespace {

// A tile of few channels where a group has no more of them.
template <class Run>
void with_tile(int64_t channels, Run&& run) {
  if (channels > 16) {
    run(std::integral_constant<int, 64>());
  } else {
    run(std::integral_constant<int, 16>());
  }
}

void gather(Direction direction, const ConvProblem& p, const ConvBuffers& b, const Stream& stream) {
  with_type(p.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    for_each_phases(direction, p, b, [&](const ConvGather& all) {
      with_tile(all.destination_channels, [&](auto width) {
        constexpr int kM = sizeof(T) == 8 ? 64 : 128, kN = decltype(width)::value;  // what registers hold
        const int64_t tiles = ceil_div(all.destination_channels, kN);
        for_each_groups<T>(all, tiles, [&](const ConvGather& g) {
          launch(conv_gather_direct<T, kM, kN>, {ceil_div(most_rows(g), kM), tiles * g.groups, g.phases},
                 kDirectThreads, DirectTile<T, kM, kN>::kBytes, stream, g);
        });
      });
    });
  });
}

}  // namespace

void run_conv_direct(const ConvProblem& p, const ConvBuffers& b, const Stream& stream, char*) {
  gather(Direction::kForward, p, b, stream);
}
void run_conv_grad_input_direct(const ConvProblem& p, const ConvBuffers& b, const Stream& stream, char*) {
  gather(Direction::kGradInput, p, b, stream);
}
void run_conv_grad_weight_direct(const ConvProblem& p, const ConvBuffers& b, const Stream& stream,
                                 char* workspace) {
  with_type(p.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    const ConvGradWeight all = grad_weight_arguments(p, b, workspace, direct_parts(p));
    with_tile(all.C, [&](auto width) {
      constexpr int kM = 64, kN = decltype(width)::value;
      const int64_t tiles = ceil_div(all.K, kM), most = groups_at_once(tiles);
      ConvGradWeight g = all;
      for (int64_t first = 0; first < all.groups; first += most) {
        g.groups = int(min_of(most, all.groups - first));
        g.grad_output = static_cast<const T*>(all.grad_output) + first * g.output_group;
        g.input = static_cast<const T*>(all.input) + first * g.input_group;
        launch(conv_grad_weight_direct<T, kM, kN>, {g.taps * ceil_div(g.C, kN), tiles * g.groups, g.parts},
               kDirectThreads, DirectTile<T, kM, kN>::kBytes, stream, g);
        reduce_parts<T>(p, g, static_cast<T*>(b.weight) + first * g.K * g.taps * g.C, stream);
      }
    });
  });
}

}  // namespace cnnext::cuda
