// Pooling, unpooling and their gradients.
#include "vec.h"

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
#include "list.h"

namespace cnnext::cpu::CNNEXT_ISA {

const Kernels& pool() {
  static const PoolKernel max_pool[] = {kMaxPoolSeparable,      kMaxPoolChannelsLast, kMaxPoolPlane,
                                        kMaxPoolSeparableLanes, kMaxPoolLanes,        kMaxPoolRows,
                                        kMaxPoolReference};
  static const PoolKernel max_pool_with_offsets[] = {kMaxPoolOffsetsSeparable, kMaxPoolOffsetsChannelsLast,
                                                     kMaxPoolOffsetsPlane,     kMaxPoolOffsetsSeparableLanes,
                                                     kMaxPoolOffsetsLanes,     kMaxPoolOffsetsRows,
                                                     kMaxPoolOffsetsReference};
  static const PoolKernel max_pool_indices[] = {kMaxPoolIndices};
  static const PoolKernel max_pool_grad_input[] = {kMaxPoolGradChannelsLast, kMaxPoolGradPlane,
                                                   kMaxPoolGradRows, kMaxPoolGradScatter,
                                                   kMaxPoolGradReference};
  static const PoolKernel max_pool_select[] = {kMaxPoolSelect};
  static const PoolKernel avg_pool[] = {kAvgPoolChannelsLast, kAvgPoolPlane, kAvgPoolLanes, kAvgPoolRows,
                                        kAvgPoolReference};
  static const PoolKernel avg_pool_grad_input[] = {kAvgPoolGradChannelsLast, kAvgPoolGradPlane,
                                                   kAvgPoolGradLanes, kAvgPoolGradRows,
                                                   kAvgPoolGradReference};
  static const PoolKernel max_unpool[] = {kMaxUnpool};
  static const PoolKernel max_unpool_grad_input[] = {kMaxUnpoolGrad};
  static const Kernels table = [] {
    Kernels all = {};
    all.max_pool = list(max_pool);
    all.max_pool_with_offsets = list(max_pool_with_offsets);
    all.max_pool_indices = list(max_pool_indices);
    all.max_pool_grad_input = list(max_pool_grad_input);
    all.max_pool_select = list(max_pool_select);
    all.avg_pool = list(avg_pool);
    all.avg_pool_grad_input = list(avg_pool_grad_input);
    all.max_unpool = list(max_unpool);
    all.max_unpool_grad_input = list(max_unpool_grad_input);
    return all;
  }();
  return table;
}

}  // namespace cnnext::cpu::CNNEXT_ISA
