// The launchers of every CUDA kernel, as the table of kernels.cpp lists them.
#pragma once

#include "kernel.h"

namespace cnnext::cuda {

// The architecture that the kernels' code for the current GPU was compiled for, 10 * major + minor: what is
// meant for a newer one is not in it. 89 stands for code for 9.0 without Hopper's own instructions.
int code_arch();

#define CNNEXT_CONV_KERNEL(name) \
  void name(const ConvProblem&, const ConvBuffers&, const Stream&, char* workspace)
#define CNNEXT_POOL_KERNEL(name) \
  void name(const PoolProblem&, const PoolBuffers&, const Stream&, char* workspace)

CNNEXT_CONV_KERNEL(run_conv_direct);
CNNEXT_CONV_KERNEL(run_conv_grad_input_direct);
CNNEXT_CONV_KERNEL(run_conv_grad_weight_direct);
CNNEXT_CONV_KERNEL(run_conv_depthwise);
CNNEXT_CONV_KERNEL(run_conv_grad_input_depthwise);
CNNEXT_CONV_KERNEL(run_conv_grad_weight_depthwise);
CNNEXT_CONV_KERNEL(run_conv_gemm_sm80);
CNNEXT_CONV_KERNEL(run_conv_gemm_sm90);
CNNEXT_CONV_KERNEL(run_conv_grad_input_gemm_sm80);
CNNEXT_CONV_KERNEL(run_conv_grad_input_gemm_sm90);
CNNEXT_CONV_KERNEL(run_conv_grad_weight_gemm_sm80);
CNNEXT_CONV_KERNEL(run_conv_grad_weight_gemm_sm90);
CNNEXT_CONV_KERNEL(run_conv_gemm_tf32_sm90);
CNNEXT_CONV_KERNEL(run_conv_grad_input_gemm_tf32_sm90);
CNNEXT_CONV_KERNEL(run_conv_grad_weight_gemm_tf32_sm90);
CNNEXT_CONV_KERNEL(run_conv_gemm_tf32_sm80);
CNNEXT_CONV_KERNEL(run_conv_grad_input_gemm_tf32_sm80);
CNNEXT_CONV_KERNEL(run_conv_grad_weight_gemm_tf32_sm80);
CNNEXT_CONV_KERNEL(run_conv_gemm_3xtf32_sm80);
CNNEXT_CONV_KERNEL(run_conv_grad_input_gemm_3xtf32_sm80);
CNNEXT_CONV_KERNEL(run_conv_grad_weight_gemm_3xtf32_sm80);
CNNEXT_CONV_KERNEL(run_conv_grad_bias);

CNNEXT_POOL_KERNEL(run_max_pool);
CNNEXT_POOL_KERNEL(run_max_pool_with_offsets);
CNNEXT_POOL_KERNEL(run_max_pool_indices);
CNNEXT_POOL_KERNEL(run_max_pool_grad_input);
CNNEXT_POOL_KERNEL(run_max_pool_select);
CNNEXT_POOL_KERNEL(run_avg_pool);
CNNEXT_POOL_KERNEL(run_avg_pool_grad_input);
CNNEXT_POOL_KERNEL(run_max_unpool);
CNNEXT_POOL_KERNEL(run_max_unpool_grad_input);

}  // namespace cnnext::cuda
