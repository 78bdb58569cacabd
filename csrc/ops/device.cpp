#include "device.h"

#include <ATen/Context.h>

#if defined(CNNEXT_WITH_CUDA)
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace cnnext::ops {

void set_gpu(ConvProblem& problem, int arch) {
  problem.arch = arch;
  problem.tf32 = at::globalContext().allowTF32CuDNN(at::Float32Op::CONV);
}
void set_gpu(PoolProblem& problem, int arch) { problem.arch = arch; }

#if defined(CNNEXT_WITH_CUDA)

struct OnGpu::State {
  c10::cuda::CUDAGuard guard;
};

OnGpu::OnGpu(const at::Tensor& tensor) : state_(new State{c10::cuda::CUDAGuard(tensor.device())}) {}
OnGpu::~OnGpu() { delete state_; }

int OnGpu::arch() const {
  const int device = state_->guard.current_device().index();
  int major = 0, minor = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return 10 * major + minor;
}
cuda::Stream OnGpu::stream() const { return {c10::cuda::getCurrentCUDAStream().stream()}; }
at::DataPtr OnGpu::workspace(int64_t bytes) const {
  return bytes == 0 ? at::DataPtr() : c10::cuda::CUDACachingAllocator::get()->allocate(bytes);
}

#else

struct OnGpu::State {};
OnGpu::OnGpu(const at::Tensor&) : state_(nullptr) {
  TORCH_CHECK(false, "this build of cnnext has no CUDA kernels");
}
OnGpu::~OnGpu() = default;
int OnGpu::arch() const { return 0; }
cuda::Stream OnGpu::stream() const { return {}; }
at::DataPtr OnGpu::workspace(int64_t) const { return {}; }

#endif

}  // namespace cnnext::ops
