// Launchers of conv_gemm.cuh, for one element type: packing, the choice of tiles.
#pragma once

#include "conv_gemm.cuh"
#include "kernels.h"
#include "pack.cuh"
#include "plan.h"
#include "reduce.cuh"

namespace cnnext::cuda {

// An operand as a matrix product reads it, packed into the next part of the workspace if need be.
struct Operand {
  void* data;
  int64_t group, pixel, image;  // strides, in elements
};
template <class T>
Operand operand(const ConvProblem& p, void* data, Layout layout, int64_t images, int64_t groups,
                int64_t channels, int64_t pixels, int64_t packed_bytes, char** workspace,
                const Stream& stream) {
  if (packed_bytes > 0) {
    const int64_t padded = whole_chunks(p, channels);
    start_pack<T>(data, *workspace, layout, images, groups, channels, padded, pixels, stream);
    data = *workspace;
    *workspace += packed_bytes;
    channels = padded;
  }
  return {data, channels, groups * channels, groups * channels * pixels};
}
template <class T>
Operand input_operand(const ConvProblem& p, const ConvBuffers& b, char** workspace, const Stream& stream) {
  const ConvShape& s = p.shape;
  return operand<T>(p, b.input, p.layout, s.N, s.groups, s.C_per_group(), s.input_pixels(),
                    input_workspace(p), workspace, stream);
}
template <class T>
Operand output_operand(const ConvProblem& p, const ConvBuffers& b, char** workspace, const Stream& stream) {
  const ConvShape& s = p.shape;
  return operand<T>(p, b.output, p.layout, s.N, s.groups, s.K_per_group(), s.output_pixels(),
                    output_workspace(p), workspace, stream);
}
template <class T>
Operand weight_operand(const ConvProblem& p, const ConvBuffers& b, char** workspace, const Stream& stream) {
  const ConvShape& s = p.shape;
  return operand<T>(p, b.weight, p.weight_layout, s.K, 1, s.C_per_group(), s.taps(), weight_workspace(p),
                    workspace, stream);
}

// The matrix products of an architecture.
template <bool kAccurate_>
struct Sm80 {
  static constexpr bool kAccurate = kAccurate_;
  template <class T, int kM, int kN, bool kAcrossA, bool kAcrossB>
  using Tile = TileSm80<T, kM, kN, kAcrossA, kAcrossB, kAccurate>;
};
struct Sm90 {
  static constexpr bool kAccurate = false;
  template <class T, int kM, int kN, bool kAcrossA, bool kAcrossB>
  using Tile = TileSm90<T, kM, kN, kAcrossA, kAcrossB>;
};

template <class T, class Gpu, int kM, int kN, bool kAcrossB>
void start(const GemmGather& a, const Stream& stream) {
  using Product = typename Gpu::template Tile<T, kM, kN, false, kAcrossB>;
  const Grid grid = {ceil_div(most_rows(a.g), kM) * ceil_div(a.g.destination_channels, kN), a.g.groups,
                     a.g.phases};
  launch(conv_gather_gemm<T, Product, kAcrossB>, grid, Product::kThreads, Product::kBytes, stream, a);
}

// The largest tile that still makes a block for most multiprocessors of a large GPU.
template <class T, class Gpu, bool kAcrossB>
void gather(const GemmGather& a, const Stream& stream) {
  const ConvGather& g = a.g;
  const auto fills = [&](int m, int n) {
    const int64_t tiles = ceil_div(most_rows(g), m) * ceil_div(g.destination_channels, n);
    return tiles * g.groups * g.phases >= blocks_wanted / 2;
  };
  if constexpr (!Gpu::kAccurate) {  // else registers do not hold enough
    if (g.destination_channels > 64 && fills(128, 128)) return start<T, Gpu, 128, 128, kAcrossB>(a, stream);
  }
  if (fills(128, 64)) return start<T, Gpu, 128, 64, kAcrossB>(a, stream);
  start<T, Gpu, 64, 64, kAcrossB>(a, stream);
}

template <class T, class Gpu>
void run_gather(Direction direction, const ConvProblem& p, const ConvBuffers& b, const Stream& stream,
                char* workspace) {
  const bool forward = direction == Direction::kForward;
  const Operand source =
      forward ? input_operand<T>(p, b, &workspace, stream) : output_operand<T>(p, b, &workspace, stream);
  const Operand weight = weight_operand<T>(p, b, &workspace, stream);
  for_each_phases(direction, p, b, [&](const ConvGather& g) {
    GemmGather a = {g, g.destination_channels % kChunk<T> == 0 && are_aligned(g.destination)};
    a.g.source = source.data;
    a.g.source_strides = {source.image, 1, source.pixel};
    a.g.source_group = source.group;
    a.g.weight = weight.data;
    a.g.weight_group = p.shape.K_per_group() * weight.image;
    a.g.weight_destination = forward ? weight.image : 1;
    a.g.weight_source = forward ? 1 : weight.image;
    a.g.weight_tap = weight.pixel;
    if (forward) {
      gather<T, Gpu, false>(a, stream);
    } else {
      gather<T, Gpu, true>(a, stream);
    }
  });
}

template <class T, class Gpu>
void run_grad_weight(const ConvProblem& p, const ConvBuffers& b, const Stream& stream, char* workspace) {
  const Operand input = input_operand<T>(p, b, &workspace, stream);
  const Operand output = output_operand<T>(p, b, &workspace, stream);
  ConvGradWeight g = grad_weight_arguments(p, b, workspace, gemm_grad_weight_parts(p, Gpu::kAccurate));
  g.input = input.data, g.grad_output = output.data;
  g.input_strides = {input.image, 1, input.pixel}, g.output_strides = {output.image, 1, output.pixel};
  g.input_group = input.group, g.output_group = output.group;
  const auto start = [&](auto side) {
    constexpr int kSide = decltype(side)::value;
    using Product = typename Gpu::template Tile<T, kSide, kSide, true, true>;
    const Grid grid = {g.taps * ceil_div(g.C, kSide), ceil_div(g.K, kSide) * g.groups, g.parts};
    launch(conv_grad_weight_gemm<T, Product>, grid, Product::kThreads,
           Product::kBytes + kPlacesBytes<Product>, stream, g);
  };
  if constexpr (!Gpu::kAccurate) {
    if (gemm_grad_weight_side(p, Gpu::kAccurate) == 128) start(std::integral_constant<int, 128>());
  }
  if (gemm_grad_weight_side(p, Gpu::kAccurate) == 64) start(std::integral_constant<int, 64>());
  reduce_parts<T>(p, g, b.weight, stream);
}

}  // namespace cnnext::cuda
