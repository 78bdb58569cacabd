// Pooling by ATen: what vmap, torch.func, forward-mode differentiation and foreign element types are left to,
// and what raises torch's errors.
#include <ATen/TensorOperators.h>
#include <ATen/ops/_adaptive_avg_pool2d_backward.h>
#include <ATen/ops/_adaptive_avg_pool3d_backward.h>
#include <ATen/ops/adaptive_avg_pool1d.h>
#include <ATen/ops/adaptive_avg_pool2d.h>
#include <ATen/ops/adaptive_avg_pool3d.h>
#include <ATen/ops/adaptive_max_pool1d.h>
#include <ATen/ops/adaptive_max_pool2d.h>
#include <ATen/ops/adaptive_max_pool3d.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/avg_pool1d.h>
#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/avg_pool2d_backward.h>
#include <ATen/ops/avg_pool3d.h>
#include <ATen/ops/avg_pool3d_backward.h>
#include <ATen/ops/max_pool1d.h>
#include <ATen/ops/max_pool1d_with_indices.h>
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/max_pool2d_with_indices.h>
#include <ATen/ops/max_pool3d.h>
#include <ATen/ops/max_pool3d_with_indices.h>
#include <ATen/ops/max_unpool2d.h>
#include <ATen/ops/max_unpool3d.h>
#include <torch/library.h>

#include "dispatch.h"
#include "pool.h"

