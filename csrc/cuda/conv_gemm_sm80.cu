// Float16 and bfloat16 on tensor cores.
#include "conv_gemm_launch.cuh"

namespace cnnext::cuda {

CNNEXT_GEMM_KERNELS(sm80, Sm80<false>, with_half)

}  // namespace cnnext::cuda
