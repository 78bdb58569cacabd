#include "device.h"

#include <ATen/Context.h>

#if defined(CNNEXT_WITH_CUDA)
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <array>
#include <atomic>

#include "../cuda/kernels.h"
#endif

namespace cnnext::ops {

void set_gpu(ConvProblem& problem, int arch) {
  problem.arch = arch;
  problem.tf32 = at::globalContext().allowTF32CuDNN(at::Float32Op::CONV);
}
void set_gpu(PoolProblem& problem, int arch) { problem.arch = arch; }
void set_gpu(NormProblem& problem, int arch) { problem.arch = arch; }

#if defined(CNNEXT_WITH_CUDA)

OnGpu::OnGpu(const at::Tensor& tensor) : guard_(tensor.device()) {}
int OnGpu::arch() const {
  static std::array<std::atomic<int>, C10_COMPILE_TIME_MAX_GPUS> known;  // by device; 0 until it is asked for
  std::atomic<int>& arch = known[guard_.current_device().index()];
  if (arch == 0) arch = cuda::code_arch();
  return arch;
}
cuda::Stream OnGpu::stream() const { return {c10::cuda::getCurrentCUDAStream().stream()}; }
at::DataPtr OnGpu::workspace(int64_t bytes) const {
  if (bytes == 0) return {};
  at::DataPtr memory = c10::cuda::CUDACachingAllocator::get()->allocate(bytes);
  if (fills_workspaces())
    C10_CUDA_CHECK(cudaMemsetAsync(memory.get(), 0xff, bytes, c10::cuda::getCurrentCUDAStream()));
  return memory;
}

#else

OnGpu::OnGpu(const at::Tensor& tensor) : guard_(tensor.device()) {
  TORCH_CHECK(false, "this build of cnnext has no CUDA kernels");
}
int OnGpu::arch() const { return 0; }
cuda::Stream OnGpu::stream() const { return {}; }
at::DataPtr OnGpu::workspace(int64_t) const { return {}; }

#endif

}  // namespace cnnext::ops
