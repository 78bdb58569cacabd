// The kernels of one instruction set: an ordered list of candidates for each operator, the first that accepts
// wins.
#pragma once

#include "kernel.h"

namespace cnnext::cpu {

struct Kernels {
  const char* capability;
  KernelList<ConvKernel> conv, conv_grad_input, conv_grad_weight, conv_grad_bias;
  KernelList<PoolKernel> max_pool, max_pool_with_offsets, max_pool_indices, max_pool_grad_input,
      max_pool_select;
  KernelList<PoolKernel> avg_pool, avg_pool_grad_input, max_unpool, max_unpool_grad_input;
};

namespace baseline {
const Kernels& kernels();
}
#if defined(__x86_64__)
namespace avx2 {  // with FMA and F16C
const Kernels& kernels();
}
namespace avx512 {  // F, BW, DQ, VL
const Kernels& kernels();
}
#endif

}  // namespace cnnext::cpu
