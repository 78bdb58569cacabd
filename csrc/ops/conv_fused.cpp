// Convolution with its epilogue, activation(conv + residual), where it is not one kernel's: on GPUs, under
// autograd, autocast and vmap, for meta tensors.
#include <ATen/autocast_mode.h>
#include <ATen/ops/add.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/relu6.h>

#include "autograd.h"
#include "conv.h"

namespace cnnext::ops {

Activation activation_of(c10::string_view name) {
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "relu6") return Activation::kRelu6;
  if (name == "leaky_relu") return Activation::kLeakyRelu;
  TORCH_CHECK_VALUE(false, "fused_conv: expected the activation none, relu, relu6 or leaky_relu, but got ",
                    name);
}

at::Tensor fused_conv_in_steps(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                               const OptionalTensor& residual, SymInts stride, SymInts padding,
                               SymInts dilation, c10::SymInt groups, c10::string_view activation,
                               double negative_slope) {
  const Activation kind = activation_of(activation);
  at::Tensor y = conv(input, weight, bias, stride, padding, dilation, std::move(groups));
  if (residual && residual->defined()) y = at::add(y, *residual);
  switch (kind) {
    case Activation::kNone:
      return y;
    case Activation::kRelu:
      return at::relu(y);
    case Activation::kRelu6:
      return at::relu6(y);
    case Activation::kLeakyRelu:
      return at::leaky_relu(y, negative_slope);
  }
  return y;
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
