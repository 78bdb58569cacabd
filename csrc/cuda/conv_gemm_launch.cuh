// Launchers of conv_gemm_sm80.cuh, for one element type: the choice of tiles, transposes, folding.
#pragma once

#include "conv_gemm_sm80.cuh"
#include "kernels.h"
#include "reduce.cuh"
#include "transpose.cuh"

namespace cnnext::cuda {

// The next part of the workspace holds the matrices' transposes.
template <class T>
void* transposed(const void* from, int64_t matrices, int64_t rows, int64_t columns, int64_t bytes,
                 char** workspace, const Stream& stream) {
  char* to = *workspace;
  *workspace += bytes;
  start_transpose<T>(from, to, matrices, rows, columns, stream);
  return to;
}

template <class T, int kM, int kN, bool kAcrossB, bool kAccurate, bool kAligned>
void start(const GemmGather& a, const Stream& stream) {
  using Product = Tile<T, kM, kN, false, kAcrossB, kAccurate>;
  const Grid grid = {ceil_div(most_rows(a.g), kM) * ceil_div(a.g.destination_channels, kN), a.g.groups,
                     a.g.phases};
  launch(conv_gather_gemm_sm80<T, kM, kN, kAcrossB, kAccurate, kAligned>, grid, kTileThreads, Product::kBytes,
         stream, a);
}

// The largest tile that still makes a block for most multiprocessors of a large GPU.
template <class T, bool kAcrossB, bool kAccurate, bool kAligned>
void gather(const GemmGather& a, const Stream& stream) {
  const ConvGather& g = a.g;
  const auto fills = [&](int m, int n) {
    const int64_t tiles = ceil_div(most_rows(g), m) * ceil_div(g.destination_channels, n);
    return tiles * g.groups * g.phases >= blocks_wanted / 2;
  };
  if constexpr (!kAccurate && kAligned) {  // else registers do not hold enough, or copies are the bound
    if (g.destination_channels > 64 && fills(128, 128)) {
      return start<T, 128, 128, kAcrossB, kAccurate, kAligned>(a, stream);
    }
  }
  if (fills(128, 64)) return start<T, 128, 64, kAcrossB, kAccurate, kAligned>(a, stream);
  start<T, 64, 64, kAcrossB, kAccurate, kAligned>(a, stream);
}
template <class T, bool kAcrossB, bool kAccurate>
void gather(const GemmGather& a, const Stream& stream) {
  if (a.is_aligned()) {
    gather<T, kAcrossB, kAccurate, true>(a, stream);
  } else {
    gather<T, kAcrossB, kAccurate, false>(a, stream);
  }
}

// Sums the last axis' taps as channels.
inline void fold(ConvGather& g, int* folded_row) {
  Phase& w = g.phase[0].axis[2];
  *folded_row = w.source * g.source_channels;
  g.source_channels *= w.taps;
  g.weight_tap *= w.taps;
  g.kernel[2] = w.taps = 1;
}

template <class T, bool kAccurate>
void run_gather(Direction direction, ConvProblem p, ConvBuffers b, const Stream& stream, char* workspace) {
  const ConvShape s = p.shape;
  const bool forward = direction == Direction::kForward;
  const int64_t channels = forward ? s.C : s.K, pixels = forward ? s.input_pixels() : s.output_pixels();
  void*& source = forward ? b.input : b.output;
  if (transposes_images(p)) {
    const int64_t bytes = forward ? input_bytes(p) : output_bytes(p);
    source = transposed<T>(source, s.N, channels, pixels, bytes, &workspace, stream);
  }
  if (transposes_weight(p)) {
    b.weight = transposed<T>(b.weight, s.K, s.C_per_group(), s.taps(), 0, &workspace, stream);
  }
  p.weight_layout = Layout::kChannelsLast;
  for_each_phases(direction, p, b, [&](const ConvGather& g) {
    GemmGather a = {g, false, false, false, 0};
    a.g.source_strides = strides_of(Layout::kChannelsLast, channels, pixels);
    a.source_aligned = g.source_channels % kChunk<T> == 0 && are_aligned(g.source);
    a.weight_aligned = s.C_per_group() % kChunk<T> == 0 && are_aligned(g.weight);
    a.destination_aligned = g.destination_channels % kChunk<T> == 0 && are_aligned(g.destination);
    if (forward && folds(p)) {
      fold(a.g, &a.folded_row);
      a.source_aligned = false;
      a.weight_aligned = a.g.source_channels % kChunk<T> == 0 && are_aligned(g.weight);
    }
    if (forward) {
      gather<T, false, kAccurate>(a, stream);
    } else {
      gather<T, true, kAccurate>(a, stream);
    }
  });
}

template <class T, bool kAccurate>
void run_grad_weight(const ConvProblem& p, ConvBuffers b, const Stream& stream, char* workspace) {
  const ConvShape& s = p.shape;
  ConvProblem last = p;
  if (transposes_images(p)) {
    b.input = transposed<T>(b.input, s.N, s.C, s.input_pixels(), input_bytes(p), &workspace, stream);
    b.output = transposed<T>(b.output, s.N, s.K, s.output_pixels(), output_bytes(p), &workspace, stream);
    last.layout = Layout::kChannelsLast;
  }
  const ConvGradWeight g = grad_weight_arguments(last, b, workspace, gemm_grad_weight_parts(p, kAccurate));
  GemmGradWeight a = {g, false, false, 0};
  a.output_aligned = g.K % kChunk<T> == 0 && are_aligned(g.grad_output);
  a.input_aligned = g.C % kChunk<T> == 0 && are_aligned(g.input);
  if (folds(p)) {  // the partial sums stay where they are: [K][taps][C]
    a.folded_row = g.input_extent[2] * g.C;
    a.input_aligned = false;
    a.g.C *= g.kernel[2];
    a.g.taps /= g.kernel[2];
    a.g.kernel[2] = 1;
  }
  const auto start = [&](auto side, auto aligned) {
    constexpr int kSide = decltype(side)::value;
    const Grid grid = {a.g.taps * ceil_div(a.g.C, kSide), ceil_div(a.g.K, kSide) * a.g.groups, a.g.parts};
    launch(conv_grad_weight_gemm_sm80<T, kSide, kAccurate, aligned>, grid, kTileThreads,
           Tile<T, kSide, kSide, true, true, kAccurate>::kBytes, stream, a);
  };
  const auto start_side = [&](auto side) {
    if (a.is_aligned()) {
      start(side, std::true_type());
    } else {
      start(side, std::false_type());
    }
  };
  if constexpr (!kAccurate) {
    if (gemm_grad_weight_side(p, kAccurate) == 128) start_side(std::integral_constant<int, 128>());
  }
  if (gemm_grad_weight_side(p, kAccurate) == 64) start_side(std::integral_constant<int, 64>());
  reduce_parts<T>(p, g, b.weight, stream);
}

}  // namespace cnnext::cuda
