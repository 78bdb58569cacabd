// The products of conv_gemm.h for pairs of bfloat16, by AVX512_BF16 or by AMX: which problems they take, and
// the turning of operands to channels last, where the two channels of a pair are neighbours.
#pragma once

#include "conv_gemm.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kFewestToPair = 64;       // numbers of an odd number of channels that a pixel sums
constexpr double kProductsForTurning = 32;  // for each element that is turned to channels last

inline const char* no_product(Product product) {
  if (product == Product::kAmx) return has_amx() ? nullptr : "this processor has no AMX";
  return has_pair_products() ? nullptr : "this processor has no AVX512_BF16";
}
template <bool Gradient>
bool has_even_channels(const ConvProblem& p) {
  return (Gradient ? p.shape.K_per_group() : p.shape.C_per_group()) % 2 == 0;
}
template <bool Gradient>
const char* no_pairs(const ConvProblem& p) {
  if (p.dtype != DType::kBFloat16) return "takes bfloat16";
  if (const char* reason = no_product(Product::kPairs)) return reason;
  return has_even_channels<Gradient>(p) ? nullptr : "takes an even number of channels";
}
inline bool has_pairs_in_weight(const ConvProblem& p) {
  return weight_strides_of(p.weight_layout, p.shape.C_per_group(), p.shape.taps()).c == 1;
}
// Whether operands are turned to channels last, where pairs of channels are neighbours, and whether there are
// products enough for that.
inline bool turns_for_pairs(const ConvProblem& p) {
  return p.layout != Layout::kChannelsLast || !has_pairs_in_weight(p);
}
inline const char* turning_refuses(const ConvProblem& p) {
  const ConvShape& s = p.shape;
  const bool data = p.layout != Layout::kChannelsLast, weight = !has_pairs_in_weight(p);
  const double outputs = double(s.N) * double(s.K) * double(s.output_pixels());
  const double inputs = double(s.N) * double(s.C) * double(s.input_pixels());
  const double turned = (data ? inputs + outputs : 0) + (weight ? double(s.weights()) : 0);
  const bool pays = outputs * double(s.C_per_group() * s.taps()) >= kProductsForTurning * turned;
  return pays ? nullptr : "turning its operands to channels last would cost more than it saves";
}
// AMX pairs what it has gathered, if the channels are odd.
template <bool Gradient>
const char* amx_refuses(const ConvProblem& p) {
  if (p.dtype != DType::kBFloat16) return "takes bfloat16";
  if (const char* reason = no_product(Product::kAmx)) return reason;
  if (!has_even_channels<Gradient>(p)) {
    const Phases phases(p, Gradient);
    if (Regions(phases, Layout::kChannelsLast).cut)
      return "takes an even number of channels where most taps lie in the padding";
    if (phases.max_depth() < kFewestToPair) return "pairing few numbers would cost more than it saves";
  }
  return turning_refuses(p);
}
template <bool Gradient, Product P>
const char* pairs_refuse(const ConvProblem& p) {
  if (P == Product::kAmx) return amx_refuses<Gradient>(p);
  if (const char* reason = no_pairs<Gradient>(p)) return reason;
  return turning_refuses(p);
}
template <bool Gradient, Product P, class Visit>
void with_pairs(const ConvProblem& p, Visit&& visit) {
  if constexpr (P == Product::kAmx) {
    if (!has_even_channels<Gradient>(p)) return visit(static_cast<Gemm<BFloat16, P, BFloat16>*>(nullptr));
  }
  visit(static_cast<Gemm<BFloat16, P>*>(nullptr));
}
template <bool Gradient, Product P>
int64_t pairs_workspace(const ConvProblem& p) {
  if (turns_for_pairs(p)) return in_channels_last<Gradient>(p, true, pairs_workspace<Gradient, P>).bytes;
  int64_t bytes = 0;
  with_pairs<Gradient, P>(p, [&](auto* tag) { bytes = Pointee<decltype(tag)>::workspace(p, Gradient); });
  return bytes;
}
template <bool Gradient, Product P>
void pairs_run(const ConvProblem& p, const ConvBuffers& b, const Parallel& parallel, char* workspace) {
  if (turns_for_pairs(p)) {
    return in_channels_last<Gradient>(p, true, pairs_workspace<Gradient, P>)
        .run(b, parallel, workspace, pairs_run<Gradient, P>);
  }
  with_pairs<Gradient, P>(
      p, [&](auto* tag) { Pointee<decltype(tag)>(p, Gradient, b, workspace).run(parallel); });
}

template <bool Gradient, Product P>
constexpr ConvKernel kPairsGemm = {
    P == Product::kAmx ? "gemm_amx" : "gemm_bf16",
    P == Product::kAmx ? "blocked implicit matrix product of pairs of bfloat16 by AMX"
                       : "blocked implicit matrix product of pairs of bfloat16",
    pairs_refuse<Gradient, P>, pairs_workspace<Gradient, P>, pairs_run<Gradient, P>};

}  // namespace cnnext::cpu::CNNEXT_ISA
