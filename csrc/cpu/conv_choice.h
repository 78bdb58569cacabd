// Which kernel computes a convolution, or its gradient with respect to the input: the first of these that
// does not refuse. What a kernel excludes, because it cannot compute it or is not made for it, is told in its
// file; what it leaves to others, because they are faster, is told here.
//
//   depthwise_rows    one channel in a group, 3x3 and 5x5 in channels first, where rows fill vectors; with a
//                     dilation where vectors are of 32 bytes.
//   depthwise         one input channel in a group, four groups or more.
//   group_tiles_bf16  groups of 16 to 32 channels, some of 8, by products of pairs of bfloat16.
//   group_tiles       the same by products of numbers, and narrow groups joined. Leaves 3x3 in float32 to
//                     winograd and bfloat16 to rows_amx where these pay, and channels first to grouped.
//   grouped           many groups of up to 16 channels. Leaves wide ones of 3x3 in float32 to winograd where
//                     that pays.
//   winograd          where its transforms cost less than it saves beside direct sums at their fastest: by
//                     AMX, by pairs of bfloat16, or col2im.
//   rows_amx          bfloat16 and float32 on processors with AMX, where its copies cost less than it saves.
//                     Leaves to col2im what takes fewer products there.
//   thin_bf16, thin   forward only: images of few channels in channels last.
//   rows              few source channels in channels first.
//   col2im            few destination channels, whose products with all taps at once are fewer.
//   gemm_bf16         bfloat16 by products of pairs, where turning it to channels last costs less.
//   gemm              everything. Turns channels first to channels last where that pays (conv_gemm.h).
#pragma once

#include "amx_blocks.h"
#include "conv_col2im.h"
#include "conv_gemm_bf16.h"
#include "conv_group_tiles.h"
#include "conv_lanes.h"
#include "winograd_choice.h"

