// Convolution in groups, in all directions. These come first: what Winograd's algorithm or AMX do better they
// refuse.
#include "vec.h"

#include "conv_group_tiles.h"
#include "conv_group_tiles_grad_weight.h"
#include "conv_lanes_list.h"
#include "list.h"

namespace cnnext::cpu::CNNEXT_ISA {

const Kernels& grouped() {
  static const ConvKernel conv[] = {kConvDepthwise, kPairsGroupTiles<false>, kConvGroupTiles, kConvGrouped};
  static const ConvKernel conv_grad_input[] = {kConvGradInputDepthwise, kPairsGroupTiles<true>,
                                               kConvGradInputGroupTiles, kConvGradInputGrouped};
  static const ConvKernel conv_grad_weight[] = {kConvGradWeightDepthwise, kPairsGradWeightGroupTiles,
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
