// The launchers of every CUDA kernel, as the table of kernels.cpp lists them.
#pragma once

#include "kernel.h"

namespace cnnext::cuda {

// The architecture that the kernels' code for the current GPU was compiled for, 10 * major + minor: what is
// meant for a newer one is not in it. 89 stands for code for 9.0 without Hopper's own instructions.
int code_arch();

// A convolution kernel's three directions.
#define CNNEXT_CONV_KERNELS(method)                                                                          \
  void run_conv_##method(const ConvProblem&, const ConvBuffers&, const Stream&, char* workspace);            \
  void run_conv_grad_input_##method(const ConvProblem&, const ConvBuffers&, const Stream&, char* workspace); \
  void run_conv_grad_weight_##method(const ConvProblem&, const ConvBuffers&, const Stream&, char* workspace)
#define CNNEXT_POOL_KERNEL(name) \
  void name(const PoolProblem&, const PoolBuffers&, const Stream&, char* workspace)

CNNEXT_CONV_KERNELS(direct);
CNNEXT_CONV_KERNELS(depthwise);
CNNEXT_CONV_KERNELS(gemm_sm80);
CNNEXT_CONV_KERNELS(gemm_sm90);
CNNEXT_CONV_KERNELS(gemm_tf32_sm90);
CNNEXT_CONV_KERNELS(gemm_tf32_sm80);
CNNEXT_CONV_KERNELS(gemm_3xtf32_sm80);
void run_conv_grad_bias(const ConvProblem&, const ConvBuffers&, const Stream&, char* workspace);

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
