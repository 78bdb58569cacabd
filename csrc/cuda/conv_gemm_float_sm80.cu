// Float32 on tensor cores: by one product of TF32, and as accurate as float32 by three.
#include "conv_gemm_launch.cuh"

namespace cnnext::cuda {

#define CNNEXT_GEMM_KERNEL(suffix, kAccurate)                                                               \
  void run_conv_gemm_##suffix(const ConvProblem& p, const ConvBuffers& b, const Stream& stream,             \
                              char* workspace) {                                                            \
    run_gather<float, Sm80<kAccurate>>(Direction::kForward, p, b, stream, workspace);                       \
  }                                                                                                         \
  void run_conv_grad_input_gemm_##suffix(const ConvProblem& p, const ConvBuffers& b, const Stream& stream,  \
                                         char* workspace) {                                                 \
    run_gather<float, Sm80<kAccurate>>(Direction::kGradInput, p, b, stream, workspace);                     \
  }                                                                                                         \
  void run_conv_grad_weight_gemm_##suffix(const ConvProblem& p, const ConvBuffers& b, const Stream& stream, \
                                          char* workspace) {                                                \
    run_grad_weight<float, Sm80<kAccurate>>(p, b, stream, workspace);                                       \
  }
CNNEXT_GEMM_KERNEL(tf32_sm80, false)
CNNEXT_GEMM_KERNEL(3xtf32_sm80, true)
#undef CNNEXT_GEMM_KERNEL

}  // namespace cnnext::cuda