namespace cnnext::ops::aten {
namespace {

using Numbers = PerAxis<int64_t>;

// Most of ATen's pooling takes no symbols: sizes become fixed there.
Numbers numbers(SymInts list) {
  Numbers all;
  for (const c10::SymInt& each : list) all.push_back(each.guard_int(__FILE__, __LINE__));
  return all;
}
Numbers expanded(SymInts list, size_t dims, int64_t otherwise) {
  return list.empty() ? Numbers(dims, otherwise) : per_axis<int64_t>(numbers(list), dims);
}

// Calls the function for the number of spatial dimensions.
template <class F1, class F2, class F3>
auto by_dims(const char* op, const at::Tensor& input, const F1& f1, const F2& f2, const F3& f3) {
  switch (input.dim()) {
    case 3:
      return f1();
    case 4:
      return f2();
    case 5:
      return f3();
    default:
      TORCH_CHECK(false, op, ": expected a batched input of 3 to 5 dimensions, but got one of size ",
                  input.sym_sizes());
  }
}

// Adds each gradient to the input that its index names.
at::Tensor spread(const at::Tensor& grad_output, const at::Tensor& indices, SymInts input_size) {
  Sizes<c10::SymInt> size = {grad_output.sym_size(0), grad_output.sym_size(1)};
  c10::SymInt pixels = 1;
  for (const c10::SymInt& each : input_size) pixels = pixels * each;
  const at::Tensor zeros = grad_output.new_zeros_symint({size[0], size[1], pixels});
  size.append(input_size.begin(), input_size.end());
  return zeros.scatter_add(2, indices.flatten(2), grad_output.flatten(2)).view_symint(size);
}

}  // namespace

at::Tensor max_pool(const char* reason, const at::Tensor& input, SymInts kernel_size, SymInts stride,
                    SymInts padding, SymInts dilation, bool ceil_mode) {
  const Numbers k = numbers(kernel_size), s = numbers(stride), p = numbers(padding), d = numbers(dilation);
  return recorded("max_pool", reason,
                  by_dims(
                      "max_pool", input, [&] { return at::max_pool1d(input, k, s, p, d, ceil_mode); },
                      [&] { return at::max_pool2d(input, k, s, p, d, ceil_mode); },
                      [&] { return at::max_pool3d(input, k, s, p, d, ceil_mode); }));
}

TensorPair max_pool_with_indices(const char* reason, const at::Tensor& input, SymInts kernel_size,
                                 SymInts stride, SymInts padding, SymInts dilation, bool ceil_mode) {
  const Numbers k = numbers(kernel_size), s = numbers(stride), p = numbers(padding), d = numbers(dilation);
  return recorded("max_pool_with_indices", reason,
                  by_dims(
                      "max_pool_with_indices", input,
                      [&] { return at::max_pool1d_with_indices(input, k, s, p, d, ceil_mode); },
                      [&] { return at::max_pool2d_with_indices(input, k, s, p, d, ceil_mode); },
                      [&] { return at::max_pool3d_with_indices(input, k, s, p, d, ceil_mode); }));
}

namespace {

TensorPair adaptive_max(const char* op, const char* reason, const at::Tensor& input, SymInts output_size) {
  const Numbers o = expanded(output_size, input.dim() - 2, 0);
  return recorded(op, reason,
                  by_dims(
                      op, input, [&] { return at::adaptive_max_pool1d(input, o); },
                      [&] { return at::adaptive_max_pool2d(input, o); },
                      [&] { return at::adaptive_max_pool3d(input, o); }));
}

}  // namespace

at::Tensor adaptive_max_pool(const char* reason, const at::Tensor& input, SymInts output_size) {
  return std::get<0>(adaptive_max("adaptive_max_pool", reason, input, output_size));
}

TensorPair adaptive_max_pool_with_indices(const char* reason, const at::Tensor& input, SymInts output_size) {
  return adaptive_max("adaptive_max_pool_with_indices", reason, input, output_size);
}

at::Tensor max_pool_indices(const char* reason, const at::Tensor& offsets, SymInts input_size,
                            SymInts kernel_size, SymInts stride, SymInts padding, SymInts dilation) {
  const size_t dims = input_size.size();
  at::Tensor rest = offsets.to(at::kLong), indices;
  const auto options = rest.options();
  const bool adaptive = kernel_size.empty();
  const Numbers k = expanded(kernel_size, dims, 1),
                s = expanded(stride.empty() ? kernel_size : stride, dims, 1);
  const Numbers p = expanded(padding, dims, 0), d = expanded(dilation, dims, 1), in = numbers(input_size);
  for (const Numbers& each : {k, s, p, d}) {
    TORCH_CHECK(each.size() == dims, "max_pool_indices: expected windows of 1 or ", dims,
                " numbers, but got kernel_size ", kernel_size, ", stride ", stride, ", padding ", padding,
                ", dilation ", dilation);
  }
  int64_t step = 1;
  for (size_t i = dims; i-- > 0;) {  // the last axis is the fastest, of taps and of pixels
    const int64_t out = offsets.sym_size(i + 2).guard_int(__FILE__, __LINE__);
    const int64_t taps = adaptive ? adaptive_kernel<int64_t>(in[i], std::max<int64_t>(out, 1)) : k[i];
    const at::Tensor o = at::arange(out, options);
    const at::Tensor origin =
        adaptive ? (o * in[i]).floor_divide(std::max<int64_t>(out, 1)) : o * s[i] - p[i];
    Numbers shape(dims + 2, 1);
    shape[i + 2] = out;
    const at::Tensor position = rest.remainder(taps) * (adaptive ? 1 : d[i]) + origin.view(shape);
    indices = indices.defined() ? indices + position * step : position;
    rest = rest.floor_divide(taps);
    step *= in[i];
  }
  return recorded("max_pool_indices", reason, indices);
}

at::Tensor max_pool_grad_input(const char* reason, const at::Tensor& grad_output, const at::Tensor& offsets,
                               SymInts input_size, SymInts kernel_size, SymInts stride, SymInts padding,
                               SymInts dilation, bool) {
  const at::Tensor indices =
      max_pool_indices(nullptr, offsets, input_size, kernel_size, stride, padding, dilation);
  return recorded("max_pool_grad_input", reason, spread(grad_output, indices, input_size));
}

at::Tensor max_pool_select(const char* reason, const at::Tensor& input, const at::Tensor& offsets,
                           SymInts kernel_size, SymInts stride, SymInts padding, SymInts dilation) {
  const at::Tensor indices =
      max_pool_indices(nullptr, offsets, input.sym_sizes().slice(2), kernel_size, stride, padding, dilation);
  return recorded("max_pool_select", reason, input.flatten(2).gather(2, indices.flatten(2)).view_as(indices));
}

at::Tensor avg_pool(const char* reason, const at::Tensor& input, SymInts kernel_size, SymInts stride,
                    SymInts padding, bool ceil_mode, bool count_include_pad,
                    OptionalSymInt divisor_override) {
  const Numbers k = numbers(kernel_size), s = numbers(stride), p = numbers(padding);
  const auto divisor = divisor_override
                           ? std::optional<int64_t>(divisor_override->guard_int(__FILE__, __LINE__))
                           : std::nullopt;
  return recorded("avg_pool", reason,
                  by_dims(
                      "avg_pool", input,
                      [&] {
                        TORCH_CHECK(!divisor, "avg_pool: there is no divisor_override in one dimension");
                        return at::avg_pool1d(input, k, s, p, ceil_mode, count_include_pad);
                      },
                      [&] { return at::avg_pool2d(input, k, s, p, ceil_mode, count_include_pad, divisor); },
                      [&] { return at::avg_pool3d(input, k, s, p, ceil_mode, count_include_pad, divisor); }));
}

at::Tensor adaptive_avg_pool(const char* reason, const at::Tensor& input, SymInts output_size) {
  const Numbers o = expanded(output_size, input.dim() - 2, 0);
  return recorded("adaptive_avg_pool", reason,
                  by_dims(
                      "adaptive_avg_pool", input, [&] { return at::adaptive_avg_pool1d(input, o); },
                      [&] { return at::adaptive_avg_pool2d(input, o); },
                      [&] { return at::adaptive_avg_pool3d(input, o); }));
}

namespace {

// An empty tensor of the forward input's size, which is all that ATen's gradients read of it.
at::Tensor input_like(const at::Tensor& grad_output, SymInts input_size, bool channels_last) {
  Sizes<c10::SymInt> size = {grad_output.sym_size(0), grad_output.sym_size(1)};
  size.append(input_size.begin(), input_size.end());
  const Layout layout = last_if(channels_last, grad_output.dim());
  return grad_output.new_empty_symint(size).contiguous(memory_format(layout, grad_output.dim()));
}

}  // namespace

at::Tensor avg_pool_grad_input(const char* reason, const at::Tensor& grad_output, SymInts input_size,
                               SymInts kernel_size, SymInts stride, SymInts padding, bool ceil_mode,
                               bool count_include_pad, OptionalSymInt divisor_override, bool channels_last) {
  TORCH_CHECK(!kernel_size.empty(), "avg_pool_grad_input: expected a kernel_size, but got an empty one");
  const size_t dims = input_size.size();
  const Numbers k = expanded(kernel_size, dims, 1),
                s = expanded(stride.empty() ? kernel_size : stride, dims, 1), p = expanded(padding, dims, 0);
  const auto divisor = divisor_override
                           ? std::optional<int64_t>(divisor_override->guard_int(__FILE__, __LINE__))
                           : std::nullopt;
  const at::Tensor input = input_like(grad_output, input_size, channels_last);
  const auto in_one_dimension = [&] {
    const Numbers k1 = {1, k[0]}, s1 = {1, s[0]}, p1 = {0, p[0]};
    return at::avg_pool2d_backward(grad_output.unsqueeze(2), input.unsqueeze(2), k1, s1, p1, ceil_mode,
                                   count_include_pad, divisor)
        .squeeze(2);
  };
  return recorded("avg_pool_grad_input", reason,
                  by_dims(
                      "avg_pool_grad_input", input, in_one_dimension,
                      [&] {
                        return at::avg_pool2d_backward(grad_output, input, k, s, p, ceil_mode,
                                                       count_include_pad, divisor);
                      },
                      [&] {
                        return at::avg_pool3d_backward(grad_output, input, k, s, p, ceil_mode,
                                                       count_include_pad, divisor);
                      }));
}

at::Tensor adaptive_avg_pool_grad_input(const char* reason, const at::Tensor& grad_output, SymInts input_size,
                                        bool channels_last) {
  const at::Tensor input = input_like(grad_output, input_size, channels_last);
  const auto in_one_dimension = [&] {
    return at::_adaptive_avg_pool2d_backward(grad_output.unsqueeze(2), input.unsqueeze(2)).squeeze(2);
  };
  return recorded("adaptive_avg_pool_grad_input", reason,
                  by_dims(
                      "adaptive_avg_pool_grad_input", input, in_one_dimension,
                      [&] { return at::_adaptive_avg_pool2d_backward(grad_output, input); },
                      [&] { return at::_adaptive_avg_pool3d_backward(grad_output, input); }));
}

at::Tensor max_unpool(const char* reason, const at::Tensor& input, const at::Tensor& indices,
                      SymInts output_size) {
  const Numbers o = numbers(output_size);
  const auto in_one_dimension = [&] {
    Numbers column = o;
    column.push_back(1);
    return at::max_unpool2d(input.unsqueeze(-1), indices.unsqueeze(-1), column).squeeze(-1);
  };
  const auto in_three_dimensions = [&] {
    // The stride and padding are only checked, against a size that they do not determine.
    const Numbers ones(kAxes, 1), zeros(kAxes, 0);
    return at::max_unpool3d(input, indices, o, ones, zeros);
  };
  return recorded("max_unpool", reason,
                  by_dims(
                      "max_unpool", input, in_one_dimension,
                      [&] { return at::max_unpool2d(input, indices, o); }, in_three_dimensions));
}

at::Tensor max_unpool_grad_input(const char* reason, const at::Tensor& grad_output, const at::Tensor& indices,
                                 bool) {
  return recorded("max_unpool_grad_input", reason,
                  grad_output.flatten(2).gather(2, indices.flatten(2)).view_as(indices));
}

TORCH_LIBRARY_IMPL(cnnext, FuncTorchBatched, m) {
  m.impl("max_pool", Batched<&max_pool>::run);
  m.impl("max_pool_with_indices", Batched<&max_pool_with_indices>::run);
  m.impl("adaptive_max_pool", Batched<&adaptive_max_pool>::run);
  m.impl("adaptive_max_pool_with_indices", Batched<&adaptive_max_pool_with_indices>::run);
  m.impl("max_pool_indices", Batched<&max_pool_indices>::run);
  m.impl("max_pool_grad_input", Batched<&max_pool_grad_input>::run);
  m.impl("max_pool_select", Batched<&max_pool_select>::run);
  m.impl("avg_pool", Batched<&avg_pool>::run);
  m.impl("avg_pool_grad_input", Batched<&avg_pool_grad_input>::run);
  m.impl("adaptive_avg_pool", Batched<&adaptive_avg_pool>::run);
  m.impl("adaptive_avg_pool_grad_input", Batched<&adaptive_avg_pool_grad_input>::run);
  m.impl("max_unpool", Batched<&max_unpool>::run);
  m.impl("max_unpool_grad_input", Batched<&max_unpool_grad_input>::run);
}

}  // namespace cnnext::ops::aten
