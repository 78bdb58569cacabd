// Float32 as TF32 by Hopper's tensor cores.
#include "conv_gemm_launch.cuh"

namespace cnnext::cuda {

CNNEXT_GEMM_KERNELS(tf32_sm90, Tf32Sm90, with_float)

}  // namespace cnnext::cuda
