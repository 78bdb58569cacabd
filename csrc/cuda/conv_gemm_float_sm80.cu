// Float32 on tensor cores: by one product of TF32, and as accurate as float32 by three.
#include "conv_gemm_launch.cuh"

namespace cnnext::cuda {

CNNEXT_GEMM_KERNELS(tf32_sm80, Sm80<false>, with_float)
CNNEXT_GEMM_KERNELS(3xtf32_sm80, Sm80<true>, with_float)

}  // namespace cnnext::cuda
