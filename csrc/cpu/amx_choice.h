// Whether AMX pays for a problem.
#pragma once

#include "amx_blocks.h"
#include "conv_col2im.h"

namespace cnnext::cpu::CNNEXT_ISA {

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
  const bool planes = p.layout != Layout::kChannelsLast;
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
    if (planes) {  // registers of 16 pixels, whose stores are dearer where pixels are apart
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
  direct += (planes ? kDirectTurned : 1.0) * double(products) * double(phases.source_channels) *
            double(round_up(phases.channels, kLanes<float>));
  return direct > 0 ? amx / direct : 1.0;
}
#endif

// The same for direct sums as they are at their fastest: by AMX, by AVX512_BF16 or by products of float32.
template <bool Gradient>
double direct_time(const ConvProblem& p) {
  const double pairs = pairs_refuse<Gradient>(p) ? 1 : 0.5;
#if CNNEXT_VECTOR_BYTES == 64
  if (!has_amx()) return pairs;
  const bool splits = p.dtype == DType::kFloat32;
  if (!splits && p.dtype != DType::kBFloat16) return pairs;
  const double amx = splits ? amx_time<float, Gradient>(p) : amx_time<BFloat16, Gradient>(p);
  return amx < pairs ? amx : pairs;
#else
  return pairs;
#endif
}
template <bool Gradient>
const char* rows_amx_refuses(const ConvProblem& p) {
  if (p.dtype != DType::kBFloat16 && p.dtype != DType::kFloat32) return "takes bfloat16 and float32";
  if (!has_amx()) return "this processor has no AMX";
  const double time = direct_time<Gradient>(p);
  const Col2ImCost cost(p, Gradient);
  if (!col2im_refuses<Gradient>(p) && cost.at_once < time * cost.direct)
    return "products with all taps at once are fewer";
  return time < 1 ? nullptr : "its copies would cost more than it saves";
}

}  // namespace cnnext::cpu::CNNEXT_ISA
