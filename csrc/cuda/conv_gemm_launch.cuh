// Launchers of conv_gemm.cuh, for one element type: packing, the choice of tiles.
#pragma once

#include <utility>

#include "conv_gemm.cuh"
#include "kernels.h"
#include "pack.cuh"
#include "plan.h"
#include "reduce.cuh"

namespace cnnext::cuda {

// Where a matrix product reads an operand: where it is, or packed into the next `bytes` of the workspace.
template <class T>
void* packed(void* from, int64_t bytes, const Strides& strides, int64_t images, int64_t pixels,
             int64_t groups, int64_t channels, char** workspace, const Stream& stream) {
  if (bytes == 0) return from;
  char* to = *workspace;
  *workspace += bytes;
  start_pack<T>(from, strides, images, pixels, groups, channels, to, stream);
  return to;
}
template <class T>
void* packed_input(const ConvProblem& p, void* from, char** workspace, const Stream& stream) {
  const ConvShape& s = p.shape;
  const int64_t pixels = s.input_pixels();
  return packed<T>(from, packed_input_bytes(p), strides_of(p.layout, s.C, pixels), s.N, pixels, s.groups,
                   s.C_per_group(), workspace, stream);
}
template <class T>
void* packed_output(const ConvProblem& p, void* from, char** workspace, const Stream& stream) {
  const ConvShape& s = p.shape;
  const int64_t pixels = s.output_pixels();
  return packed<T>(from, packed_output_bytes(p), strides_of(p.layout, s.K, pixels), s.N, pixels, s.groups,
                   s.K_per_group(), workspace, stream);
}
template <class T>
void* packed_weight(const ConvProblem& p, void* from, char** workspace, const Stream& stream) {
  const ConvShape& s = p.shape;
  const WeightStrides w = weight_strides_of(p.weight_layout, s.C_per_group(), s.taps());
  return packed<T>(from, packed_weight_bytes(p), {w.k, w.c, w.tap}, s.K, s.taps(), 1, s.C_per_group(),
                   workspace, stream);
}
// For products that take B along the summed index alone and rounded: moves *weight, of one group, to the
// workspace; returns its strides there.
template <class T>
WeightStrides round_weight(Direction direction, const ConvProblem& p, void** weight, char* workspace,
                           const Stream& stream) {
  const ConvShape& s = p.shape;
  const WeightStrides w = weight_strides_of(p.weight_layout, s.C, s.taps());
  const void* from = std::exchange(*weight, workspace);
  if (direction == Direction::kForward) {
    start_pack<T, true>(from, {w.k, w.c, w.tap}, s.K, s.taps(), 1, s.C, workspace, stream);
    return weight_strides_of(Layout::kChannelsLast, padded_channels(p, s.C), s.taps());
  }
  const int64_t along = padded_channels(p, s.K);
  const TurnPlan<T> plan = {static_cast<const T*>(from), reinterpret_cast<T*>(workspace), int(s.K),
                            int(along), int(s.C * s.taps())};
  start_turn(plan, stream);
  return {1, w.c * along, w.tap * along};
}

// The matrix products of an architecture. kRoundsWeight: those of a gather take the weight along the summed
// index alone, and rounded.
template <bool kAccurate_>
struct Sm80 {
  static constexpr bool kAccurate = kAccurate_, kRoundsWeight = false;
  template <class T, int kM, int kN, bool kAcrossA, bool kAcrossB>
  using Tile = TileSm80<T, kM, kN, kAcrossA, kAcrossB, kAccurate>;
};
struct Sm90 {
  static constexpr bool kAccurate = false, kRoundsWeight = false;
  template <class T, int kM, int kN, bool kAcrossA, bool kAcrossB>
  using Tile = TileSm90<T, kM, kN, kAcrossA, kAcrossB>;
};
struct Tf32Sm90 {
  static constexpr bool kAccurate = false, kRoundsWeight = true;
  template <class T, int kM, int kN, bool kAcrossA, bool kAcrossB>
  using Tile = TileTf32Sm90<kM, kN, kAcrossA>;
};

template <class T, class Gpu, int kM, int kN, bool kForward>
void start(const GemmGather& a, const Stream& stream) {
  constexpr bool kAcrossB = !kForward && !Gpu::kRoundsWeight;
  using Product = typename Gpu::template Tile<T, kM, kN, false, kAcrossB>;
  const Grid grid = {ceil_div(most_rows(a.g), kM) * ceil_div(a.g.destination_channels, kN), a.g.groups,
                     a.g.phases};
  launch(conv_gather_gemm<T, Product, !kForward>, grid, Product::kThreads, Product::kBytes, stream, a);
}

// The largest tile that still makes a block for most multiprocessors of a large GPU.
template <class T, class Gpu, bool kForward>
void gather(const GemmGather& a, const Stream& stream) {
  const ConvGather& g = a.g;
  const auto fills = [&](int m, int n) {
    const int64_t tiles = ceil_div(most_rows(g), m) * ceil_div(g.destination_channels, n);
    return tiles * g.groups * g.phases >= blocks_wanted / 2;
  };
  if constexpr (!Gpu::kAccurate) {  // else registers do not hold enough
    if (g.destination_channels > 64 && fills(128, 128)) return start<T, Gpu, 128, 128, kForward>(a, stream);
  }
  if (fills(128, 64)) return start<T, Gpu, 128, 64, kForward>(a, stream);
  start<T, Gpu, 64, 64, kForward>(a, stream);
}

template <class T, class Gpu>
void run_gather(Direction direction, const ConvProblem& p, ConvBuffers b, const Stream& stream,
                char* workspace) {
  const ConvShape& s = p.shape;
  const bool forward = direction == Direction::kForward;
  if (forward) {
    b.input = packed_input<T>(p, b.input, &workspace, stream);
  } else {
    b.output = packed_output<T>(p, b.output, &workspace, stream);
  }
  WeightStrides weight;
  if constexpr (Gpu::kRoundsWeight) {
    weight = round_weight<T>(direction, p, &b.weight, workspace, stream);
  } else {
    b.weight = packed_weight<T>(p, b.weight, &workspace, stream);
    weight = weight_strides_of(Layout::kChannelsLast, padded_channels(p, s.C_per_group()), s.taps());
  }
  for_each_phases(direction, p, b, [&](const ConvGather& g) {
    GemmGather a = {g, false, reads_in_order(g), writes_in_order(g)};
    a.g.source_group = padded_channels(p, g.source_channels);
    a.g.source_strides = strides_of(Layout::kChannelsLast, g.groups * a.g.source_group,
                                    forward ? s.input_pixels() : s.output_pixels());
    a.g.weight_group = s.K_per_group() * weight.k;
    a.g.weight_destination = forward ? weight.k : weight.c;
    a.g.weight_source = forward ? weight.c : weight.k;
    a.g.weight_tap = weight.tap;
    a.destination_aligned = g.destination_channels % kChunk<T> == 0 && are_aligned(g.destination);
    if (forward) {
      gather<T, Gpu, true>(a, stream);
    } else {
      gather<T, Gpu, false>(a, stream);
    }
  });
}

template <class T, class Gpu>
void run_grad_weight(const ConvProblem& p, ConvBuffers b, const Stream& stream, char* workspace) {
  const ConvShape& s = p.shape;
  b.input = packed_input<T>(p, b.input, &workspace, stream);
  b.output = packed_output<T>(p, b.output, &workspace, stream);
  GemmGradWeight a = {grad_weight_arguments(p, b, workspace, gemm_grad_weight_parts(p, Gpu::kAccurate)),
                      Divisor(padded_channels(p, s.C_per_group()))};
  a.g.output_group = padded_channels(p, s.K_per_group());
  a.g.input_group = padded_channels(p, s.C_per_group());
  a.g.output_strides = strides_of(Layout::kChannelsLast, s.groups * a.g.output_group, s.output_pixels());
  a.g.input_strides = strides_of(Layout::kChannelsLast, s.groups * a.g.input_group, s.input_pixels());
  const auto start = [&](auto side) {
    constexpr int kSide = decltype(side)::value;
    using Product = typename Gpu::template Tile<T, kSide, kSide, true, true>;
    const Grid grid = {ceil_div(gemm_grad_weight_columns(p), kSide), ceil_div(a.g.K, kSide) * a.g.groups,
                       a.g.parts};
    launch(conv_grad_weight_gemm<T, Product>, grid, Product::kThreads, Product::kBytes + kPixelBytes<Product>,
           stream, a);
  };
  const int side = gemm_grad_weight_side(p, Gpu::kAccurate);
  if constexpr (!Gpu::kAccurate) {
    if (side == 128) start(std::integral_constant<int, 128>());
  }
  if (side == 64) start(std::integral_constant<int, 64>());
  reduce_parts<T>(p, a.g, b.weight, stream);
}

// Call run with a tag of the element type, as with_type does, for the types of one kind of products.
template <class Run>
void with_half(DType dtype, const Run& run) {
  if (dtype == DType::kFloat16) return run(static_cast<Float16*>(nullptr));
  run(static_cast<BFloat16*>(nullptr));
}
template <class Run>
void with_float(DType, const Run& run) {
  run(static_cast<float*>(nullptr));
}

// Defines run_conv_gemm_<suffix> and the launchers of both gradients, by the products of Gpu.
#define CNNEXT_GEMM_KERNELS(suffix, Gpu, with_element)                                                       \
  void run_conv_gemm_##suffix(const ConvProblem& p, const ConvBuffers& b, const Stream& stream,              \
                              char* workspace) {                                                             \
    with_element(p.dtype, [&](auto* tag) {                                                                   \
      run_gather<Pointee<decltype(tag)>, Gpu>(Direction::kForward, p, b, stream, workspace);                 \
    });                                                                                                      \
  }                                                                                                          \
  void run_conv_grad_input_gemm_##suffix(const ConvProblem& p, const ConvBuffers& b, const Stream& stream,   \
                                         char* workspace) {                                                  \
    with_element(p.dtype, [&](auto* tag) {                                                                   \
      run_gather<Pointee<decltype(tag)>, Gpu>(Direction::kGradInput, p, b, stream, workspace);               \
    });                                                                                                      \
  }                                                                                                          \
  void run_conv_grad_weight_gemm_##suffix(const ConvProblem& p, const ConvBuffers& b, const Stream& stream,  \
                                          char* workspace) {                                                 \
    with_element(p.dtype,                                                                                    \
                 [&](auto* tag) { run_grad_weight<Pointee<decltype(tag)>, Gpu>(p, b, stream, workspace); }); \
  }

}  // namespace cnnext::cuda
