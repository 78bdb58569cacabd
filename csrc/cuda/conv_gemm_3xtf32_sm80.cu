#include "conv_gemm_launch.cuh"

namespace cnnext::cuda {

void run_conv_gemm_3xtf32_sm80(const ConvProblem& p, const ConvBuffers& b, const Stream& stream,
                               char* workspace) {
  run_gather<float, true>(Direction::kForward, p, b, stream, workspace);
}

void run_conv_grad_input_gemm_3xtf32_sm80(const ConvProblem& p, const ConvBuffers& b, const Stream& stream,
                                          char* workspace) {
  run_gather<float, true>(Direction::kGradInput, p, b, stream, workspace);
}

void run_conv_grad_weight_gemm_3xtf32_sm80(const ConvProblem& p, const ConvBuffers& b, const Stream& stream,
                                           char* workspace) {
  run_grad_weight<float, true>(p, b, stream, workspace);
}

}  // namespace cnnext::cuda
