// The operators of convolution as C++ calls: through the dispatcher.
#include "conv.h"
#include "dispatch.h"

namespace cnnext::ops {

at::Tensor conv(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias, SymInts stride,
                SymInts padding, SymInts dilation, c10::SymInt groups) {
  CNNEXT_OP(conv);
  return op.call(input, weight, bias, stride, padding, dilation, groups);
}
at::Tensor fused_conv(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                      const OptionalTensor& residual, SymInts stride, SymInts padding, SymInts dilation,
                      c10::SymInt groups, c10::string_view activation, double negative_slope) {
  CNNEXT_OP(fused_conv);
  return op.call(input, weight, bias, residual, stride, padding, dilation, groups, activation,
                 negative_slope);
}
at::Tensor conv_grad_input(const at::Tensor& grad_output, const at::Tensor& weight,
                           const OptionalTensor& bias, SymInts input_size, SymInts stride, SymInts padding,
                           SymInts dilation, c10::SymInt groups) {
  CNNEXT_OP(conv_grad_input);
  return op.call(grad_output, weight, bias, input_size, stride, padding, dilation, groups);
}
at::Tensor conv_grad_weight(const at::Tensor& grad_output, const at::Tensor& input, SymInts kernel_size,
                            SymInts stride, SymInts padding, SymInts dilation, c10::SymInt groups,
                            bool channels_last) {
  CNNEXT_OP(conv_grad_weight);
  return op.call(grad_output, input, kernel_size, stride, padding, dilation, groups, channels_last);
}
at::Tensor conv_grad_bias(const at::Tensor& grad_output) {
  CNNEXT_OP(conv_grad_bias);
  return op.call(grad_output);
}

}  // namespace cnnext::ops
