#include "conv_gemm_launch.cuh"

namespace cnnext::cuda {

int code_arch() { return compiled_arch(conv_gather_gemm_sm80<BFloat16, 64, 64, false, false>); }

void run_conv_gemm_sm80(const ConvProblem& p, const ConvBuffers& b, const Stream& stream, char* workspace) {
  if (p.dtype == DType::kFloat16)
    return run_gather<Float16, false>(Direction::kForward, p, b, stream, workspace);
  run_gather<BFloat16, false>(Direction::kForward, p, b, stream, workspace);
}

void run_conv_grad_input_gemm_sm80(const ConvProblem& p, const ConvBuffers& b, const Stream& stream,
                                   char* workspace) {
  if (p.dtype == DType::kFloat16)
    return run_gather<Float16, false>(Direction::kGradInput, p, b, stream, workspace);
  run_gather<BFloat16, false>(Direction::kGradInput, p, b, stream, workspace);
}

void run_conv_grad_weight_gemm_sm80(const ConvProblem& p, const ConvBuffers& b, const Stream& stream,
                                    char* workspace) {
  if (p.dtype == DType::kFloat16) return run_grad_weight<Float16, false>(p, b, stream, workspace);
  run_grad_weight<BFloat16, false>(p, b, stream, workspace);
}

}  // namespace cnnext::cuda
