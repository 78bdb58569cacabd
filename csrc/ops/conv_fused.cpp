// Convolution with its epilogue, activation(conv + residual), where it is not one kernel's: on GPUs, under
// autograd, autocast and vmap, for meta tensors.
#include <ATen/autocast_mode.h>

#include "autograd.h"
#include "conv.h"
#include "epilogue.h"

namespace cnnext::ops {

at::Tensor fused_conv_in_steps(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                               const OptionalTensor& residual, SymInts stride, SymInts padding,
                               SymInts dilation, c10::SymInt groups, c10::string_view activation,
                               double negative_slope) {
  return finish_in_steps("fused_conv",
                         conv(input, weight, bias, stride, padding, dilation, std::move(groups)), residual,
                         activation, negative_slope);
}

namespace {

at::Tensor fused_conv_autograd(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                               const OptionalTensor& residual, SymInts stride, SymInts padding,
                               SymInts dilation, c10::SymInt groups, c10::string_view activation,
                               double negative_slope) {
  const at::Tensor& added = residual ? *residual : weight;
  if (left_to_aten({&input, &weight, bias ? &*bias : &weight, &added}) ||
      differentiates(input, weight, bias, residual)) {
    return fused_conv_in_steps(input, weight, bias, residual, stride, padding, dilation, std::move(groups),
                               activation, negative_slope);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return fused_conv(input, weight, bias, residual, stride, padding, dilation, std::move(groups), activation,
                    negative_slope);
}

// The convolution runs in the lower precision; the residual stays, and decides on the result's type as
// torch's addition does.
template <c10::DeviceType Device, c10::DispatchKey Key>
at::Tensor fused_conv_lowered(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                              const OptionalTensor& residual, SymInts stride, SymInts padding,
                              SymInts dilation, c10::SymInt groups, c10::string_view activation,
                              double negative_slope) {
  const c10::impl::ExcludeDispatchKeyGuard once(Key);
  const auto lowered = [](const at::Tensor& t) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(Device), t, Device);
  };
  const OptionalTensor lowered_bias = bias && bias->defined() ? OptionalTensor(lowered(*bias)) : bias;
  return fused_conv(lowered(input), lowered(weight), lowered_bias, residual, stride, padding, dilation,
                    std::move(groups), activation, negative_slope);
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnext, CUDA, m) { m.impl("fused_conv", fused_conv_in_steps); }
TORCH_LIBRARY_IMPL(cnnext, Meta, m) { m.impl("fused_conv", fused_conv_in_steps); }
TORCH_LIBRARY_IMPL(cnnext, FuncTorchBatched, m) { m.impl("fused_conv", fused_conv_in_steps); }
TORCH_LIBRARY_IMPL(cnnext, Autograd, m) { m.impl("fused_conv", fused_conv_autograd); }
TORCH_LIBRARY_IMPL(cnnext, AutocastCPU, m) {
  m.impl("fused_conv", fused_conv_lowered<c10::DeviceType::CPU, c10::DispatchKey::AutocastCPU>);
}
TORCH_LIBRARY_IMPL(cnnext, AutocastCUDA, m) {
  m.impl("fused_conv", fused_conv_lowered<c10::DeviceType::CUDA, c10::DispatchKey::AutocastCUDA>);
}

}  // namespace cnnext::ops
