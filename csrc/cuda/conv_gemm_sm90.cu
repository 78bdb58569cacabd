#include "conv_gemm_launch.cuh"

namespace cnnext::cuda {

int code_arch() {
  const auto sm80 = conv_gather_gemm<BFloat16, Sm80<false>::Tile<BFloat16, 64, 64, false, false>, false>;
  const auto sm90 = conv_gather_gemm<BFloat16, Sm90::Tile<BFloat16, 64, 64, false, false>, false>;
  const int arch = compiled_arch(sm80);
  return arch == 90 && !has_body(sm90) ? 89 : arch;
}

void run_conv_gemm_sm90(const ConvProblem& p, const ConvBuffers& b, const Stream& stream, char* workspace) {
  if (p.dtype == DType::kFloat16)
    return run_gather<Float16, Sm90>(Direction::kForward, p, b, stream, workspace);
  run_gather<BFloat16, Sm90>(Direction::kForward, p, b, stream, workspace);
}

void run_conv_grad_input_gemm_sm90(const ConvProblem& p, const ConvBuffers& b, const Stream& stream,
                                   char* workspace) {
  if (p.dtype == DType::kFloat16)
    return run_gather<Float16, Sm90>(Direction::kGradInput, p, b, stream, workspace);
  run_gather<BFloat16, Sm90>(Direction::kGradInput, p, b, stream, workspace);
}

void run_conv_grad_weight_gemm_sm90(const ConvProblem& p, const ConvBuffers& b, const Stream& stream,
                                    char* workspace) {
  if (p.dtype == DType::kFloat16) return run_grad_weight<Float16, Sm90>(p, b, stream, workspace);
  run_grad_weight<BFloat16, Sm90>(p, b, stream, workspace);
}

}  // namespace cnnext::cuda
