// Which kernel computes the gradient of a convolution with respect to the weight: the first of these that
// does not refuse, as in conv_choice.h.
//
//   depthwise         one input channel in a group, four groups or more.
//   group_tiles_bf16  groups of 16 to 32 channels, by products of pairs of pixels in bfloat16.
//   group_tiles       the same by products of numbers, and narrow groups joined. Leaves 3x3 in float32 to
//                     winograd where that pays.
//   grouped           many groups of up to 16 channels. Leaves more than 8 to winograd where that pays.
//   few_pixels        up to 8 pixels in channels last.
//   gemm_amx          bfloat16 and float32 on processors with AMX. Leaves float32 without a stride to
//                     winograd where that pays; refuses little work and, in float32, much padding.
//   winograd          where its transforms cost less than it saves beside direct sums, of pairs if there
//                     are.
//   rows              few output channels, or few taps and input channels, in channels first.
//   gemm_bf16         bfloat16 by products of pairs of pixels, where turning to channels last costs less.
//   thin              few input channels in channels last.
//   gemm              everything. Turns channels first to channels last where that pays.
#pragma once

#include "amx_tile.h"
#include "conv_choice.h"
#include "conv_grad_weight_group_tiles.h"
#include "conv_grad_weight_winograd.h"

namespace cnnext::cpu::CNNEXT_ISA {

inline const char* winograd_grad_weight_refuses(const ConvProblem& p);  // asked before it is defined

inline const char* group_tiles_grad_weight_refuses(const ConvProblem& p) {
  if (const char* reason = group_tiles_grad_weight_excludes(p)) return reason;
  if (is_float_3x3(p) && !winograd_grad_weight_refuses(p)) return "left to Winograd's algorithm";
  return nullptr;
}

inline const char* grouped_grad_weight_refuses(const ConvProblem& p) {
  if (const char* reason = grouped_excludes(p)) return reason;
  const bool wide = max_of(p.shape.C_per_group(), p.shape.K_per_group()) > 8;
  if (wide && !winograd_grad_weight_refuses(p))
    return "more than 8 channels in a group are left to Winograd's algorithm";
  return nullptr;
}

inline const char* gemm_amx_refuses_floats(const ConvProblem& p) {
  constexpr int64_t kFewest = 48, kFewestPixels = 128, kFewestChannels = 16;
  const ConvShape& s = p.shape;
  const bool channels_first = p.layout == Layout::kChannelsFirst;
  if (s.K_per_group() < kFewest || s.C_per_group() * s.taps() < kFewest)
    return "takes at least 48 rows and columns of float32";
  if (channels_first && s.C_per_group() < kFewestChannels) return "takes at least 16 planes of float32";
  if ((!channels_first || s.taps() > 1) && s.N * s.output_pixels() < kFewestPixels)
    return "sums at least 128 pixels of float32";
  const bool strided = s.axis[1].stride > 1 || s.axis[2].stride > 1;
  if (!strided && !winograd_grad_weight_refuses(p)) return "Winograd's algorithm takes fewer products";
  return leaves_out_padding(p) ? "most products would be with the padding" : nullptr;
}
// Each tap's copy of the input costs the same for any number of rows; short rows of planes cost more.
inline const char* gemm_amx_refuses_pairs(const ConvProblem& p) {
  const ConvShape& s = p.shape;
  const bool channels_first = p.layout == Layout::kChannelsFirst;
  const int64_t few = !channels_first ? 12 : s.taps() == 1 ? 0 : 16 + 512 / max_of(s.axis[2].output, 1);
  return s.K_per_group() < few ? "copies would cost more than few output channels save" : nullptr;
}
inline const char* gemm_amx_grad_weight_refuses(const ConvProblem& p) {
  if (const char* reason = amx_excludes(p)) return reason;
  return p.dtype == DType::kFloat32 ? gemm_amx_refuses_floats(p) : gemm_amx_refuses_pairs(p);
}

inline const char* winograd_grad_weight_refuses(const ConvProblem& p) {
  if (const char* reason = winograd_excludes(p, false)) return reason;
  const Phases phases(p, false);
  const double products = double(phases.source_channels) * double(phases.channels) / double(kLanes<float>);
  const double rate = gemm_bf16_grad_weight_refuses(p) ? 1 : 1.8;  // of the direct sum's products
  const double direct = double(Regions(phases).products() * p.shape.N) * products / rate;
  const char* reason = "its tiles do not have this kernel's shape";
  with_grad_weight_tile(p, [&](auto*, auto tile) {
    const bool pays = grad_weight_cost<decltype(tile)>(phases) < direct;
    reason = pays ? nullptr : "its transforms would cost more than they save";
  });
  return reason;
}

}  // namespace cnnext::cpu::CNNEXT_ISA
