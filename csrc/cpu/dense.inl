// Convolution and its gradient with respect to the input, where channels are many or of any number.
#include "vec.h"

#include "conv_col2im.h"
#include "conv_gemm_bf16.h"
#include "conv_rows.h"
#include "conv_rows_amx.h"
#include "conv_thin.h"
#include "conv_winograd.h"
#include "conv_choice.h"
#include "list.h"

namespace cnnext::cpu::CNNEXT_ISA {

const Kernels& dense() {
  static const ConvKernel conv[] = {
      kConvWinograd<false>,
      CNNEXT_AMX(kConvRowsAmx<false>) kConvThinBf16,
      kConvThin,
      kConvRows<false>,
      kConvCol2Im<false>,
      kConvGemmBf16<false>,
      kConvGemm,
      kConvReference,
  };
  static const ConvKernel conv_grad_input[] = {
      kConvWinograd<true>, CNNEXT_AMX(kConvRowsAmx<true>) kConvRows<true>,
      kConvCol2Im<true>,   kConvGemmBf16<true>,
      kConvGradInputGemm,  kConvGradInputReference,
  };
  static const Kernels table = [] {
    Kernels all = {};
    all.conv = list(conv);
    all.conv_grad_input = list(conv_grad_input);
    return all;
  }();
  return table;
}

}  // namespace cnnext::cpu::CNNEXT_ISA
