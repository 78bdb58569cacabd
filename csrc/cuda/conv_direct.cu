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
    for_each_phases(direction, p, b, [&](const ConvGather& g) {
      with_tile(g.destination_channels, [&](auto width) {
        constexpr int kM = sizeof(T) == 8 ? 64 : 128, kN = decltype(width)::value;  // what registers hold
        const int64_t tiles = ceil_div(g.destination_channels, kN) * g.groups;
        launch(conv_gather_direct<T, kM, kN>, {ceil_div(most_rows(g), kM), tiles, g.phases}, kDirectThreads,
               DirectTile<T, kM, kN>::kBytes, stream, g);
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
    const ConvGradWeight g = grad_weight_arguments(p, b, workspace, direct_parts(p));
    with_tile(g.C, [&](auto width) {
      constexpr int kM = 64, kN = decltype(width)::value;
      const Grid grid = {g.taps * ceil_div(g.C, kN), ceil_div(g.K, kM) * g.groups, g.parts};
      launch(conv_grad_weight_direct<T, kM, kN>, grid, kDirectThreads, DirectTile<T, kM, kN>::kBytes, stream,
             g);
    });
    reduce_parts<T>(p, g, b.weight, stream);
  });
}

}  // namespace cnnext::cuda
