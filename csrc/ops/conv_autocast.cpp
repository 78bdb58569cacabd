// Autocast of convolution: it runs in the lower precision, as torch's does.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "conv.h"

namespace cnnext::ops {
namespace {

// The operator on its tensors in the lower precision; what is no tensor stays.
template <auto Op, c10::DeviceType Device, c10::DispatchKey Key>
struct Lowered;
template <class... Args, at::Tensor (*Op)(Args...), c10::DeviceType Device, c10::DispatchKey Key>
struct Lowered<Op, Device, Key> {
  static at::Tensor run(Args... args) {
    c10::impl::ExcludeDispatchKeyGuard once(Key);
    return Op(lowered(args)...);
  }
  static at::Tensor lowered(const at::Tensor& t) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(Device), t, Device);
  }
  static OptionalTensor lowered(const OptionalTensor& t) {
    return t && t->defined() ? OptionalTensor(lowered(*t)) : t;
  }
  template <class T>
  static const T& lowered(const T& other) {
    return other;
  }
};

template <c10::DeviceType Device, c10::DispatchKey Key>
void implement(torch::Library& m) {
  m.impl("conv", Lowered<&conv, Device, Key>::run);
  m.impl("conv_grad_input", Lowered<&conv_grad_input, Device, Key>::run);
  m.impl("conv_transpose", Lowered<&conv_transpose, Device, Key>::run);
  m.impl("linear", Lowered<&linear, Device, Key>::run);
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnext, AutocastCPU, m) {
  implement<c10::DeviceType::CPU, c10::DispatchKey::AutocastCPU>(m);
}
TORCH_LIBRARY_IMPL(cnnext, AutocastCUDA, m) {
  implement<c10::DeviceType::CUDA, c10::DispatchKey::AutocastCUDA>(m);
}

}  // namespace cnnext::ops
