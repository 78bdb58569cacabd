// The kernels with a lane for each group, and which problems they take.
#pragma once

#include "conv_grad_weight_winograd.h"
#include "conv_group_tiles.h"
#include "conv_grad_weight_lanes.h"
#include "conv_lanes_kernel.h"
#include "entry.h"

namespace cnnext::cpu::CNNEXT_ISA {

inline const char* depthwise_refuses(const ConvProblem& p) {
  if (p.shape.C_per_group() > 1) return "takes one channel in a group";
  if (p.shape.groups < 4) return "takes four groups or more";
  return nullptr;
}
template <bool Gradient>
const char* grouped_refuses(const ConvProblem& p) {
  if (const char* reason = grouped_exclude(p)) return reason;
  const int64_t C = p.shape.C_per_group(), K = p.shape.K_per_group();
  const bool wide = min_of(C, K) > 8 || C == K;
  if (wide && is_for_winograd(p) && !winograd_refuses<Gradient>(p)) return "left to Winograd's algorithm";
  return nullptr;
}

inline const char* grouped_grad_weight_refuses(const ConvProblem& p) {
  if (const char* reason = grouped_exclude(p)) return reason;
  const bool wide = max_of(p.shape.C_per_group(), p.shape.K_per_group()) > 8;
  if (wide && !winograd_grad_weight_refuses(p))
    return "more than 8 channels in a group are left to Winograd's algorithm";
  return nullptr;
}

template <bool Gradient>
constexpr ConvKernel kConvDepthwise =
    entry<ByType<LanesConv, Gradient>>("depthwise", "a lane for each channel", depthwise_refuses);
template <bool Gradient>
constexpr ConvKernel kConvGrouped = entry<ByType<LanesConv, Gradient>>(
    "grouped", "a lane for each of many narrow groups", grouped_refuses<Gradient>);

constexpr ConvKernel kConvGradWeightDepthwise =
    entry<ByType<LanesGradWeight>>("depthwise", "a lane for each channel", depthwise_refuses);
constexpr ConvKernel kConvGradWeightGrouped = entry<ByType<LanesGradWeight>>(
    "grouped", "a lane for each of many narrow groups", grouped_grad_weight_refuses);

}  // namespace cnnext::cpu::CNNEXT_ISA
