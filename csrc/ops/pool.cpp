// Pooling: schemas, checks, allocation, choice of the kernel. Each operator is written once: for numbers it
// runs on the device, for symbols (the Meta key) it only makes tensors of the right sizes and formats.
#include "pool.h"
#include "device.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace cnnext::ops {
namespace {

template <class Int>
constexpr bool kRuns = std::is_same_v<Int, int64_t>;

c10::ArrayRef<int64_t> sizes(const at::Tensor& t, int64_t) { return t.sizes(); }
c10::ArrayRef<c10::SymInt> sizes(const at::Tensor& t, c10::SymInt) { return t.sym_sizes(); }
template <class Int>
c10::ArrayRef<Int> sizes(const at::Tensor& t) {
  return sizes(t, Int(0));
}
c10::SymIntArrayRef symbols(at::IntArrayRef list) { return c10::fromIntArrayRefSlow(list); }
c10::SymIntArrayRef symbols(c10::SymIntArrayRef list) { return list; }

template <class Int>
at::Tensor new_tensor(c10::ArrayRef<Int> size, const at::TensorOptions& options, Layout layout) {
  const auto format = memory_format(layout, int64_t(size.size()));
  if constexpr (kRuns<Int>) {
    return empty(size, options, format);
  } else {
    return at::empty_symint(size, options, format);
  }
}

template <class Int>
using Sizes = c10::SmallVector<Int, kAxes + 2>;

// Windows over an input [N, C, axes], for numbers and symbols.
template <class Int>
struct Pool {
  using Ints = c10::ArrayRef<Int>;

  // Leaves `output` empty where torch would not take the arguments.
  Pool(Ints input_, Ints kernel_, Ints stride_, Ints padding_, Ints dilation_, bool ceil_mode)
      : input(input_.begin(), input_.end()) {
    const size_t dims = input.size() - 2;
    if (!has_size() || !expand(kernel_, dims, 1, kernel) || !expand(padding_, dims, 0, padding) ||
        !expand(stride_.empty() ? kernel_ : stride_, dims, 1, stride) ||
        !expand(dilation_, dims, 1, dilation)) {
      return;
    }
    Sizes<Int> size = {input[0], input[1]};
    for (size_t i = 0; i < dims; ++i) {
      if (padding[i] > kernel[i] / 2) return;
      size.push_back(
          pool_output<Int>(input[i + 2], kernel[i], stride[i], padding[i], dilation[i], ceil_mode));
      if (size.back() < 1) return;
    }
    output = std::move(size);
  }

  // Adaptive windows.
  Pool(Ints input_, Ints output_size) : input(input_.begin(), input_.end()) {
    const size_t dims = input.size() - 2;
    if (!has_size() || !expand(output_size, dims, 0, kernel)) return;
    output = {input[0], input[1]};
    for (size_t i = 0; i < dims; ++i) {
      output.push_back(kernel[i]);
      kernel[i] = output.back() == 0 ? Int(1) : adaptive_kernel<Int>(input[i + 2], output.back());
    }
  }

  // The windows that have made a tensor of size `result`, given the spatial size of their input.
  static Pool of_result(const char* op, Ints result, Ints input_size, Ints kernel_, Ints stride_,
                        Ints padding_, Ints dilation_) {
    TORCH_CHECK(result.size() >= 3 && result.size() <= kAxes + 2 && input_size.size() == result.size() - 2,
                op, ": a tensor of size ", result, " and an input_size of ", input_size,
                " do not fit together");
    Sizes<Int> size = {result[0], result[1]};
    size.append(input_size.begin(), input_size.end());
    if (kernel_.empty()) return Pool(size, result.slice(2)).checked(op, result);
    const Pool exact(size, kernel_, stride_, padding_, dilation_, false);
    return Ints(exact.output).equals(result)
               ? exact
               : Pool(size, kernel_, stride_, padding_, dilation_, true).checked(op, result);
  }

  Pool checked(const char* op, Ints result) const {
    TORCH_CHECK(Ints(output).equals(result), op, ": windows over an input of size ", Ints(input),
                " do not make a tensor of size ", result);
    return *this;
  }

  bool valid() const { return !output.empty(); }
  bool adaptive() const { return stride.empty(); }

  at::ScalarType offset_type() const {
    Int taps = 1;
    for (const Int& k : kernel) taps = taps * k;
    return taps > 256 ? at::kInt : at::kByte;
  }

