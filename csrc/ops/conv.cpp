// Convolution and its gradients: schemas, checks, allocation, choice of the kernel. cnnext::conv and friends.
#include "conv.h"
#include "device.h"
#include "epilogue.h"
#include "meta.h"
#include "weight_cache.h"

#include <algorithm>
#include <limits>

#include <ATen/Parallel.h>
#include <c10/util/StringUtil.h>
#include <torch/library.h>

namespace cnnext::ops {
namespace {

// What convolution and its gradients for the input and the weight have in common, for numbers (Int = int64_t)
// and symbols (c10::SymInt).
template <class Int>
struct Conv {
  using Ints = c10::ArrayRef<Int>;

  // Sizes of input and weight with all parameters. Sets `output`, or `misfit` where they do not fit together.
  Conv(Ints input_, Ints weight_, Ints stride_, Ints padding_, Ints dilation_, Int groups_)
      : input(input_), weight(weight_), groups(groups_) {
    const size_t dims = std::max<size_t>(weight.size(), 3) - 2;
    stride = per_axis(stride_, dims);
    padding = per_axis(padding_, dims);
    dilation = per_axis(dilation_, dims);
    misfit = find_misfit(dims);
    if (misfit) return;
    output = {input[0], weight[0]};
    for (size_t i = 0; i < dims; ++i) {
      output.push_back(window_output<Int>(input[i + 2], weight[i + 2], stride[i], padding[i], dilation[i]));
    }
  }

  bool valid() const { return !misfit; }
  // For messages.
  std::string arguments() const {
    return c10::str("input of size ", input, ", weight of size ", weight, ", stride ", Ints(stride),
                    ", padding ", Ints(padding), ", dilation ", Ints(dilation), ", groups ", groups);
  }

  Ints input, weight;
  Int groups;
  PerAxis<Int> stride, padding, dilation;
  Sizes<Int> output;
  const char* misfit = nullptr;  // what was expected

 private:
  const char* find_misfit(size_t dims) const {
    if (weight.size() != dims + 2 || dims > kAxes || input.size() != dims + 2)
      return "expected input and weight of as many dimensions, 3 to 5";
    if (!are_per_axis(stride, dims, 1)) return "expected a stride of 1 to 2^31 - 1 for each axis";
    if (!are_per_axis(padding, dims, 0)) return "expected a padding of 0 to 2^31 - 1 for each axis";
    if (!are_per_axis(dilation, dims, 1)) return "expected a dilation of 1 to 2^31 - 1 for each axis";
    if (groups < 1) return "expected 1 group or more";
    if (weight[1] * groups != input[1])
      return "expected input of as many channels as weight has in all groups";
    if (weight[0] % groups != 0) return "expected output channels that the groups divide";
    for (size_t i = 0; i < dims; ++i) {
      const Int& kernel = weight[i + 2];
      if (kernel < 1) return "expected a kernel of 1 or more along each axis";
      if (input[i + 2] + padding[i] * 2 < dilation[i] * (kernel - 1) + 1)
        return "expected a kernel that fits into the padded input";
    }
    return nullptr;
  }
  static bool are_per_axis(Ints values, size_t dims, int64_t smallest) {
    for (const Int& value : values) {
      if (value < smallest || value > std::numeric_limits<int32_t>::max()) return false;
    }
    return values.size() == dims;
  }
};

ConvShape shape_of(const Conv<int64_t>& c) {
  ConvShape shape;
  shape.N = c.input[0];
  shape.C = c.input[1];
  shape.K = c.weight[0];
  shape.groups = c.groups;
  const size_t dims = c.stride.size();
  for (size_t i = 0; i < dims; ++i) {
    shape.axis[kAxes - dims + i] = {c.input[i + 2], c.output[i + 2], c.weight[i + 2],
                                    c.stride[i],    c.padding[i],    c.dilation[i]};
  }
  return shape;
}

Layout either_last(const at::Tensor& a, const at::Tensor& b) {
  const auto last = Layout::kChannelsLast;
  return layout_of(a) == last ? last : layout_of(b);
}

// The tensors of a call, each gradient in the place of what it is the gradient of, as in ConvBuffers;
// undefined where the operator has none.
struct ConvTensors {
  at::Tensor input, weight, bias, output, residual;
  Epilogue epilogue = {};

