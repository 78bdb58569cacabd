// In a build without CUDA, an operator that is called with a CUDA tensor says how to get one with.
#if !defined(CNNEXT_WITH_CUDA)

#include <torch/library.h>

namespace cnnext::ops {
namespace {

void no_cuda(const c10::OperatorHandle& op, torch::jit::Stack*) {
  TORCH_CHECK(false, op.schema().name(),
              " was given a CUDA tensor, but this build of cnnext has no CUDA kernels: ",
              "rebuild it with `CNNEXT_CUDA=1 pip install .` beside a torch built for CUDA and nvcc");
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnext, CUDA, m) {
  for (const char* op :
       {"conv", "conv_grad_input", "conv_grad_weight", "conv_grad_bias", "max_pool", "max_pool_with_indices",
        "max_pool_with_offsets", "adaptive_max_pool", "adaptive_max_pool_with_indices",
        "adaptive_max_pool_with_offsets", "max_pool_indices", "max_pool_grad_input", "max_pool_select",
        "avg_pool", "avg_pool_grad_input", "adaptive_avg_pool", "adaptive_avg_pool_grad_input", "max_unpool",
        "max_unpool_grad_input"}) {
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&no_cuda>());
  }
}

}  // namespace cnnext::ops

#endif
