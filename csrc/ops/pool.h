// The operators of pooling, as C++ calls that go through the dispatcher.
//
// Where the windows of a gradient or of stored offsets are described, an empty kernel_size means adaptive
// windows.
#pragma once

#include "common.h"

namespace cnnext::ops {

using TensorPair = std::tuple<at::Tensor, at::Tensor>;
using OptionalSymInt = std::optional<c10::SymInt>;

at::Tensor max_pool(const at::Tensor& input, SymInts kernel_size, SymInts stride, SymInts padding,
                    SymInts dilation, bool ceil_mode);
TensorPair max_pool_with_indices(const at::Tensor& input, SymInts kernel_size, SymInts stride,
                                 SymInts padding, SymInts dilation, bool ceil_mode);
// offsets: for each output the number of the window's tap that it was read by, uint8 where that is enough,
// else int32.
TensorPair max_pool_with_offsets(const at::Tensor& input, SymInts kernel_size, SymInts stride,
                                 SymInts padding, SymInts dilation, bool ceil_mode);
at::Tensor adaptive_max_pool(const at::Tensor& input, SymInts output_size);
TensorPair adaptive_max_pool_with_indices(const at::Tensor& input, SymInts output_size);
TensorPair adaptive_max_pool_with_offsets(const at::Tensor& input, SymInts output_size);

// int64, flat in the plane of input_size.
at::Tensor max_pool_indices(const at::Tensor& offsets, SymInts input_size, SymInts kernel_size,
                            SymInts stride, SymInts padding, SymInts dilation);
// The gradient of maxima, and its transpose, which picks from a tensor of the input's size what the maxima
// came from.
at::Tensor max_pool_grad_input(const at::Tensor& grad_output, const at::Tensor& offsets, SymInts input_size,
                               SymInts kernel_size, SymInts stride, SymInts padding, SymInts dilation,
                               bool channels_last);
at::Tensor max_pool_select(const at::Tensor& input, const at::Tensor& offsets, SymInts kernel_size,
                           SymInts stride, SymInts padding, SymInts dilation);

at::Tensor avg_pool(const at::Tensor& input, SymInts kernel_size, SymInts stride, SymInts padding,
                    bool ceil_mode, bool count_include_pad, OptionalSymInt divisor_override);
at::Tensor avg_pool_grad_input(const at::Tensor& grad_output, SymInts input_size, SymInts kernel_size,
                               SymInts stride, SymInts padding, bool ceil_mode, bool count_include_pad,
                               OptionalSymInt divisor_override, bool channels_last);
at::Tensor adaptive_avg_pool(const at::Tensor& input, SymInts output_size);
at::Tensor adaptive_avg_pool_grad_input(const at::Tensor& grad_output, SymInts input_size,
                                        bool channels_last);

at::Tensor max_unpool(const at::Tensor& input, const at::Tensor& indices, SymInts output_size);
at::Tensor max_unpool_grad_input(const at::Tensor& grad_output, const at::Tensor& indices,
                                 bool channels_last);

// Whether these windows fit the input.
bool pool_fits(const at::Tensor& input, SymInts kernel_size, SymInts stride, SymInts padding,
               SymInts dilation, bool ceil_mode);

// The problem of an operator as the kernels see it. An error where there is none.
PoolProblem pool_problem(const std::string& op, at::IntArrayRef input, at::IntArrayRef output,
                         at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                         at::IntArrayRef dilation, at::ScalarType type, Layout layout);

// The same by ATen, for what is not ours; differentiable in every mode. The reason is recorded, unless it is
// null.
namespace aten {
at::Tensor max_pool(const char* reason, const at::Tensor& input, SymInts kernel_size, SymInts stride,
                    SymInts padding, SymInts dilation, bool ceil_mode);
TensorPair max_pool_with_indices(const char* reason, const at::Tensor& input, SymInts kernel_size,
                                 SymInts stride, SymInts padding, SymInts dilation, bool ceil_mode);
at::Tensor adaptive_max_pool(const char* reason, const at::Tensor& input, SymInts output_size);
TensorPair adaptive_max_pool_with_indices(const char* reason, const at::Tensor& input, SymInts output_size);
at::Tensor max_pool_indices(const char* reason, const at::Tensor& offsets, SymInts input_size,
                            SymInts kernel_size, SymInts stride, SymInts padding, SymInts dilation);
at::Tensor max_pool_grad_input(const char* reason, const at::Tensor& grad_output, const at::Tensor& offsets,
                               SymInts input_size, SymInts kernel_size, SymInts stride, SymInts padding,
                               SymInts dilation, bool channels_last);
at::Tensor max_pool_select(const char* reason, const at::Tensor& input, const at::Tensor& offsets,
                           SymInts kernel_size, SymInts stride, SymInts padding, SymInts dilation);
at::Tensor avg_pool(const char* reason, const at::Tensor& input, SymInts kernel_size, SymInts stride,
                    SymInts padding, bool ceil_mode, bool count_include_pad, OptionalSymInt divisor_override);
at::Tensor avg_pool_grad_input(const char* reason, const at::Tensor& grad_output, SymInts input_size,
                               SymInts kernel_size, SymInts stride, SymInts padding, bool ceil_mode,
                               bool count_include_pad, OptionalSymInt divisor_override, bool channels_last);
at::Tensor adaptive_avg_pool(const char* reason, const at::Tensor& input, SymInts output_size);
at::Tensor adaptive_avg_pool_grad_input(const char* reason, const at::Tensor& grad_output, SymInts input_size,
                                        bool channels_last);
at::Tensor max_unpool(const char* reason, const at::Tensor& input, const at::Tensor& indices,
                      SymInts output_size);
at::Tensor max_unpool_grad_input(const char* reason, const at::Tensor& grad_output, const at::Tensor& indices,
                                 bool channels_last);
}  // namespace aten

}  // namespace cnnext::ops
