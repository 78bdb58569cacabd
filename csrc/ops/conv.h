// The operators of convolution, as C++ calls that go through the dispatcher.
#pragma once

#include "common.h"

namespace cnnext::ops {

at::Tensor conv(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias, SymInts stride,
                SymInts padding, SymInts dilation, c10::SymInt groups);

// activation(conv(...) + residual): none, relu, relu6 or leaky_relu.
at::Tensor fused_conv(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                      const OptionalTensor& residual, SymInts stride, SymInts padding, SymInts dilation,
                      c10::SymInt groups, c10::string_view activation, double negative_slope);

// The same by operators one after the other: where a gradient is wanted, or the kernels have no epilogue.
at::Tensor fused_conv_in_steps(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                               const OptionalTensor& residual, SymInts stride, SymInts padding,
                               SymInts dilation, c10::SymInt groups, c10::string_view activation,
                               double negative_slope);

// input_size: spatial extents of the result. Also transposed convolution, then with a bias.
at::Tensor conv_grad_input(const at::Tensor& grad_output, const at::Tensor& weight,
                           const OptionalTensor& bias, SymInts input_size, SymInts stride, SymInts padding,
                           SymInts dilation, c10::SymInt groups);

// Composed of conv_grad_input; itself no call through the dispatcher.
at::Tensor conv_transpose(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                          SymInts stride, SymInts padding, SymInts output_padding, c10::SymInt groups,
                          SymInts dilation);

// Composed of conv; itself no call through the dispatcher.
at::Tensor linear(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias);

at::Tensor conv_grad_weight(const at::Tensor& grad_output, const at::Tensor& input, SymInts kernel_size,
                            SymInts stride, SymInts padding, SymInts dilation, c10::SymInt groups,
                            bool channels_last);

at::Tensor conv_grad_bias(const at::Tensor& grad_output);

// The problem of an operator as the kernels see it; sizes of the forward convolution. An error where there is
// none.
ConvProblem conv_problem(const std::string& op, at::IntArrayRef input, at::IntArrayRef weight,
                         at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                         int64_t groups, at::ScalarType type, Layout layout, Layout weight_layout);

// The same by ATen, for what is not ours; differentiable in every mode. The reason is recorded, unless it is
// null.
namespace aten {
at::Tensor conv(const char* reason, const at::Tensor& input, const at::Tensor& weight,
                const OptionalTensor& bias, SymInts stride, SymInts padding, SymInts dilation,
                c10::SymInt groups);
at::Tensor conv_transpose(const char* reason, const at::Tensor& input, const at::Tensor& weight,
                          const OptionalTensor& bias, SymInts stride, SymInts padding, SymInts output_padding,
                          c10::SymInt groups, SymInts dilation);
at::Tensor conv_grad_input(const char* reason, const at::Tensor& grad_output, const at::Tensor& weight,
                           const OptionalTensor& bias, SymInts input_size, SymInts stride, SymInts padding,
                           SymInts dilation, c10::SymInt groups);
at::Tensor conv_grad_weight(const char* reason, const at::Tensor& grad_output, const at::Tensor& input,
                            SymInts kernel_size, SymInts stride, SymInts padding, SymInts dilation,
                            c10::SymInt groups, bool channels_last);
at::Tensor conv_grad_bias(const char* reason, const at::Tensor& grad_output);
at::Tensor linear(const char* reason, const at::Tensor& input, const at::Tensor& weight,
                  const OptionalTensor& bias);
}  // namespace aten

}  // namespace cnnext::ops
