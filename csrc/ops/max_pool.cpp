// Max pooling, its window offsets and indices, and its gradient.
#include "pool_windows.h"

namespace cnnext::ops {
namespace {

template <class Int>
at::Tensor run_max(const Pool<Int>& pool, const at::Tensor& input) {
  const Layout layout = layout_of(input);
  const at::Tensor output = new_tensor<Int>(pool.output, input.options(), layout);
  if constexpr (kRuns<Int>) {
    const at::Tensor source = laid_out(input, layout);
    launch("max_pool", CNNEXT_LIST(max_pool), problem_of(pool, input.scalar_type(), layout),
           {data(source), data(output)}, output);
  }
  return output;
}

template <class Int>
TensorPair run_max_with_offsets(const char* op, const Pool<Int>& pool, const at::Tensor& input) {
  TORCH_CHECK(element_type(input.scalar_type()), op, ": not implemented for ", input.scalar_type());
  const Layout layout = layout_of(input);
  const at::Tensor output = new_tensor<Int>(pool.output, input.options(), layout);
  const at::Tensor offsets = new_tensor<Int>(pool.output, input.options().dtype(pool.offset_type()), layout);
  if constexpr (kRuns<Int>) {
    const at::Tensor source = laid_out(input, layout);
    launch("max_pool_with_offsets", CNNEXT_LIST(max_pool_with_offsets),
           problem_of(pool, input.scalar_type(), layout), {data(source), data(output), data(offsets)},
           output);
  }
  return {output, offsets};
}

template <class Int>
at::Tensor run_indices(const Pool<Int>& pool, const at::Tensor& offsets) {
  TORCH_CHECK(pool.takes_offsets(offsets.scalar_type()), "max_pool_indices: expected offsets of type ",
              pool.offset_type(), ", but got ", offsets.scalar_type());
  const Layout layout = layout_of(offsets);
  const at::Tensor indices = new_tensor<Int>(pool.output, offsets.options().dtype(at::kLong), layout);
  if constexpr (kRuns<Int>) {
    const at::Tensor source = laid_out(offsets, layout);
    PoolBuffers buffers;
    buffers.offsets = data(source);
    buffers.indices = indices.mutable_data_ptr<int64_t>();
    launch("max_pool_indices", CNNEXT_LIST(max_pool_indices), problem_of(pool, at::kFloat, layout), buffers,
           indices);
  }
  return indices;
}

template <class Int>
TensorPair run_max_with_indices(const char* op, const Pool<Int>& pool, const at::Tensor& input) {
  const auto [output, offsets] = run_max_with_offsets<Int>(op, pool, input);
  return {output, run_indices<Int>(pool, offsets)};
}

template <class Int, class Ints = c10::ArrayRef<Int>>
at::Tensor max_pool_kernel(const at::Tensor& input, Ints kernel_size, Ints stride, Ints padding,
                           Ints dilation, bool ceil_mode) {
  check_input("max_pool", input);
  const Pool<Int> pool(sizes<Int>(input), kernel_size, stride, padding, dilation, ceil_mode);
  // torch's own error where the arguments are invalid
  if (const char* reason = refused(input, pool.valid())) {
    return aten::max_pool(reason, input, symbols(kernel_size), symbols(stride), symbols(padding),
                          symbols(dilation), ceil_mode);
  }
  return run_max(pool, input);
}

template <class Int, class Ints = c10::ArrayRef<Int>>
TensorPair max_pool_with_indices_kernel(const at::Tensor& input, Ints kernel_size, Ints stride, Ints padding,
                                        Ints dilation, bool ceil_mode) {
  check_input("max_pool_with_indices", input);
  const Pool<Int> pool(sizes<Int>(input), kernel_size, stride, padding, dilation, ceil_mode);
  if (const char* reason = refused(input, pool.valid())) {
    return aten::max_pool_with_indices(reason, input, symbols(kernel_size), symbols(stride), symbols(padding),
                                       symbols(dilation), ceil_mode);
  }
  return run_max_with_indices<Int>("max_pool_with_indices", pool, input);
}

template <class Int, class Ints = c10::ArrayRef<Int>>
TensorPair max_pool_with_offsets_kernel(const at::Tensor& input, Ints kernel_size, Ints stride, Ints padding,
                                        Ints dilation, bool ceil_mode) {
  check_input("max_pool_with_offsets", input);
  const Pool<Int> pool(sizes<Int>(input), kernel_size, stride, padding, dilation, ceil_mode);
  if (!pool.valid()) {
    aten::max_pool(nullptr, input, symbols(kernel_size), symbols(stride), symbols(padding), symbols(dilation),
                   ceil_mode);
    TORCH_CHECK(false, "max_pool_with_offsets: ", Pool<Int>::windows(kernel_size, stride, padding, dilation),
                " do not fit an input of size ", input.sym_sizes());
  }
  return run_max_with_offsets<Int>("max_pool_with_offsets", pool, input);
}

template <class Int, class Ints = c10::ArrayRef<Int>>
at::Tensor adaptive_max_pool_kernel(const at::Tensor& input, Ints output_size) {
  check_input("adaptive_max_pool", input);
  const Pool<Int> pool(sizes<Int>(input), output_size);
  if (const char* reason = refused(input, pool.valid())) {
    return aten::adaptive_max_pool(reason, input, symbols(output_size));
  }
  return run_max(pool, input);
}

template <class Int, class Ints = c10::ArrayRef<Int>>
TensorPair adaptive_max_pool_with_indices_kernel(const at::Tensor& input, Ints output_size) {
  check_input("adaptive_max_pool_with_indices", input);
  const Pool<Int> pool(sizes<Int>(input), output_size);
  if (const char* reason = refused(input, pool.valid())) {
    return aten::adaptive_max_pool_with_indices(reason, input, symbols(output_size));
  }
  return run_max_with_indices<Int>("adaptive_max_pool_with_indices", pool, input);
}

template <class Int, class Ints = c10::ArrayRef<Int>>
TensorPair adaptive_max_pool_with_offsets_kernel(const at::Tensor& input, Ints output_size) {
  check_input("adaptive_max_pool_with_offsets", input);
  const Pool<Int> pool(sizes<Int>(input), output_size);
  if (!pool.valid()) {
    aten::adaptive_max_pool(nullptr, input, symbols(output_size));
    TORCH_CHECK(false, "adaptive_max_pool_with_offsets: an output_size of ", output_size,
                " does not fit an input of size ", input.sym_sizes());
  }
  return run_max_with_offsets<Int>("adaptive_max_pool_with_offsets", pool, input);
}

template <class Int, class Ints = c10::ArrayRef<Int>>
at::Tensor max_pool_indices_kernel(const at::Tensor& offsets, Ints input_size, Ints kernel_size, Ints stride,
                                   Ints padding, Ints dilation) {
  check_input("max_pool_indices", offsets);
  return run_indices<Int>(Pool<Int>::of_result("max_pool_indices", sizes<Int>(offsets), input_size,
                                               kernel_size, stride, padding, dilation),
                          offsets);
}

template <class Int>
void check_offsets(const char* op, const Pool<Int>& pool, const at::Tensor& values,
                   const at::Tensor& offsets) {
  TORCH_CHECK(element_type(values.scalar_type()), op, ": not implemented for ", values.scalar_type());
  TORCH_CHECK(offsets.device() == values.device(), op, ": expected all tensors on one device, but got ",
              values.device(), " and ", offsets.device());
  TORCH_CHECK(pool.takes_offsets(offsets.scalar_type()) && sizes<Int>(offsets).equals(pool.output), op,
              ": expected offsets of type ", pool.offset_type(), " and size ",
              c10::ArrayRef<Int>(pool.output), ", but got ", offsets.scalar_type(), " ", offsets.sym_sizes());
}

template <class Int, class Ints = c10::ArrayRef<Int>>
at::Tensor max_pool_grad_input_kernel(const at::Tensor& grad_output, const at::Tensor& offsets,
                                      Ints input_size, Ints kernel_size, Ints stride, Ints padding,
                                      Ints dilation, bool channels_last) {
  const auto pool = Pool<Int>::of_result("max_pool_grad_input", sizes<Int>(grad_output), input_size,
                                         kernel_size, stride, padding, dilation);
  check_offsets("max_pool_grad_input", pool, grad_output, offsets);
  const Layout layout = last_if(channels_last, grad_output.dim());
  const at::Tensor grad_input = new_tensor<Int>(pool.input, grad_output.options(), layout);
  if constexpr (kRuns<Int>) {
    if (grad_output.numel() == 0) return grad_input.zero_();
    const at::Tensor from = laid_out(grad_output, layout), where = laid_out(offsets, layout);
    launch("max_pool_grad_input", CNNEXT_LIST(max_pool_grad_input),
           problem_of(pool, from.scalar_type(), layout), {data(grad_input), data(from), data(where)},
           grad_input);
  }
  return grad_input;
}

template <class Int, class Ints = c10::ArrayRef<Int>>
at::Tensor max_pool_select_kernel(const at::Tensor& input, const at::Tensor& offsets, Ints kernel_size,
                                  Ints stride, Ints padding, Ints dilation) {
  check_input("max_pool_select", input);
  const auto pool = Pool<Int>::of_result("max_pool_select", sizes<Int>(offsets), sizes<Int>(input).slice(2),
                                         kernel_size, stride, padding, dilation);
  TORCH_CHECK(sizes<Int>(input).equals(pool.input), "max_pool_select: expected an input of size ",
              c10::ArrayRef<Int>(pool.input), ", but got ", input.sym_sizes());
  check_offsets("max_pool_select", pool, input, offsets);
  const Layout layout = layout_of(input);
  const at::Tensor output = new_tensor<Int>(pool.output, input.options(), layout);
  if constexpr (kRuns<Int>) {
    const at::Tensor from = laid_out(input, layout), where = laid_out(offsets, layout);
    launch("max_pool_select", CNNEXT_LIST(max_pool_select), problem_of(pool, from.scalar_type(), layout),
           {data(from), data(output), data(where)}, output);
  }
  return output;
}

}  // namespace

template <class Int>
void implement_max_pool(torch::Library& m) {
  m.impl("max_pool", max_pool_kernel<Int>);
  m.impl("max_pool_with_indices", max_pool_with_indices_kernel<Int>);
  m.impl("max_pool_with_offsets", max_pool_with_offsets_kernel<Int>);
  m.impl("adaptive_max_pool", adaptive_max_pool_kernel<Int>);
  m.impl("adaptive_max_pool_with_indices", adaptive_max_pool_with_indices_kernel<Int>);
  m.impl("adaptive_max_pool_with_offsets", adaptive_max_pool_with_offsets_kernel<Int>);
  m.impl("max_pool_indices", max_pool_indices_kernel<Int>);
  m.impl("max_pool_grad_input", max_pool_grad_input_kernel<Int>);
  m.impl("max_pool_select", max_pool_select_kernel<Int>);
}
template void implement_max_pool<int64_t>(torch::Library&);
template void implement_max_pool<c10::SymInt>(torch::Library&);

}  // namespace cnnext::ops
