// Max unpooling and its gradient.
#include "pool_windows.h"

namespace cnnext::ops {
namespace {

// Unpooling knows no windows: the pooled side is the problem's output, the larger one its input.
PoolProblem unpool_problem(const at::Tensor& pooled, const at::Tensor& larger, Layout layout) {
  PoolProblem problem;
  problem.shape.N = pooled.size(0);
  problem.shape.C = pooled.size(1);
  problem.shape.axis[kAxes - 1].output = c10::multiply_integers(pooled.sizes().slice(2));
  problem.shape.axis[kAxes - 1].input = c10::multiply_integers(larger.sizes().slice(2));
  problem.dtype = *element_type(pooled.scalar_type());
  problem.layout = layout;
  problem.threads = at::get_num_threads();
  return problem;
}

template <class Int>
const char* unpool_refused(const at::Tensor& input, const at::Tensor& indices,
                           c10::ArrayRef<Int> output_size) {
  bool valid = indices.scalar_type() == at::kLong && indices.device() == input.device() &&
               sizes<Int>(indices).equals(sizes<Int>(input)) &&
               int64_t(output_size.size()) == input.dim() - 2;
  for (int64_t i = 1; i < input.dim(); ++i) valid = valid && sizes<Int>(input)[i] > 0;
  for (const Int& size : output_size) valid = valid && size > 0;
  return refused(input, valid);
}

template <class Int, class Ints = c10::ArrayRef<Int>>
at::Tensor max_unpool_kernel(const at::Tensor& input, const at::Tensor& indices, Ints output_size) {
  check_input("max_unpool", input);
  if (const char* reason = unpool_refused<Int>(input, indices, output_size)) {
    return aten::max_unpool(reason, input, indices, symbols(output_size));
  }
  Sizes<Int> size = {sizes<Int>(input)[0], sizes<Int>(input)[1]};
  size.append(output_size.begin(), output_size.end());
  const Layout layout = layout_of(input);
  const at::Tensor output = new_tensor<Int>(size, input.options(), layout);
  if constexpr (kRuns<Int>) {
    const at::Tensor from = laid_out(input, layout), where = laid_out(indices, layout);
    int64_t invalid = 0;
    launch("max_unpool", CNNEXT_LIST(max_unpool), unpool_problem(from, output, layout),
           {data(output), data(from), nullptr, static_cast<int64_t*>(data(where)), &invalid}, output);
    if (invalid != 0) return aten::max_unpool("invalid index", input, indices, symbols(output_size));
  }
  return output;
}

template <class Int>
at::Tensor max_unpool_grad_input_kernel(const at::Tensor& grad_output, const at::Tensor& indices,
                                        bool channels_last) {
  check_input("max_unpool_grad_input", indices);
  TORCH_CHECK(element_type(grad_output.scalar_type()), "max_unpool_grad_input: not implemented for ",
              grad_output.scalar_type());
  TORCH_CHECK(grad_output.device() == indices.device(),
              "max_unpool_grad_input: expected all tensors on one device, but got ", grad_output.device(),
              " and ", indices.device());
  bool fits = grad_output.dim() == indices.dim() &&
              sizes<Int>(grad_output).slice(0, 2).equals(sizes<Int>(indices).slice(0, 2));
  for (int64_t i = 2; fits && i < indices.dim(); ++i)  // no index is valid in an empty plane
    fits = sizes<Int>(grad_output)[i] > 0 || sizes<Int>(indices)[i] == 0;
  TORCH_CHECK(fits && indices.scalar_type() == at::kLong, "max_unpool_grad_input: grad_output of size ",
              grad_output.sym_sizes(), " does not fit indices of size ", indices.sym_sizes(), " and type ",
              indices.scalar_type());
  const Layout layout = last_if(channels_last, indices.dim());
  const at::Tensor grad_input = new_tensor<Int>(sizes<Int>(indices), grad_output.options(), layout);
  if constexpr (kRuns<Int>) {
    const at::Tensor from = laid_out(grad_output, layout), where = laid_out(indices, layout);
    int64_t invalid = 0;
    launch("max_unpool_grad_input", CNNEXT_LIST(max_unpool_grad_input),
           unpool_problem(grad_input, from, layout),
           {data(from), data(grad_input), nullptr, static_cast<int64_t*>(data(where)), &invalid}, grad_input);
    TORCH_CHECK(invalid == 0, "Found an invalid max index: ", invalid, " (output volumes are of size ",
                grad_output.sizes().slice(2), ")");
  }
  return grad_input;
}

}  // namespace

template <class Int>
void implement_max_unpool(torch::Library& m) {
  m.impl("max_unpool", max_unpool_kernel<Int>);
  m.impl("max_unpool_grad_input", max_unpool_grad_input_kernel<Int>);
}
template void implement_max_unpool<int64_t>(torch::Library&);
template void implement_max_unpool<c10::SymInt>(torch::Library&);

}  // namespace cnnext::ops
