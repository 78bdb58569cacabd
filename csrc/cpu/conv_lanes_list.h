// The kernels with a lane for each group, and which problems they take.
#pragma once

#include "conv_grad_weight_winograd.h"
#include "conv_group_tiles.h"
#include "conv_lanes_grad_weight.h"
#include "conv_lanes_kernel.h"

namespace cnnext::cpu::CNNEXT_ISA {

template <bool Gradient>
int64_t lanes_workspace(const ConvProblem& p) {
  int64_t bytes = 0;
  with_type(p.dtype, [&](auto* tag) {
    bytes = LanesConv<Pointee<decltype(tag)>>(p, Gradient, {}, nullptr).workspace_bytes();
  });
  return bytes;
}
template <bool Gradient>
void lanes_conv(const ConvProblem& p, const ConvBuffers& b, const Parallel& parallel, char* workspace) {
  with_type(p.dtype,
            [&](auto* tag) { LanesConv<Pointee<decltype(tag)>>(p, Gradient, b, workspace).run(parallel); });
}

inline int64_t lanes_grad_weight_workspace(const ConvProblem& p) {
  int64_t bytes = 0;
  with_type(p.dtype, [&](auto* tag) {
    bytes = LanesGradWeight<Pointee<decltype(tag)>>(p, {}, nullptr).workspace_bytes();
  });
  return bytes;
}
inline void lanes_grad_weight(const ConvProblem& p, const ConvBuffers& b, const Parallel& parallel,
                              char* workspace) {
  with_type(p.dtype,
            [&](auto* tag) { LanesGradWeight<Pointee<decltype(tag)>>(p, b, workspace).run(parallel); });
}

inline const char* depthwise_refuses(const ConvProblem& p) {
  if (p.shape.C_per_group() > 1) return "takes one channel in a group";
  if (p.shape.groups < 4) return "takes four groups or more";
  return nullptr;
}
template <bool Gradient>
const char* grouped_refuses(const ConvProblem& p) {
  const int64_t C = p.shape.C_per_group(), K = p.shape.K_per_group();
  const bool wide = min_of(C, K) > 8 || C == K;
  if (wide && is_for_winograd(p) && !winograd_refuses<Gradient>(p)) return "left to Winograd's algorithm";
  return grouped_exclude(p);
}

inline const char* grouped_grad_weight_refuses(const ConvProblem& p) {
  const bool wide = max_of(p.shape.C_per_group(), p.shape.K_per_group()) > 8;
  if (wide && !winograd_grad_weight_refuses(p))
    return "more than 8 channels in a group are left to Winograd's algorithm";
  return grouped_exclude(p);
}

constexpr ConvKernel kConvDepthwise = {"depthwise", "a lane for each channel", depthwise_refuses,
                                       lanes_workspace<false>, lanes_conv<false>};
constexpr ConvKernel kConvGradInputDepthwise = {"depthwise", "a lane for each channel", depthwise_refuses,
                                                lanes_workspace<true>, lanes_conv<true>};
constexpr ConvKernel kConvGrouped = {"grouped", "a lane for each of many narrow groups",
                                     grouped_refuses<false>, lanes_workspace<false>, lanes_conv<false>};
constexpr ConvKernel kConvGradInputGrouped = {"grouped", "a lane for each of many narrow groups",
                                              grouped_refuses<true>, lanes_workspace<true>, lanes_conv<true>};

constexpr ConvKernel kConvGradWeightDepthwise = {"depthwise", "a lane for each channel", depthwise_refuses,
                                                 lanes_grad_weight_workspace, lanes_grad_weight};
constexpr ConvKernel kConvGradWeightGrouped = {"grouped", "a lane for each of many narrow groups",
                                               grouped_grad_weight_refuses, lanes_grad_weight_workspace,
                                               lanes_grad_weight};

}  // namespace cnnext::cpu::CNNEXT_ISA
