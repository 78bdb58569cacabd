// Every kernel body and the lists of candidates, compiled once for each instruction set by the file that
// includes this (CNNEXT_ISA names it). To add a kernel: write its body in a header of its own and put it in a
// list here.
#include "vec.h"

#include "conv_gemm.h"
#include "conv_winograd.h"
#include "conv_grad_weight_gemm.h"
#include "conv_grad_weight_winograd.h"
#include "conv_grad_bias.h"

namespace cnnext::cpu::CNNEXT_ISA {

const Kernels& kernels() {
  static const ConvKernel conv[] = {kConvWinograd, kConvGemm, kConvReference};
  static const ConvKernel conv_grad_input[] = {kConvGradInputWinograd, kConvGradInputGemm,
                                               kConvGradInputReference};
  static const ConvKernel conv_grad_weight[] = {kConvGradWeightWinograd, kConvGradWeightGemm,
                                                kConvGradWeightReference};
  static const ConvKernel conv_grad_bias[] = {kConvGradBias};
  static const Kernels table = {
      CNNEXT_CAPABILITY, {conv, 3}, {conv_grad_input, 3}, {conv_grad_weight, 3}, {conv_grad_bias, 1}};
  return table;
}

}  // namespace cnnext::cpu::CNNEXT_ISA