  PoolShape shape() const {
    PoolShape s;
    s.N = input[0];
    s.C = input[1];
    const size_t dims = kernel.size();
    for (size_t i = 0; i < dims; ++i) {
      const size_t a = kAxes - dims + i;
      s.axis[a] = {input[i + 2], output[i + 2], kernel[i], 1, 0, 1};
      if (!adaptive()) {
        s.axis[a].stride = stride[i];
        s.axis[a].padding = padding[i];
        s.axis[a].dilation = dilation[i];
      } else if (output[i + 2] > 0 && input[i + 2] % output[i + 2] == 0) {
        s.axis[a].stride = kernel[i];
      } else {
        s.adaptive[a] = true;
      }
    }
    return s;
  }

  Sizes<Int> input, output;
  c10::SmallVector<Int, kAxes> kernel, stride, padding, dilation;  // adaptive: the kernel bounds the windows

 private:
  bool has_size() const {
    for (size_t i = 1; i < input.size(); ++i) {
      if (input[i] < 1) return false;
    }
    return true;
  }
  static bool expand(Ints values, size_t dims, int64_t smallest, c10::SmallVector<Int, kAxes>& all) {
    if (values.size() != dims && values.size() != 1) return false;
    for (size_t i = 0; i < dims; ++i) {
      all.push_back(values[values.size() == 1 ? 0 : i]);
      if (all.back() < smallest) return false;
    }
    return true;
  }
};

void check_input(const char* op, const at::Tensor& input) {
  TORCH_CHECK(input.dim() >= 3 && input.dim() <= kAxes + 2, op,
              ": expected a batched input of 3 to 5 dimensions, but got one of size ", input.sym_sizes());
}

PoolProblem problem_of(const Pool<int64_t>& pool, at::ScalarType type, Layout layout) {
  PoolProblem problem;
  problem.shape = pool.shape();
  problem.dtype = *element_type(type);
  problem.layout = layout;
  problem.threads = at::get_num_threads();
  return problem;
}

template <class Select>
void launch(const char* op, const Select& list_of, const PoolProblem& problem, const PoolBuffers& buffers,
            const at::Tensor& result) {
  if (problem.shape.N == 0 || problem.shape.output_pixels() == 0) return;
  run_kernel(op, list_of, problem, buffers, result);
}

// The tensor in the layout that the kernel runs in; the caller keeps it alive.
at::Tensor laid_out(const at::Tensor& t, Layout layout) {
  return t.contiguous(memory_format(layout, t.dim()));
}
Layout last_if(bool channels_last, int64_t dim) {
  return channels_last && dim > 3 ? Layout::kChannelsLast : Layout::kChannelsFirst;
}
void* data(const at::Tensor& t) { return const_cast<void*>(t.const_data_ptr()); }

const char* refused(const at::Tensor& input, bool valid) {
  const char* reason = left_to_aten({&input});
  return reason || valid ? reason : "invalid or empty size";
}

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
  TORCH_CHECK(pool.valid() && element_type(input.scalar_type()), op,
              ": these windows do not fit an input of size ", input.sym_sizes(), " and type ",
              input.scalar_type());
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
  TORCH_CHECK(offsets.scalar_type() == pool.offset_type(), "max_pool_indices: expected offsets of type ",
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
  if (const char* reason =
          refused(input, pool.valid())) {  // torch's own error where the arguments are invalid
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
  if (!pool.valid()) aten::adaptive_max_pool(nullptr, input, symbols(output_size));
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
  TORCH_CHECK(offsets.scalar_type() == pool.offset_type() && sizes<Int>(offsets).equals(pool.output), op,
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
  TORCH_CHECK(!kernel_size.empty() && (!divisor_override || *divisor_override != 0),
              "avg_pool_grad_input: expected a kernel_size and a divisor other than zero");
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
  const bool fits = grad_output.dim() == indices.dim() && grad_output.device() == indices.device() &&
                    sizes<Int>(grad_output).slice(0, 2).equals(sizes<Int>(indices).slice(0, 2));
  TORCH_CHECK(fits && indices.scalar_type() == at::kLong && element_type(grad_output.scalar_type()),
              "max_unpool_grad_input: grad_output of size ", grad_output.sym_sizes(), " and type ",
              grad_output.scalar_type(), " does not fit indices of size ", indices.sym_sizes(), " and type ",
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

bool pool_fits(const at::Tensor& input, SymInts kernel_size, SymInts stride, SymInts padding,
               SymInts dilation, bool ceil_mode) {
  return Pool<c10::SymInt>(input.sym_sizes(), kernel_size, stride, padding, dilation, ceil_mode).valid();
}

PoolProblem pool_problem(at::IntArrayRef input, at::IntArrayRef output, at::IntArrayRef kernel_size,
                         at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                         at::ScalarType type, Layout layout) {
  TORCH_CHECK_VALUE(element_type(type), "no pooling kernels for ", type);
  const auto pool = Pool<int64_t>::of_result("explain_pool", output, input.slice(2), kernel_size, stride,
                                             padding, dilation);
  return problem_of(pool, type, layout);
}

TORCH_LIBRARY_FRAGMENT(cnnext, m) {
  const auto def = [&](const std::string& schema) { m.def(schema.c_str(), {at::Tag::pt2_compliant_tag}); };
  const std::string windows =
      "(Tensor input, SymInt[1] kernel_size, SymInt[1] stride=[], SymInt[1] padding=0, SymInt[1] dilation=1, "
      "bool ceil_mode=False) -> ";
  const std::string adaptive = "(Tensor input, SymInt[1] output_size) -> ";
  const std::string made_by = "SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation";
  const std::string average =
      "SymInt[1] kernel_size, SymInt[1] stride=[], SymInt[1] padding=0, bool ceil_mode=False, "
      "bool count_include_pad=True, SymInt? divisor_override=None";
  def("max_pool" + windows + "Tensor");
  def("max_pool_with_indices" + windows + "(Tensor output, Tensor indices)");
  def("max_pool_with_offsets" + windows + "(Tensor output, Tensor offsets)");
  def("adaptive_max_pool" + adaptive + "Tensor");
  def("adaptive_max_pool_with_indices" + adaptive + "(Tensor output, Tensor indices)");
  def("adaptive_max_pool_with_offsets" + adaptive + "(Tensor output, Tensor offsets)");
  def("max_pool_indices(Tensor offsets, SymInt[] input_size, " + made_by + ") -> Tensor");
  def("max_pool_grad_input(Tensor grad_output, Tensor offsets, SymInt[] input_size, " + made_by +
      ", bool channels_last=False) -> Tensor");
  def("max_pool_select(Tensor input, Tensor offsets, " + made_by + ") -> Tensor");
  def("avg_pool(Tensor input, " + average + ") -> Tensor");
  def("avg_pool_grad_input(Tensor grad_output, SymInt[] input_size, " + average +
      ", bool channels_last=False) -> Tensor");
  def("adaptive_avg_pool" + adaptive + "Tensor");
  def("adaptive_avg_pool_grad_input(Tensor grad_output, SymInt[] input_size, bool channels_last=False) -> "
      "Tensor");
  def("max_unpool(Tensor input, Tensor indices, SymInt[] output_size) -> Tensor");
  def("max_unpool_grad_input(Tensor grad_output, Tensor indices, bool channels_last=False) -> Tensor");
}

template <class Int>
void implement(torch::Library& m) {
  m.impl("max_pool", max_pool_kernel<Int>);
  m.impl("max_pool_with_indices", max_pool_with_indices_kernel<Int>);
  m.impl("max_pool_with_offsets", max_pool_with_offsets_kernel<Int>);
  m.impl("adaptive_max_pool", adaptive_max_pool_kernel<Int>);
  m.impl("adaptive_max_pool_with_indices", adaptive_max_pool_with_indices_kernel<Int>);
  m.impl("adaptive_max_pool_with_offsets", adaptive_max_pool_with_offsets_kernel<Int>);
  m.impl("max_pool_indices", max_pool_indices_kernel<Int>);
  m.impl("max_pool_grad_input", max_pool_grad_input_kernel<Int>);
  m.impl("max_pool_select", max_pool_select_kernel<Int>);
  m.impl("avg_pool", avg_pool_kernel<Int>);
  m.impl("avg_pool_grad_input", avg_pool_grad_input_kernel<Int>);
  m.impl("adaptive_avg_pool", adaptive_avg_pool_kernel<Int>);
  m.impl("adaptive_avg_pool_grad_input", adaptive_avg_pool_grad_input_kernel<Int>);
  m.impl("max_unpool", max_unpool_kernel<Int>);
  m.impl("max_unpool_grad_input", max_unpool_grad_input_kernel<Int>);
}

TORCH_LIBRARY_IMPL(cnnext, CPU, m) { implement<int64_t>(m); }
#if defined(CNNEXT_WITH_CUDA)
TORCH_LIBRARY_IMPL(cnnext, CUDA, m) { implement<int64_t>(m); }
#endif
TORCH_LIBRARY_IMPL(cnnext, Meta, m) { implement<c10::SymInt>(m); }

}  // namespace cnnext::ops
