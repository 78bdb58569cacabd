// Average pooling and its gradient.
#include "pool_windows.h"

namespace cnnext::ops {
namespace {

struct Average {  // what only averages have
  bool count_include_pad = true;
  int64_t divisor_override = 0;
};

template <class Int>
at::Tensor run_avg(const Pool<Int>& pool, const at::Tensor& input, Average average = {}) {
  const Layout layout = layout_of(input);
  const at::Tensor output = new_tensor<Int>(pool.output, input.options(), layout);
  if constexpr (kRuns<Int>) {
    const at::Tensor source = laid_out(input, layout);
    PoolProblem problem = problem_of(pool, input.scalar_type(), layout);
    problem.count_padding = average.count_include_pad;
    problem.divisor_override = average.divisor_override;
    launch("avg_pool", CNNEXT_LIST(avg_pool), problem, {data(source), data(output)}, output);
  }
  return output;
}

template <class Int>
at::Tensor run_avg_grad(const Pool<Int>& pool, const at::Tensor& grad_output, bool channels_last,
                        Average average = {}) {
  TORCH_CHECK(element_type(grad_output.scalar_type()), "avg_pool_grad_input: not implemented for ",
              grad_output.scalar_type());
  const Layout layout = last_if(channels_last, grad_output.dim());
  const at::Tensor grad_input = new_tensor<Int>(pool.input, grad_output.options(), layout);
  if constexpr (kRuns<Int>) {
    if (grad_output.numel() == 0) return grad_input.zero_();
    const at::Tensor from = laid_out(grad_output, layout);
    PoolProblem problem = problem_of(pool, from.scalar_type(), layout);
    problem.count_padding = average.count_include_pad;
    problem.divisor_override = average.divisor_override;
    launch("avg_pool_grad_input", CNNEXT_LIST(avg_pool_grad_input), problem, {data(grad_input), data(from)},
           grad_input);
  }
  return grad_input;
}

// In three dimensions torch averages no window that is larger than the input without its padding.
template <class Int>
bool covers(const Pool<Int>& pool) {
  for (size_t i = 0; i < pool.kernel.size(); ++i) {
    if (pool.kernel.size() == kAxes && pool.kernel[i] > pool.input[i + 2]) return false;
  }
  return true;
}

template <class Int>
Int only(const std::optional<Int>& divisor) {
  return divisor ? *divisor : Int(0);
}
int64_t number(int64_t x) { return x; }
int64_t number(const c10::SymInt&) { return 0; }  // of no concern for sizes

template <class Int, class Ints = c10::ArrayRef<Int>>
at::Tensor avg_pool_kernel(const at::Tensor& input, Ints kernel_size, Ints stride, Ints padding,
                           bool ceil_mode, bool count_include_pad, std::optional<Int> divisor_override) {
  check_input("avg_pool", input);
  const Int one = 1;
  const Pool<Int> pool(sizes<Int>(input), kernel_size, stride, padding, Ints(one), ceil_mode);
  // Neither may torch divide by zero, nor does it override the divisor in one dimension.
  const bool divides = !divisor_override || (*divisor_override != 0 && input.dim() > 3);
  if (const char* reason = refused(input, pool.valid() && divides && covers(pool))) {
    return aten::avg_pool(reason, input, symbols(kernel_size), symbols(stride), symbols(padding), ceil_mode,
                          count_include_pad,
                          divisor_override ? OptionalSymInt(*divisor_override) : std::nullopt);
  }
  return run_avg(pool, input, {count_include_pad, number(only(divisor_override))});
}

template <class Int, class Ints = c10::ArrayRef<Int>>
at::Tensor avg_pool_grad_input_kernel(const at::Tensor& grad_output, Ints input_size, Ints kernel_size,
                                      Ints stride, Ints padding, bool ceil_mode, bool count_include_pad,
                                      std::optional<Int> divisor_override, bool channels_last) {
  const Int one = 1;
  TORCH_CHECK(!kernel_size.empty(), "avg_pool_grad_input: expected a kernel_size, but got an empty one");
  TORCH_CHECK(!divisor_override || *divisor_override != 0,
              "avg_pool_grad_input: expected a divisor_override other than zero, but got 0");
  const auto pool = Pool<Int>::of_result("avg_pool_grad_input", sizes<Int>(grad_output), input_size,
                                         kernel_size, stride, padding, Ints(one));
  return run_avg_grad(pool, grad_output, channels_last, {count_include_pad, number(only(divisor_override))});
}

template <class Int, class Ints = c10::ArrayRef<Int>>
at::Tensor adaptive_avg_pool_kernel(const at::Tensor& input, Ints output_size) {
  check_input("adaptive_avg_pool", input);
  const Pool<Int> pool(sizes<Int>(input), output_size);
  if (const char* reason = refused(input, pool.valid())) {
    return aten::adaptive_avg_pool(reason, input, symbols(output_size));
  }
  return run_avg(pool, input);
}

template <class Int, class Ints = c10::ArrayRef<Int>>
at::Tensor adaptive_avg_pool_grad_input_kernel(const at::Tensor& grad_output, Ints input_size,
                                               bool channels_last) {
  const auto pool = Pool<Int>::of_result("adaptive_avg_pool_grad_input", sizes<Int>(grad_output), input_size,
                                         {}, {}, {}, {});
  return run_avg_grad(pool, grad_output, channels_last);
}

}  // namespace

template <class Int>
void implement_avg_pool(torch::Library& m) {
  m.impl("avg_pool", avg_pool_kernel<Int>);
  m.impl("avg_pool_grad_input", avg_pool_grad_input_kernel<Int>);
  m.impl("adaptive_avg_pool", adaptive_avg_pool_kernel<Int>);
  m.impl("adaptive_avg_pool_grad_input", adaptive_avg_pool_grad_input_kernel<Int>);
}
template void implement_avg_pool<int64_t>(torch::Library&);
template void implement_avg_pool<c10::SymInt>(torch::Library&);

}  // namespace cnnext::ops