  ConvBuffers buffers() const {
    ConvBuffers b;
    b.epilogue = epilogue;
    b.epilogue.residual = data(residual);
    b.input = data(input);
    b.weight = data(weight);
    b.bias = data(bias);
    b.output = data(output);
    return b;
  }
};

template <class Select>
void launch(const char* op, const Select& list_of, ConvProblem problem, const ConvTensors& tensors) {
  const ConvBuffers buffers = tensors.buffers();
  if (problem.keeps_weight) {
    const auto& kernel = choose_kernel(op, list_of(cpu_kernels()), problem);
    return run_with_cached_weight(kernel, problem, buffers, tensors.weight);
  }
  for (const void* each : {buffers.input, buffers.weight, buffers.output}) {  // read on GPUs
    problem.aligned = problem.aligned && reinterpret_cast<uintptr_t>(each) % 16 == 0;
  }
  run_kernel(op, list_of, problem, buffers, tensors.output);
}

// Waking a thread takes longer than so many products.
constexpr int64_t kProductsAlone = 1 << 15;

ConvProblem problem_of(const Conv<int64_t>& c, at::ScalarType type, Layout layout, Layout weight_layout) {
  const ConvShape shape = shape_of(c);
  const double products = double(shape.N) * double(shape.output_pixels()) * double(shape.weights());
  const int threads = products < kProductsAlone ? 1 : at::get_num_threads();
  return {shape, *element_type(type), layout, weight_layout, threads, winograd_enabled()};
}

at::Tensor contiguous(const OptionalTensor& bias) {
  return bias && bias->defined() ? bias->contiguous() : at::Tensor();
}

// Sizes of the third operand, given two.
template <class Int>
Sizes<Int> with_spatial(const Int& first, const Int& second, c10::ArrayRef<Int> spatial) {
  Sizes<Int> all = {first, second};
  all.append(spatial.begin(), spatial.end());
  return all;
}

template <class Int>
void check_grad_output(const char* op, const Conv<Int>& c, c10::ArrayRef<Int> grad_output) {
  TORCH_CHECK(c.valid(), op, ": ", c.misfit, ", but got ", c.arguments());
  TORCH_CHECK(grad_output.equals(c.output), op, ": expected grad_output of size ",
              c10::ArrayRef<Int>(c.output), ", but got ", grad_output);
}

// Also where there is no bias.
bool bias_fits(const OptionalTensor& bias, const c10::SymInt& channels) {
  return !bias || !bias->defined() || (bias->dim() == 1 && bias->sym_size(0) == channels);
}

// Why a convolution is left to ATen, or null. What is invalid is too: torch raises its own error.
template <class Int>
const char* refusal(const Conv<Int>& c, const at::Tensor& input, const at::Tensor& weight,
                    const OptionalTensor& bias) {
  if (const char* reason = left_to_aten({&input, &weight, bias ? &*bias : &weight})) return reason;
  if (kRuns<Int> && (input.numel() == 0 || weight.numel() == 0)) return "empty tensor";
  return c.valid() && bias_fits(bias, weight.sym_size(0)) ? nullptr : "invalid";
}
// The same for a gradient, whose invalid sizes are an error of ours.
template <class Int>
const char* refusal(const at::Tensor& a, const at::Tensor& b, const at::Tensor& bias) {
  if constexpr (!kRuns<Int>) return nullptr;
  const char* reason = left_to_aten({&a, &b, &bias});
  return reason || (a.numel() > 0 && b.numel() > 0) ? reason : "empty tensor";
}

template <class Int>
at::Tensor forward(const Conv<Int>& c, const at::Tensor& input, const at::Tensor& weight,
                   const OptionalTensor& bias, const at::Tensor& residual, const Epilogue& epilogue) {
  const Layout layout = either_last(input, weight);
  const at::Tensor output = new_tensor<Int>(c.output, input.options(), layout);
  if constexpr (kRuns<Int>) {
    const auto format = memory_format(layout, input.dim());
    ConvTensors t;
    t.output = output;
    t.input = input.contiguous(format);
    t.weight = weight.contiguous(weight.suggest_memory_format());
    t.bias = contiguous(bias);
    t.epilogue = epilogue;
    if (residual.defined()) t.residual = residual.contiguous(format);
    ConvProblem problem = problem_of(c, input.scalar_type(), layout, layout_of(weight));
    problem.keeps_weight = caches_weight(weight) && t.weight.is_same(weight);
    launch("conv", CNNEXT_LIST(conv), problem, t);
  }
  return output;
}

template <class Int, class Ints = c10::ArrayRef<Int>>
at::Tensor conv_kernel(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                       Ints stride, Ints padding, Ints dilation, Int groups) {
  const Conv<Int> c(sizes<Int>(input), sizes<Int>(weight), stride, padding, dilation, groups);
  if (const char* reason = refusal(c, input, weight, bias)) {
    return aten::conv(kRuns<Int> ? reason : nullptr, input, weight, bias, symbols(stride), symbols(padding),
                      symbols(dilation), groups);
  }
  return forward(c, input, weight, bias, {}, {});
}

at::Tensor fused_conv_kernel(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                             const OptionalTensor& residual, at::IntArrayRef stride, at::IntArrayRef padding,
                             at::IntArrayRef dilation, int64_t groups, c10::string_view activation,
                             double negative_slope) {
  const Conv<int64_t> c(input.sizes(), weight.sizes(), stride, padding, dilation, groups);
  const bool adds = residual && residual->defined();
  const bool fits = !adds || (!left_to_aten({&input, &*residual}) && residual->sizes().equals(c.output));
  if (refusal(c, input, weight, bias) || !fits) {
    return fused_conv_in_steps(input, weight, bias, residual, c10::fromIntArrayRefSlow(stride),
                               c10::fromIntArrayRefSlow(padding), c10::fromIntArrayRefSlow(dilation), groups,
                               activation, negative_slope);
  }
  return forward(c, input, weight, bias, adds ? *residual : at::Tensor(),
                 epilogue_of("fused_conv", activation, negative_slope, input.scalar_type()));
}

template <class Int, class Ints = c10::ArrayRef<Int>>
at::Tensor conv_grad_input_kernel(const at::Tensor& grad_output, const at::Tensor& weight,
                                  const OptionalTensor& bias, Ints input_size, Ints stride, Ints padding,
                                  Ints dilation, Int groups) {
  if (const char* reason = refusal<Int>(grad_output, weight, bias ? *bias : weight)) {
    return aten::conv_grad_input(reason, grad_output, weight, bias, symbols(input_size), symbols(stride),
                                 symbols(padding), symbols(dilation), groups);
  }
  const auto input_sizes =
      with_spatial<Int>(size<Int>(grad_output, 0), size<Int>(weight, 1) * groups, input_size);
  const Conv<Int> c(input_sizes, sizes<Int>(weight), stride, padding, dilation, groups);
  check_grad_output("conv_grad_input", c, sizes<Int>(grad_output));
  TORCH_CHECK(bias_fits(bias, input_sizes[1]), "conv_grad_input: expected bias of size [", input_sizes[1],
              "], but got ", bias->sym_sizes());
  const Layout layout = either_last(grad_output, weight);
  const at::Tensor grad_input = new_tensor<Int>(input_sizes, grad_output.options(), layout);
  if constexpr (kRuns<Int>) {
    ConvTensors t;
    t.input = grad_input;
    t.weight = weight.contiguous(weight.suggest_memory_format());
    t.bias = contiguous(bias);
    t.output = grad_output.contiguous(memory_format(layout, weight.dim()));
    ConvProblem problem = problem_of(c, weight.scalar_type(), layout, layout_of(weight));
    problem.keeps_weight = caches_weight(weight) && t.weight.is_same(weight);
    launch("conv_grad_input", CNNEXT_LIST(conv_grad_input), problem, t);
  }
  return grad_input;
}

template <class Int, class Ints = c10::ArrayRef<Int>>
at::Tensor conv_grad_weight_kernel(const at::Tensor& grad_output, const at::Tensor& input, Ints kernel_size,
                                   Ints stride, Ints padding, Ints dilation, Int groups, bool channels_last) {
  if (const char* reason = refusal<Int>(grad_output, input, {})) {
    return aten::conv_grad_weight(reason, grad_output, input, symbols(kernel_size), symbols(stride),
                                  symbols(padding), symbols(dilation), groups, channels_last);
  }
  TORCH_CHECK(groups > 0, "conv_grad_weight: expected positive groups, but got ", groups);
  const auto weight_sizes =
      with_spatial<Int>(size<Int>(grad_output, 1), size<Int>(input, 1) / groups, kernel_size);
  const Conv<Int> c(sizes<Int>(input), weight_sizes, stride, padding, dilation, groups);
  check_grad_output("conv_grad_weight", c, sizes<Int>(grad_output));
  const Layout weight_layout = last_if(channels_last, input.dim());
  const at::Tensor grad_weight = new_tensor<Int>(weight_sizes, input.options(), weight_layout);
  if constexpr (kRuns<Int>) {
    const Layout layout = either_last(grad_output, input);
    const auto format = memory_format(layout, input.dim());
    ConvTensors t;
    t.input = input.contiguous(format);
    t.weight = grad_weight;
    t.output = grad_output.contiguous(format);
    launch("conv_grad_weight", CNNEXT_LIST(conv_grad_weight),
           problem_of(c, input.scalar_type(), layout, weight_layout), t);
  }
  return grad_weight;
}

template <class Int>
at::Tensor conv_grad_bias_kernel(const at::Tensor& grad_output) {
  TORCH_CHECK(grad_output.dim() >= 3 && grad_output.dim() <= 5,
              "conv_grad_bias: expected grad_output of 3 to 5 dimensions, but got ", grad_output.dim());
  if (const char* reason = refusal<Int>(grad_output, grad_output, {}))
    return aten::conv_grad_bias(reason, grad_output);
  const Int channels = size<Int>(grad_output, 1);
  const at::Tensor grad_bias = new_tensor<Int>(channels, grad_output.options(), Layout::kChannelsFirst);
  if constexpr (kRuns<Int>) {
    ConvProblem problem;
    problem.shape.N = grad_output.size(0);
    problem.shape.K = channels;
    problem.shape.axis[kAxes - 1].output = grad_output.numel() / (problem.shape.N * channels);
    problem.dtype = *element_type(grad_output.scalar_type());
    problem.layout = layout_of(grad_output);
    problem.threads = at::get_num_threads();
    ConvTensors t;
    t.bias = grad_bias;
    t.output = grad_output.contiguous(memory_format(problem.layout, grad_output.dim()));
    launch("conv_grad_bias", CNNEXT_LIST(conv_grad_bias), problem, t);
  }
  return grad_bias;
}

}  // namespace

ConvProblem conv_problem(const std::string& op, at::IntArrayRef input, at::IntArrayRef weight,
                         at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                         int64_t groups, at::ScalarType type, Layout layout, Layout weight_layout) {
  const Conv<int64_t> c(input, weight, stride, padding, dilation, groups);
  TORCH_CHECK_VALUE(c.valid(), op, ": ", c.misfit, ", but got ", c.arguments());
  const bool empty = c10::multiply_integers(input) == 0 || c10::multiply_integers(weight) == 0;
  TORCH_CHECK_VALUE(!empty, op, ": expected input and weight that are not empty, but got ", c.arguments());
  TORCH_CHECK_VALUE(element_type(type), op, ": there are no kernels for ", type);
  return problem_of(c, type, layout, weight_layout);
}

TORCH_LIBRARY_FRAGMENT(cnnext, m) {
  m.def(
      "conv(Tensor input, Tensor weight, Tensor? bias=None, SymInt[1] stride=1, SymInt[1] padding=0, "
      "SymInt[1] dilation=1, SymInt groups=1) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "fused_conv(Tensor input, Tensor weight, Tensor? bias=None, Tensor? residual=None, SymInt[1] stride=1, "
      "SymInt[1] padding=0, SymInt[1] dilation=1, SymInt groups=1, str activation=\"none\", "
      "float negative_slope=0.01) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "conv_grad_input(Tensor grad_output, Tensor weight, Tensor? bias, SymInt[] input_size, "
      "SymInt[1] stride=1, SymInt[1] padding=0, SymInt[1] dilation=1, SymInt groups=1) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "conv_grad_weight(Tensor grad_output, Tensor input, SymInt[] kernel_size, SymInt[1] stride=1, "
      "SymInt[1] padding=0, SymInt[1] dilation=1, SymInt groups=1, bool channels_last=False) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def("conv_grad_bias(Tensor grad_output) -> Tensor", {at::Tag::pt2_compliant_tag});
}

namespace {
template <class Int>
void implement(torch::Library& m) {
  m.impl("conv", conv_kernel<Int>);
  m.impl("conv_grad_input", conv_grad_input_kernel<Int>);
  m.impl("conv_grad_weight", conv_grad_weight_kernel<Int>);
  m.impl("conv_grad_bias", conv_grad_bias_kernel<Int>);
}
}  // namespace

TORCH_LIBRARY_IMPL(cnnext, CPU, m) {
  implement<int64_t>(m);
  m.impl("fused_conv", fused_conv_kernel);
}
#if defined(CNNEXT_WITH_CUDA)
TORCH_LIBRARY_IMPL(cnnext, CUDA, m) { implement<int64_t>(m); }
#endif

TORCH_LIBRARY_IMPL(cnnext, Meta, m) { implement<c10::SymInt>(m); }

}  // namespace cnnext::ops
