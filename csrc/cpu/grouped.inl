// Convolution in groups, in all directions. These come first: what Winograd's algorithm or AMX do better they
// leave to them (conv_choice.h).
#include "vec.h"

#include "conv_depthwise_rows.h"
#include "conv_group_tiles.h"
#include "conv_lanes_kernel.h"
#include "conv_grad_weight_group_tiles.h"
#include "conv_grad_weight_lanes.h"
#include "conv_choice.h"
#include "conv_grad_weight_choice.h"
#include "list.h"

namespace cnnext::cpu::CNNEXT_ISA {

const Kernels& grouped() {
  static const ConvKernel conv[] = {CNNEXT_MASKED(kConvDepthwiseRows<false>) kConvDepthwise<false>,
                                    kConvGroupTilesBf16<false>, kConvGroupTiles<false>, kConvGrouped<false>};
  static const ConvKernel conv_grad_input[] = {CNNEXT_MASKED(kConvDepthwiseRows<true>) kConvDepthwise<true>,
                                               kConvGroupTilesBf16<true>, kConvGroupTiles<true>,
                                               kConvGrouped<true>};
  static const ConvKernel conv_grad_weight[] = {kConvGradWeightDepthwise, kConvGradWeightGroupTilesBf16,
                                                kConvGradWeightGroupTiles, kConvGradWeightGrouped};
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
