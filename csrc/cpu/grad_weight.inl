// The gradients of convolution with respect to the weight and the bias.
#include "vec.h"

#include "conv_grad_weight_few.h"
#include "conv_grad_weight_gemm.h"
#include "conv_grad_weight_winograd.h"
#include "conv_grad_weight_amx.h"
#include "conv_grad_weight_rows.h"
#include "conv_grad_weight_thin.h"
#include "conv_grad_bias.h"
#include "conv_grad_weight_choice.h"
#include "list.h"

namespace cnnext::cpu::CNNEXT_ISA {

const Kernels& grad_weight() {
  static const ConvKernel conv_grad_weight[] = {
      kConvGradWeightFew,       CNNEXT_AMX(kConvGradWeightAmx) kConvGradWeightWinograd,
      kConvGradWeightRows,      kConvGradWeightGemmBf16,
      kConvGradWeightThin,      kConvGradWeightGemm,
      kConvGradWeightReference,
  };
  static const ConvKernel conv_grad_bias[] = {kConvGradBias};
  static const Kernels table = [] {
    Kernels all = {};
    all.conv_grad_weight = list(conv_grad_weight);
    all.conv_grad_bias = list(conv_grad_bias);
    return all;
  }();
  return table;
}

}  // namespace cnnext::cpu::CNNEXT_ISA