namespace cnnext::cpu::CNNEXT_ISA {

// Asked before they are defined.
template <bool Gradient>
const char* winograd_refuses(const ConvProblem& p);
template <bool Gradient>
const char* rows_amx_refuses(const ConvProblem& p);
template <bool Gradient>
double direct_time(const ConvProblem& p);

// What groups leave to Winograd's algorithm, where it pays.
inline bool is_float_3x3(const ConvProblem& p) {
  const Window &h = p.shape.axis[1], &w = p.shape.axis[2];
  return p.dtype == DType::kFloat32 && h.kernel == 3 && w.kernel == 3 && h.stride == 1 && w.stride == 1;
}

template <bool Gradient>
const char* group_tiles_refuses(const ConvProblem& p) {
  if (const char* reason = group_tiles_excludes<Gradient>(p)) return reason;
  if (is_float_3x3(p) && !winograd_refuses<Gradient>(p)) return "left to Winograd's algorithm";
  if (p.dtype == DType::kBFloat16 && !rows_amx_refuses<Gradient>(p)) return "left to AMX";
  if (p.layout == Layout::kChannelsFirst && !grouped_excludes(p)) return "channels first are left to lanes";
  return nullptr;
}

template <bool Gradient>
const char* grouped_refuses(const ConvProblem& p) {
  if (const char* reason = grouped_excludes(p)) return reason;
  const int64_t C = p.shape.C_per_group(), K = p.shape.K_per_group();
  const bool wide = min_of(C, K) > 8 || C == K;
  if (wide && is_float_3x3(p) && !winograd_refuses<Gradient>(p)) return "left to Winograd's algorithm";
  return nullptr;
}

constexpr int64_t kFewest = 16, kFewestOfGroup = 8;  // source channels, by Winograd's algorithm

template <bool Gradient>
const char* winograd_refuses(const ConvProblem& p) {
  if (const char* reason = winograd_excludes(p, Gradient)) return reason;
  const Phases phases = winograd_phases(p, Gradient);
  // A short direct sum rounds much less than the transforms do.
  const bool fills = p.shape.groups > 1 && phases.source_channels % kLanes<float> == 0;  // vectors
  if (phases.summed_channels() < (fills ? kFewestOfGroup : kFewest))
    return "takes at least 16 channels to sum over, 8 of groups that fill vectors";
  const double products = double(phases.summed_channels()) * double(ceil_div(phases.channels, kLanes<float>));
  const bool strided = p.shape.axis[1].stride > 1 || p.shape.axis[2].stride > 1;
  const double time = direct_time<Gradient>(p);
  double direct = double(Regions(phases).products()) * products * time;
  // Beside AMX transforms take longer than is counted; in channels first and without a stride so does AMX.
  const bool amx = p.dtype == DType::kFloat32 && has_amx(), channels_last = p.layout == Layout::kChannelsLast;
  if (amx && (strided || (channels_last && time < 1))) direct *= strided ? 0.75 : Gradient ? 0.92 : 0.78;
  // Where taps are neighbours in memory, strided sums take long to pack them, each phase of a gradient all of
  // them; AMX packs them as it multiplies.
  if (strided && phases.weight_tap == 1) {
    const bool by_amx = amx && time < 1;
    direct += (Gradient ? (by_amx ? 300 : 600) : by_amx ? 0 : 150) * products;
  }
  // Transforms read a weight anew, from memory; what direct sums have kept comes as they multiply.
  if (p.keeps_weight) direct -= 22 * double(p.shape.taps()) * products;
  if (!col2im_refuses<Gradient>(p)) {
    const double at_once = Col2ImCost(p, Gradient).at_once;
    direct = at_once < direct ? at_once : direct;
  }
  const char* reason = "its tiles do not have this kernel's shape";
  with_tile<Gradient>(p, [&](auto*, auto tile) {
    const bool pays = conv_cost<decltype(tile)>(phases) < direct;
    reason = pays ? nullptr : "its transforms would cost more than they save";
  });
  return reason;
}

template <bool Gradient>
const char* rows_amx_refuses(const ConvProblem& p) {
  if (const char* reason = amx_excludes(p)) return reason;
  const double time = direct_time<Gradient>(p);
  const Col2ImCost cost(p, Gradient);
  if (!col2im_refuses<Gradient>(p) && cost.at_once < time * cost.direct)
    return "products with all taps at once are fewer";
  return time < 1 ? nullptr : "its copies would cost more than it saves";
}

template <bool Gradient>
const char* col2im_refuses(const ConvProblem& p) {
  if (const char* reason = col2im_excludes(p, Gradient)) return reason;
  const Col2ImCost cost(p, Gradient);
  const bool pairs = !pairs_excludes<Gradient>(p);  // whose products are cheaper
  return (pairs ? 3 : 1.3) * cost.at_once < cost.direct ? nullptr : "direct sums fill vectors as well";
}

#if CNNEXT_VECTOR_BYTES == 64
// Time that AMX takes over that of direct sums by AVX-512, for one image: the choice does not depend on the
// batch, so that an image's result does not either. Counted in products of AVX-512 for a pixel and a channel.
template <class T, bool Gradient>
double amx_time(const ConvProblem& p) {
  constexpr bool kFloat = kParts<T> > 1;
  // Of a chunk; of one that is copied, also where direct sums copy it too; of a sum; of turning both.
  constexpr double kProduct = kFloat ? 16 : 3, kCopy = kFloat ? 800 : 125, kCopyToo = kFloat ? 500 : 125;
  constexpr double kPut = kFloat ? 8 : 10, kTurn = kFloat ? 400 : 200, kPutTurned = 12;
  constexpr double kPack = kFloat ? 24 : 12, kDirectPack = kFloat && Gradient ? 25 : 10, kDirectTurned = 1.1;
  // A packed weight comes from memory, in the time of products that direct sums overlap with it and AMX not.
  constexpr double kFetch = kFloat ? 38 : 12;
  const Phases phases(p, Gradient);
  const bool channels_first = p.layout == Layout::kChannelsFirst;
  double amx = 0, direct = 0;
  for (int64_t n = 0; n < phases.size(); ++n) {
    const Gather g = phases.at(n);
    if (g.depth() == 0 || g.pixels() == 0) continue;
    const AmxPlan<kParts<T>> plan(g, phases.source.pixel * int64_t(sizeof(T)), 1, 1, false);
    const double pixels = double(g.pixels() / g.images), K = double(phases.channels);
    const double positions = plan.in_place ? 0 : double(plan.positions()),
                 block = double(plan.lines * plan.width);
    const bool alike = plan.units() == 1 && !plan.joined_taps;
    // Registers' rows, some of which are gaps between rows of pixels.
    const double rows = alike ? block : double(round_up(plan.line(1, plan.lines, plan.width), kAmxRows));
    double each =
        kProduct * rows / block * double(plan.units() * plan.chunks * round_up(phases.channels, kAmxPairs)) +
        (alike ? kCopyToo : kCopy) * positions / block * double(plan.chunks) + kPut * K;
    if (channels_first) {  // registers of 16 pixels, whose stores are dearer where pixels are apart
      const int64_t row = plan.columns(plan.width).length;
      const double step = double(min_of(g.axis[2].step, 6)),
                   full = double(round_up(row, kAmxRows)) / double(row);
      each += kTurn * full * positions / block * double(plan.chunks) + kPutTurned * step * K;
    }
    amx += pixels * each + (p.keeps_weight ? kFetch : kPack) * double(g.depth()) * K;
    direct += p.keeps_weight ? 0 : kDirectPack * double(g.depth()) * K;
  }
  // Direct sums leave out what is multiplied with the padding, if that is much.
  const int64_t products = Regions(phases).products();
  direct += (channels_first ? kDirectTurned : 1.0) * double(products) * double(phases.source_channels) *
            double(round_up(phases.channels, kLanes<float>));
  return direct > 0 ? amx / direct : 1.0;
}
#endif

// The time of direct sums at their fastest over that of products of float32: by AMX, by pairs of bfloat16 or
// by these.
template <bool Gradient>
double direct_time(const ConvProblem& p) {
  const double pairs = gemm_bf16_refuses<Gradient>(p) ? 1 : 0.5;
#if CNNEXT_VECTOR_BYTES == 64
  if (amx_excludes(p)) return pairs;
  const double amx =
      p.dtype == DType::kFloat32 ? amx_time<float, Gradient>(p) : amx_time<BFloat16, Gradient>(p);
  return amx < pairs ? amx : pairs;
#else
  return pairs;
#endif
}

}  // namespace cnnext::cpu::CNNEXT_ISA
