// Float16 and bfloat16 by Hopper's tensor cores.
#include "conv_gemm_launch.cuh"

namespace cnnext::cuda {

int code_arch() {
  const auto sm80 = conv_gather_gemm<BFloat16, Sm80<false>::Tile<BFloat16, 64, 64, false, false>, false>;
  const auto sm90 = conv_gather_gemm<BFloat16, Sm90::Tile<BFloat16, 64, 64, false, false>, false>;
  const int arch = compiled_arch(sm80);
  return arch == 90 && !has_body(sm90) ? 89 : arch;
}

CNNEXT_GEMM_KERNELS(sm90, Sm90, with_half)

}  // namespace cnnext::cuda
