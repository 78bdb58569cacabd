// The pooling operators as C++ calls: through the dispatcher.
#include "dispatch.h"
#include "pool.h"

namespace cnnext::ops {

at::Tensor max_pool(const at::Tensor& input, SymInts kernel_size, SymInts stride, SymInts padding,
                    SymInts dilation, bool ceil_mode) {
  CNNEXT_OP(max_pool);
  return op.call(input, kernel_size, stride, padding, dilation, ceil_mode);
}
TensorPair max_pool_with_indices(const at::Tensor& input, SymInts kernel_size, SymInts stride,
                                 SymInts padding, SymInts dilation, bool ceil_mode) {
  CNNEXT_OP(max_pool_with_indices);
  return op.call(input, kernel_size, stride, padding, dilation, ceil_mode);
}
TensorPair max_pool_with_offsets(const at::Tensor& input, SymInts kernel_size, SymInts stride,
                                 SymInts padding, SymInts dilation, bool ceil_mode) {
  CNNEXT_OP(max_pool_with_offsets);
  return op.call(input, kernel_size, stride, padding, dilation, ceil_mode);
}
at::Tensor adaptive_max_pool(const at::Tensor& input, SymInts output_size) {
  CNNEXT_OP(adaptive_max_pool);
  return op.call(input, output_size);
}
TensorPair adaptive_max_pool_with_indices(const at::Tensor& input, SymInts output_size) {
  CNNEXT_OP(adaptive_max_pool_with_indices);
  return op.call(input, output_size);
}
TensorPair adaptive_max_pool_with_offsets(const at::Tensor& input, SymInts output_size) {
  CNNEXT_OP(adaptive_max_pool_with_offsets);
  return op.call(input, output_size);
}
at::Tensor max_pool_indices(const at::Tensor& offsets, SymInts input_size, SymInts kernel_size,
                            SymInts stride, SymInts padding, SymInts dilation) {
  CNNEXT_OP(max_pool_indices);
  return op.call(offsets, input_size, kernel_size, stride, padding, dilation);
}
at::Tensor max_pool_grad_input(const at::Tensor& grad_output, const at::Tensor& offsets, SymInts input_size,
                               SymInts kernel_size, SymInts stride, SymInts padding, SymInts dilation,
                               bool channels_last) {
  CNNEXT_OP(max_pool_grad_input);
  return op.call(grad_output, offsets, input_size, kernel_size, stride, padding, dilation, channels_last);
}
at::Tensor max_pool_select(const at::Tensor& input, const at::Tensor& offsets, SymInts kernel_size,
                           SymInts stride, SymInts padding, SymInts dilation) {
  CNNEXT_OP(max_pool_select);
  return op.call(input, offsets, kernel_size, stride, padding, dilation);
}
at::Tensor avg_pool(const at::Tensor& input, SymInts kernel_size, SymInts stride, SymInts padding,
                    bool ceil_mode, bool count_include_pad, OptionalSymInt divisor_override) {
  CNNEXT_OP(avg_pool);
  return op.call(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override);
}
at::Tensor avg_pool_grad_input(const at::Tensor& grad_output, SymInts input_size, SymInts kernel_size,
                               SymInts stride, SymInts padding, bool ceil_mode, bool count_include_pad,
                               OptionalSymInt divisor_override, bool channels_last) {
  CNNEXT_OP(avg_pool_grad_input);
  return op.call(grad_output, input_size, kernel_size, stride, padding, ceil_mode, count_include_pad,
                 divisor_override, channels_last);
}
at::Tensor adaptive_avg_pool(const at::Tensor& input, SymInts output_size) {
  CNNEXT_OP(adaptive_avg_pool);
  return op.call(input, output_size);
}
at::Tensor adaptive_avg_pool_grad_input(const at::Tensor& grad_output, SymInts input_size,
                                        bool channels_last) {
  CNNEXT_OP(adaptive_avg_pool_grad_input);
  return op.call(grad_output, input_size, channels_last);
}
at::Tensor max_unpool(const at::Tensor& input, const at::Tensor& indices, SymInts output_size) {
  CNNEXT_OP(max_unpool);
  return op.call(input, indices, output_size);
}
at::Tensor max_unpool_grad_input(const at::Tensor& grad_output, const at::Tensor& indices,
                                 bool channels_last) {
  CNNEXT_OP(max_unpool_grad_input);
  return op.call(grad_output, indices, channels_last);
}

}  // namespace cnnext::ops
