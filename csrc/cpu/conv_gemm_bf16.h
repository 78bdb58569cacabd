// The products of conv_gemm.h for pairs of bfloat16, by AVX512_BF16: which problems they take, and the
// turning of operands to channels last, where the two channels of a pair are neighbours.
#pragma once

#include "amx_tile.h"
#include "conv_gemm.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr double kProductsForTurning = 32;  // for each element that is turned to channels last

// Why products of pairs are not for this processor, or not for a problem; or null.
inline const char* processor_excludes_pairs() {
  if (has_amx()) return "products of float32 take no longer on a processor with AMX";
  return has_pair_products() ? nullptr : "this processor has no AVX512_BF16";
}
template <bool Gradient>
const char* pairs_excludes(const ConvProblem& p) {
  if (p.dtype != DType::kBFloat16) return "takes bfloat16";
  if (const char* reason = processor_excludes_pairs()) return reason;
  const int64_t channels = Gradient ? p.shape.K_per_group() : p.shape.C_per_group();
  return channels % 2 == 0 ? nullptr : "takes an even number of channels";
}
inline bool has_pairs_in_weight(const ConvProblem& p) {
  return weight_strides_of(p.weight_layout, p.shape.C_per_group(), p.shape.taps()).c == 1;
}
// Whether operands are turned to channels last, where pairs of channels are neighbours, and whether so many
// images have products enough for that: one, where an image's result must not depend on the batch.
inline bool turns_for_pairs(const ConvProblem& p) {
  return p.layout != Layout::kChannelsLast || !has_pairs_in_weight(p);
}
inline const char* turning_refuses(const ConvProblem& p, int64_t images) {
  const ConvShape& s = p.shape;
  const bool data = p.layout != Layout::kChannelsLast, weight = !has_pairs_in_weight(p);
  const double outputs = double(images) * double(s.K) * double(s.output_pixels());
  const int64_t pixels = is_pointwise_with_stride(p) ? s.output_pixels() : s.input_pixels();
  const double inputs = double(images) * double(s.C) * double(pixels);
  const double turned = (data ? inputs + outputs : 0) + (weight ? double(s.weights()) : 0);
  const bool pays = outputs * double(s.C_per_group() * s.taps()) >= kProductsForTurning * turned;
  return pays ? nullptr : "turning its operands to channels last would cost more than it saves";
}
template <bool Gradient>
const char* gemm_bf16_refuses(const ConvProblem& p) {
  if (const char* reason = pairs_excludes<Gradient>(p)) return reason;
  return turning_refuses(p, 1);
}

using PairsGemm = Gemm<BFloat16, BFloat16Pair>;

template <bool Gradient>
using PairsGemmClasses =
    MaySample<MayTurn<Only<PairsGemm, Gradient>, kOpOf<Gradient>, true, turns_for_pairs>, kOpOf<Gradient>>;

template <bool Gradient>
constexpr ConvKernel kConvGemmBf16 =
    entry<PairsGemmClasses<Gradient>>("gemm_bf16", "blocked implicit matrix product of pairs of bfloat16",
                                      gemm_bf16_refuses<Gradient>, packed_of<PairsGemmClasses<Gradient>>);

}  // namespace cnnext::cpu::CNNEXT_ISA
