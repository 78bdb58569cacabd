// Convolution by ATen: what vmap, torch.func, forward-mode differentiation and foreign element types are left
// to.
#include <ATen/ops/conv1d.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/conv3d.h>
#include <ATen/ops/conv_transpose1d.h>
#include <ATen/ops/conv_transpose2d.h>
#include <ATen/ops/conv_transpose3d.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/linear.h>
#include <torch/library.h>

#include "conv.h"
#include "dispatch.h"

namespace cnnext::ops::aten {
namespace {

using Symbols = PerAxis<c10::SymInt>;

// Axes of a forward convolution, for which torch checks the lists. It is given a number for each, as from
// Python: vmap's rule for a bias counts them.
size_t axes_of(const at::Tensor& weight) { return std::max<int64_t>(weight.dim() - 2, 1); }

// A gradient's lists are checked here.
Symbols checked_per_axis(const char* op, const char* what, SymInts list, size_t dims) {
  TORCH_CHECK(list.size() == dims || list.size() == 1, op, ": expected ", what, " of 1 or ", dims,
              " numbers, but got ", list);
  return per_axis(list, dims);
}

}  // namespace

at::Tensor conv(const char* reason, const at::Tensor& input, const at::Tensor& weight,
                const OptionalTensor& bias, SymInts stride, SymInts padding, SymInts dilation,
                c10::SymInt groups) {
  const size_t dims = axes_of(weight);
  const Symbols s = per_axis(stride, dims), p = per_axis(padding, dims), d = per_axis(dilation, dims);
  // Not at::convolution, which knows no complex numbers and lets a bias of another type pass.
  const auto by_dims = [&] {
    switch (weight.dim()) {
      case 3:
        return at::conv1d_symint(input, weight, bias, s, p, d, groups);
      case 4:
        return at::conv2d_symint(input, weight, bias, s, p, d, groups);
      default:
        return at::conv3d_symint(input, weight, bias, s, p, d, groups);
    }
  };
  return recorded("conv", reason, by_dims());
}

at::Tensor conv_transpose(const char* reason, const at::Tensor& input, const at::Tensor& weight,
                          const OptionalTensor& bias, SymInts stride, SymInts padding, SymInts output_padding,
                          c10::SymInt groups, SymInts dilation) {
  const size_t dims = axes_of(weight);
  const Symbols s = per_axis(stride, dims), p = per_axis(padding, dims), o = per_axis(output_padding, dims),
                d = per_axis(dilation, dims);
  const auto by_dims = [&] {
    switch (weight.dim()) {
      case 3:
        return at::conv_transpose1d_symint(input, weight, bias, s, p, o, groups, d);
      case 4:
        return at::conv_transpose2d_symint(input, weight, bias, s, p, o, groups, d);
      default:
        return at::conv_transpose3d_symint(input, weight, bias, s, p, o, groups, d);
    }
  };
  return recorded("conv_transpose", reason, by_dims());
}

at::Tensor conv_grad_input(const char* reason, const at::Tensor& grad_output, const at::Tensor& weight,
                           const OptionalTensor& bias, SymInts input_size, SymInts stride, SymInts padding,
                           SymInts dilation, c10::SymInt groups) {
  const size_t dims = input_size.size();
  TORCH_CHECK(weight.dim() == int64_t(dims) + 2 && grad_output.dim() == weight.dim(),
              "conv_grad_input: expected ", dims + 2,
              "-dimensional grad_output and weight for an input_size of ", dims, " values, but got ",
              grad_output.dim(), " and ", weight.dim(), " dimensions");
  const char* op = "conv_grad_input";
  const Symbols s = checked_per_axis(op, "a stride", stride, dims),
                p = checked_per_axis(op, "a padding", padding, dims),
                d = checked_per_axis(op, "a dilation", dilation, dims);
  Symbols output_padding;
  for (size_t i = 0; i < dims; ++i) {
    const c10::SymInt smallest =
        (grad_output.sym_size(i + 2) - 1) * s[i] - p[i] * 2 + d[i] * (weight.sym_size(i + 2) - 1) + 1;
    output_padding.push_back(input_size[i] - smallest);
  }
  return recorded(op, reason,
                  at::convolution_symint(grad_output, weight, bias, s, p, d, true, output_padding, groups));
}

at::Tensor conv_grad_weight(const char* reason, const at::Tensor& grad_output, const at::Tensor& input,
                            SymInts kernel_size, SymInts stride, SymInts padding, SymInts dilation,
                            c10::SymInt groups, bool channels_last) {
  TORCH_CHECK(groups > 0, "conv_grad_weight: expected positive groups, but got ", groups);
  const size_t dims = kernel_size.size();
  Sizes<c10::SymInt> size = {grad_output.sym_size(1), input.sym_size(1) / groups};
  size.append(kernel_size.begin(), kernel_size.end());
  const Layout layout = last_if(channels_last, int64_t(dims) + 2);
  const at::Tensor weight =  // only its size and format are read
      input.new_empty_symint(size).contiguous(memory_format(layout, int64_t(dims) + 2));
  const char* op = "conv_grad_weight";
  const Symbols s = checked_per_axis(op, "a stride", stride, dims),
                p = checked_per_axis(op, "a padding", padding, dims),
                d = checked_per_axis(op, "a dilation", dilation, dims);
  const Symbols no_output_padding(dims, 0);
  at::Tensor grad_weight =
      std::get<1>(at::convolution_backward_symint(grad_output, input, weight, std::nullopt, s, p, d, false,
                                                  no_output_padding, groups, {false, true, false}));
  return recorded(op, reason, std::move(grad_weight));
}

at::Tensor conv_grad_bias(const char* reason, const at::Tensor& grad_output) {
  Sizes<int64_t> dims = {0};
  for (int64_t d = 2; d < grad_output.dim(); ++d) dims.push_back(d);
  return recorded("conv_grad_bias", reason, grad_output.sum(dims));
}

at::Tensor linear(const char* reason, const at::Tensor& input, const at::Tensor& weight,
                  const OptionalTensor& bias) {
  return recorded("linear", reason, at::linear(input, weight, bias));
}

TORCH_LIBRARY_IMPL(cnnext, FuncTorchBatched, m) {
  m.impl("conv", Batched<&conv>::run);
  m.impl("conv_transpose", Batched<&conv_transpose>::run);
  m.impl("conv_grad_input", Batched<&conv_grad_input>::run);
  m.impl("conv_grad_weight", Batched<&conv_grad_weight>::run);
  m.impl("conv_grad_bias", Batched<&conv_grad_bias>::run);
  m.impl("linear", Batched<&linear>::run);
}

}  // namespace cnnext::ops::aten
