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
  for (const char* op : {"conv", "conv_grad_input", "conv_grad_weight", "conv_grad_bias"}) {
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&no_cuda>());
  }
}

}  // namespace cnnext::ops

#endif
