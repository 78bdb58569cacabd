// Every kernel body and the lists of candidates, compiled once for each instruction set by the file that
// includes this (CNNEXT_ISA names it). To add a kernel: write its body in a header of its own and put it in a
// list here.
#include "vec.h"

#include "conv_col2im.h"
#include "conv_gemm_pairs.h"
#include "conv_rows.h"
#include "conv_rows_amx.h"
#include "conv_thin.h"
#include "conv_winograd.h"
#include "conv_grad_weight_gemm.h"
#include "conv_grad_weight_winograd.h"
#include "conv_grad_weight_amx.h"
#include "conv_rows_grad_weight.h"
#include "conv_thin_grad_weight.h"
#include "conv_group_tiles.h"
#include "conv_group_tiles_grad_weight.h"
#include "conv_lanes_list.h"
#include "conv_grad_bias.h"
#include "pool_channels_last.h"
#include "pool_channels_last_grad.h"
#include "pool_lanes.h"
#include "pool_separable.h"
#include "pool_rows.h"
#include "pool_avg_grad_rows.h"
#include "pool_plane.h"
#include "pool_lookup.h"
#include "pool_max_grad_rows.h"
#include "pool_scatter.h"

// Kernels by AMX, where there can be a processor that has it.
#if CNNEXT_VECTOR_BYTES == 64
#define CNNEXT_AMX(...) __VA_ARGS__,
#else
#define CNNEXT_AMX(...)
#endif

namespace cnnext::cpu::CNNEXT_ISA {

template <class Kernel, int kCount>
CNNEXT_INLINE KernelList<Kernel> list(const Kernel (&kernels)[kCount]) {
  return {kernels, kCount};
}

const Kernels& kernels() {
  static const ConvKernel conv[] = {kConvDepthwise,     kPairsGroupTiles<false>,
                                    kConvGroupTiles,    kConvGrouped,
                                    kWinograd<false>,   CNNEXT_AMX(kRowsAmx<false>) kPairsThin,
                                    kConvThin,          kConvRows<false>,
                                    kConvCol2Im<false>, kPairsGemm<false>,
                                    kConvGemm,          kConvReference};
  static const ConvKernel conv_grad_input[] = {
      kConvGradInputDepthwise, kPairsGroupTiles<true>, kConvGradInputGroupTiles,
      kConvGradInputGrouped,   kWinograd<true>,        CNNEXT_AMX(kRowsAmx<true>) kConvRows<true>,
      kConvCol2Im<true>,       kPairsGemm<true>,       kConvGradInputGemm,
      kConvGradInputReference};
  static const ConvKernel conv_grad_weight[] = {kConvGradWeightDepthwise,
                                                kPairsGradWeightGroupTiles,
                                                kConvGradWeightGroupTiles,
                                                kConvGradWeightGrouped,
                                                CNNEXT_AMX(kConvGradWeightAmx) kConvGradWeightWinograd,
                                                kConvGradWeightRows,
                                                kPairsGradWeightGemm,
                                                kConvGradWeightThin,
                                                kConvGradWeightGemm,
                                                kConvGradWeightReference};
  static const ConvKernel conv_grad_bias[] = {kConvGradBias};
  static const PoolKernel max_pool[] = {kMaxPoolSeparable,      kMaxPoolChannelsLast, kMaxPoolPlane,
                                        kMaxPoolSeparableLanes, kMaxPoolLanes,        kMaxPoolRows,
                                        kMaxPoolReference};
  static const PoolKernel max_pool_with_offsets[] = {kMaxPoolOffsetsSeparable, kMaxPoolOffsetsChannelsLast,
                                                     kMaxPoolOffsetsPlane,     kMaxPoolOffsetsSeparableLanes,
                                                     kMaxPoolOffsetsLanes,     kMaxPoolOffsetsRows,
                                                     kMaxPoolOffsetsReference};
  static const PoolKernel max_pool_indices[] = {kMaxPoolIndices};
  static const PoolKernel max_pool_grad_input[] = {kMaxPoolGradChannelsLast, kMaxPoolGradRows,
                                                   kMaxPoolGradScatter, kMaxPoolGradReference};
  static const PoolKernel max_pool_select[] = {kMaxPoolSelect};
  static const PoolKernel avg_pool[] = {kAvgPoolChannelsLast, kAvgPoolPlane, kAvgPoolLanes, kAvgPoolRows,
                                        kAvgPoolReference};
  static const PoolKernel avg_pool_grad_input[] = {kAvgPoolGradChannelsLast, kAvgPoolGradPlane,
                                                   kAvgPoolGradLanes, kAvgPoolGradRows,
                                                   kAvgPoolGradReference};
  static const PoolKernel max_unpool[] = {kMaxUnpool};
  static const PoolKernel max_unpool_grad_input[] = {kMaxUnpoolGrad};
  static const Kernels table = {CNNEXT_CAPABILITY,
                                list(conv),
                                list(conv_grad_input),
                                list(conv_grad_weight),
                                list(conv_grad_bias),
                                list(max_pool),
                                list(max_pool_with_offsets),
                                list(max_pool_indices),
                                list(max_pool_grad_input),
                                list(max_pool_select),
                                list(avg_pool),
                                list(avg_pool_grad_input),
                                list(max_unpool),
                                list(max_unpool_grad_input)};
  return table;
}

}  // namespace cnnext::cpu::CNNEXT_ISA
