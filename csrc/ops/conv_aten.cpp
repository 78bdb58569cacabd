// Convolution by ATen: what vmap, torch.func, forward-mode differentiation and foreign element types are left
// to.
#include <ATen/ops/conv1d.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/conv3d.h>
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

at::Tensor recorded(const char* op, const char* reason, at::Tensor result) {
  if (reason) record_fallback(op, reason);
  return result;
}

}  // namespace

at::Tensor conv(const char* reason, const at::Tensor& input, const at::Tensor& weight,
                const OptionalTensor& bias, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                c10::SymIntArrayRef dilation, c10::SymInt groups) {
  // Not at::convolution, which knows no complex numbers and lets a bias of another type pass.
  const auto by_dims = [&] {
    switch (weight.dim()) {
      case 3:
        return at::conv1d_symint(input, weight, bias, stride, padding, dilation, groups);
      case 4:
        return at::conv2d_symint(input, weight, bias, stride, padding, dilation, groups);
      default:
        return at::conv3d_symint(input, weight, bias, stride, padding, dilation, groups);
    }
  };
  return recorded("conv", reason, by_dims());
}

at::Tensor conv_grad_input(const char* reason, const at::Tensor& grad_output, const at::Tensor& weight,
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
  at::Tensor input = at::convolution_symint(grad_output, weight, bias, s, p, d, true, output_padding, groups);
  return recorded("conv_grad_input", reason, std::move(input));
}

at::Tensor conv_grad_weight(const char* reason, const at::Tensor& grad_output, const at::Tensor& input,
                            c10::SymIntArrayRef kernel_size, c10::SymIntArrayRef stride,
                            c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, c10::SymInt groups,
                            bool channels_last) {
  TORCH_CHECK(groups > 0, "conv_grad_weight: expected positive groups, but got ", groups);
  const size_t dims = kernel_size.size();
  c10::SmallVector<c10::SymInt, kAxes + 2> size = {grad_output.sym_size(1), input.sym_size(1) / groups};
  size.append(kernel_size.begin(), kernel_size.end());
  const auto layout = channels_last ? Layout::kChannelsLast : Layout::kChannelsFirst;
  const at::Tensor weight =  // only its size and format are read
      input.new_empty_symint(size).contiguous(memory_format(layout, int64_t(dims) + 2));
  const SymInts no_output_padding(dims, 0);
  at::Tensor gradient = std::get<1>(at::convolution_backward_symint(
      grad_output, input, weight, std::nullopt, expanded(stride, dims), expanded(padding, dims),
      expanded(dilation, dims), false, no_output_padding, groups, {false, true, false}));
  return recorded("conv_grad_weight", reason, std::move(gradient));
}

at::Tensor conv_grad_bias(const char* reason, const at::Tensor& grad_output) {
  c10::SmallVector<int64_t, kAxes + 2> dims = {0};
  for (int64_t d = 2; d < grad_output.dim(); ++d) dims.push_back(d);
  return recorded("conv_grad_bias", reason, grad_output.sum(dims));
}

namespace {

// The operator's own signature, under vmap.
template <auto Op>
struct Batched;
template <class Result, class... Args, Result (*Op)(const char*, Args...)>
struct Batched<Op> {
  static Result run(Args... args) { return Op("vmap", args...); }
};

}  // namespace

TORCH_LIBRARY_IMPL(cnnext, FuncTorchBatched, m) {
  m.impl("conv", Batched<&conv>::run);
  m.impl("conv_grad_input", Batched<&conv_grad_input>::run);
  m.impl("conv_grad_weight", Batched<&conv_grad_weight>::run);
  m.impl("conv_grad_bias", Batched<&conv_grad_bias>::run);
}

}  // namespace cnnext::ops::aten
