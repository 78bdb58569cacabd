#include "cpu/vec.h"

#include "cpu/conv_rows_amx.h"
#include "cpu/conv_grad_weight_amx.h"
#include "cpu/conv_grad_weight_choice.h"
#include "cpu/list.h"

namespace cnnext::cpu::CNNEXT_ISA {

const Kernels& emulated_amx() {
  static const ConvKernel conv[] = {kConvRowsAmx<false>}, conv_grad_input[] = {kConvRowsAmx<true>},
                          conv_grad_weight[] = {kConvGradWeightAmx};
  static const Kernels table = [] {
    Kernels all = {};
    all.conv = list(conv);
    all.conv_grad_input = list(conv_grad_input);
    all.conv_grad_weight = list(conv_grad_weight);
    return all;
  }();
  return table;
}

}  // namespace cnnext::cpu::CNNEXT_ISA
