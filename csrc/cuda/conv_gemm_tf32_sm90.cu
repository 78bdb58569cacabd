// Float32 as TF32 by Hopper's tensor cores.
#include "conv_gemm_launch.cuh"

namespace cnnext::cuda {

void run_conv_gemm_tf32_sm90(const ConvProblem& p, const ConvBuffers& b, const Stream& stream,
                             char* workspace) {
  run_gather<float, Tf32Sm90>(Direction::kForward, p, b, stream, workspace);
}

void run_conv_grad_input_gemm_tf32_sm90(const ConvProblem& p, const ConvBuffers& b, const Stream& stream,
                                        char* workspace) {
  run_gather<float, Tf32Sm90>(Direction::kGradInput, p, b, stream, workspace);
}

void run_conv_grad_weight_gemm_tf32_sm90(const ConvProblem& p, const ConvBuffers& b, const Stream& stream,
                                         char* workspace) {
  run_grad_weight<float, Tf32Sm90>(p, b, stream, workspace);
}

}  // namespace cnnext::cuda
