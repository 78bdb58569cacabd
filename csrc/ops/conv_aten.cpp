// Convolution by ATen: what vmap, torch.func, forward-mode differentiation and foreign element types are left
// to.
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <torch/library.h>

#include "conv.h"

namespace cnnext::ops::aten {
namespace {

using SymInts = c10::SmallVector<c10::SymInt, kAxes>;

SymInts expanded(c10::SymIntArrayRef values, size_t dims) {
  return values.size() == dims ? SymInts(values.begin(), values.end())
                               : SymInts(dims, values.empty() ? 0 : values[0]);
}

}  // namespace

at::Tensor conv(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                c10::SymInt groups) {
  const SymInts no_output_padding(std::max<int64_t>(weight.dim() - 2, 0), 0);
  return at::convolution_symint(input, weight, bias, stride, padding, dilation, false, no_output_padding,
                                groups);
}

at::Tensor conv_grad_input(const at::Tensor& grad_output, const at::Tensor& weight,
                           const OptionalTensor& bias, c10::SymIntArrayRef input_size,
                           c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                           c10::SymIntArrayRef dilation, c10::SymInt groups) {
  const size_t dims = input_size.size();
  TORCH_CHECK(weight.dim() == int64_t(dims) + 2 && grad_output.dim() == weight.dim(),
              "conv_grad_input: expected ", dims + 2,
              "-dimensional grad_output and weight for an input_size of ", dims, " values, but got ",
              grad_output.dim(), " and ", weight.dim(), " dimensions");
  const SymInts s = expanded(stride, dims), p = expanded(padding, dims), d = expanded(dilation, dims);
  SymInts output_padding;
  for (size_t i = 0; i < dims; ++i) {
    const c10::SymInt smallest =
        (grad_output.sym_size(i + 2) - 1) * s[i] - p[i] * 2 + d[i] * (weight.sym_size(i + 2) - 1) + 1;
    output_padding.push_back(input_size[i] - smallest);
  }
  return at::convolution_symint(grad_output, weight, bias, s, p, d, true, output_padding, groups);
}

at::Tensor conv_grad_weight(const at::Tensor& grad_output, const at::Tensor& input,
                            c10::SymIntArrayRef kernel_size, c10::SymIntArrayRef stride,
                            c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, c10::SymInt groups,
                            bool channels_last) {
  const size_t dims = kernel_size.size();
  c10::SmallVector<c10::SymInt, kAxes + 2> size = {grad_output.sym_size(1), input.sym_size(1) / groups};
  size.append(kernel_size.begin(), kernel_size.end());
  const auto layout = channels_last ? cpu::Layout::kChannelsLast : cpu::Layout::kChannelsFirst;
  const at::Tensor weight =  // only its size and format are read
      input.new_empty_symint(size).contiguous(memory_format(layout, int64_t(dims) + 2));
  const SymInts no_output_padding(dims, 0);
  return std::get<1>(at::convolution_backward_symint(
      grad_output, input, weight, std::nullopt, expanded(stride, dims), expanded(padding, dims),
      expanded(dilation, dims), false, no_output_padding, groups, {false, true, false}));
}

at::Tensor conv_grad_bias(const at::Tensor& grad_output) {
  c10::SmallVector<int64_t, kAxes + 2> dims = {0};
  for (int64_t d = 2; d < grad_output.dim(); ++d) dims.push_back(d);
  return grad_output.sum(dims);
}

TORCH_LIBRARY_IMPL(cnnext, FuncTorchBatched, m) {
  m.impl("conv", conv);
  m.impl("conv_grad_input", conv_grad_input);
  m.impl("conv_grad_weight", conv_grad_weight);
  m.impl("conv_grad_bias", conv_grad_bias);
}

}  // namespace cnnext::ops::aten
