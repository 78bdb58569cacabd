// Pooling by its definition, for every problem: last in the lists, and what other kernels are tested against.
#pragma once

#include "kernel.h"

namespace cnnext::cpu {

extern const PoolKernel kMaxPoolReference, kMaxPoolOffsetsReference, kMaxPoolGradReference;
extern const PoolKernel kAvgPoolReference, kAvgPoolGradReference;
extern const PoolKernel kMaxUnpool, kMaxUnpoolGrad;

}  // namespace cnnext::cpu
