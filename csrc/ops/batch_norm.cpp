// Batch normalisation: the operator, its gradients, and the same by ATen.
#include "batch_norm.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/native_batch_norm.h>
#include <ATen/ops/var_mean.h>
#include <torch/library.h>

#include "device.h"
#include "dispatch.h"
#include "epilogue.h"
#include "meta.h"

namespace cnnext::ops {

TensorTriple batch_norm(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                        const OptionalTensor& mean, const OptionalTensor& variance, double eps,
                        const OptionalTensor& residual, c10::string_view activation, double negative_slope) {
  CNNEXT_OP(batch_norm);
  return op.call(input, weight, bias, mean, variance, eps, residual, activation, negative_slope);
}

TensorQuadruple batch_norm_grad(const at::Tensor& grad_output, const at::Tensor& input,
                                const OptionalTensor& output, const OptionalTensor& weight,
                                const OptionalTensor& bias, const at::Tensor& mean,
                                const at::Tensor& variance, bool of_batch, double eps,
                                c10::string_view activation, double negative_slope, bool grad_input,
                                bool grad_residual) {
  CNNEXT_OP(batch_norm_grad);
  return op.call(grad_output, input, output, weight, bias, mean, variance, of_batch, eps, activation,
                 negative_slope, grad_input, grad_residual);
}

TensorTriple aten::batch_norm(const char* reason, const at::Tensor& input, const OptionalTensor& weight,
                              const OptionalTensor& bias, const OptionalTensor& mean,
                              const OptionalTensor& variance, double eps, const OptionalTensor& residual,
                              c10::string_view activation, double negative_slope) {
  const bool of_batch = !mean || !mean->defined();
  const at::Tensor y =
      std::get<0>(at::native_batch_norm(input, weight, bias, mean, variance, of_batch, 0, eps));
  std::tuple<at::Tensor, at::Tensor> moments = {at::empty({0}, input.options()),
                                                at::empty({0}, input.options())};
  if (of_batch) {
    std::vector<int64_t> axes;
    for (int64_t axis = 0; axis < input.dim(); ++axis) {
      if (axis != 1) axes.push_back(axis);
    }
    moments = at::var_mean(input.detach(), axes, c10::Scalar(0));
  }
  return recorded("batch_norm", reason,
                  TensorTriple(finish_in_steps("batch_norm", y, residual, activation, negative_slope),
                               std::get<1>(moments), std::get<0>(moments)));
}

namespace {

at::ScalarType type_of_channels(const at::Tensor& input) {
  return input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace

const char* batch_norm_left_to_aten(const at::Tensor& input, const OptionalTensor& weight,
                                    const OptionalTensor& bias, const OptionalTensor& mean,
                                    const OptionalTensor& variance, const OptionalTensor& residual) {
  if (input.is_cuda()) return "on a GPU";
  if (const char* reason = left_to_aten({&input, is_given(residual) ? &*residual : &input})) return reason;
  for (const OptionalTensor* each : {&weight, &bias, &mean, &variance}) {
    if (!is_given(*each)) continue;
    const at::Tensor& t = **each;
    if (const char* reason = left_to_aten({&t})) return reason;
    if (t.device() != input.device()) return "several devices";
    if (t.scalar_type() != input.scalar_type() && t.scalar_type() != type_of_channels(input)) {
      return "mixed element types";
    }
  }
  return nullptr;
}

namespace {

void check_channels(const char* name, const OptionalTensor& t, const at::Tensor& input) {
  TORCH_CHECK(!is_given(t) || (t->dim() == 1 && t->sym_size(0) == input.sym_size(1)), "batch_norm: expected ",
              name, " to have one element for each of ", input.sym_size(1), " channels, but got one of size ",
              t->sym_sizes());
}
void check_sizes(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                 const OptionalTensor& mean, const OptionalTensor& variance) {
  TORCH_CHECK(input.dim() >= 2 && input.dim() <= kAxes + 2 && input.sym_size(1) > 0,
              "batch_norm: expected an input of 2 to 5 dimensions with channels, but got one of size ",
              input.sym_sizes());
  check_channels("weight", weight, input);
  check_channels("bias", bias, input);
  check_channels("mean", mean, input);
  check_channels("variance", variance, input);
}

// A tensor's elements in the order of another's.
at::Tensor laid_out_as(const at::Tensor& t, const at::Tensor& like) {
  return t.contiguous(memory_format(layout_of(like), like.dim()));
}
at::Tensor of_channels(const OptionalTensor& t, const at::Tensor& input) {
  return is_given(t) ? t->to(type_of_channels(input)).contiguous() : at::Tensor();
}

// Waking a thread takes longer than so many elements.
constexpr int64_t kElementsAlone = 1 << 15;

NormProblem problem_of(const at::Tensor& input, double eps, bool of_batch) {
  NormProblem problem;
  problem.N = input.size(0);
  problem.C = input.size(1);
  problem.pixels = input.numel() / (problem.N * problem.C);
  problem.eps = eps;
  problem.dtype = *element_type(input.scalar_type());
  problem.layout = layout_of(input);
  problem.threads = input.numel() < kElementsAlone ? 1 : at::get_num_threads();
  problem.batch_statistics = of_batch;
  return problem;
}

template <class Int>
at::Tensor new_like(const at::Tensor& input) {
  return new_tensor<Int>(sizes<Int>(input), input.options(), layout_of(input));
}
template <class Int>
at::Tensor new_of_channels(const at::Tensor& input, bool wanted = true) {
  const Int count = wanted ? size<Int>(input, 1) : Int(0);
  return new_tensor<Int>(c10::ArrayRef<Int>(count), input.options().dtype(type_of_channels(input)),
                         Layout::kChannelsFirst);
}

template <class Int>
TensorTriple batch_norm_kernel(const at::Tensor& input, const OptionalTensor& weight,
                               const OptionalTensor& bias, const OptionalTensor& mean,
                               const OptionalTensor& variance, double eps, const OptionalTensor& residual,
                               c10::string_view activation, double negative_slope) {
  if (const char* reason = batch_norm_left_to_aten(input, weight, bias, mean, variance, residual)) {
    return aten::batch_norm(reason, input, weight, bias, mean, variance, eps, residual, activation,
                            negative_slope);
  }
  const bool of_batch = !is_given(mean);
  TORCH_CHECK(of_batch == !is_given(variance), "batch_norm: expected both mean and variance or neither");
  TORCH_CHECK(!is_given(residual) || residual->sym_sizes().equals(input.sym_sizes()),
              "batch_norm: expected a residual of the input's size ", input.sym_sizes(),
              ", but got one of size ", residual->sym_sizes());
  check_sizes(input, weight, bias, mean, variance);
  const Epilogue epilogue = epilogue_of("batch_norm", activation, negative_slope, input.scalar_type());
  const at::Tensor output = new_like<Int>(input);
  const at::Tensor batch_mean = new_of_channels<Int>(input, of_batch),
                   batch_variance = new_of_channels<Int>(input, of_batch);
  if constexpr (kRuns<Int>) {
    if (input.numel() == 0) {
      TORCH_CHECK(!of_batch, "batch_norm: expected elements to normalise by, but got an input of size ",
                  input.sizes());
      return {output, batch_mean, batch_variance};
    }
    const at::Tensor x = laid_out_as(input, output),
                     added = is_given(residual) ? laid_out_as(*residual, output) : at::Tensor(),
                     gain = of_channels(weight, input), offset = of_channels(bias, input),
                     center = of_batch ? batch_mean : of_channels(mean, input),
                     spread = of_batch ? batch_variance : of_channels(variance, input);
    NormBuffers b;
    b.input = data(x);
    b.output = data(output);
    b.weight = data(gain);
    b.bias = data(offset);
    b.mean = data(center);
    b.variance = data(spread);
    b.epilogue = epilogue;
    b.epilogue.residual = data(added);
    run_kernel("batch_norm", CNNEXT_LIST(batch_norm), problem_of(output, eps, of_batch), b, output);
  }
  return {output, batch_mean, batch_variance};
}

template <class Int>
TensorQuadruple batch_norm_grad_kernel(const at::Tensor& grad_output, const at::Tensor& input,
                                       const OptionalTensor& output, const OptionalTensor& weight,
                                       const OptionalTensor& bias, const at::Tensor& mean,
                                       const at::Tensor& variance, bool of_batch, double eps,
                                       c10::string_view activation, double negative_slope, bool grad_input,
                                       bool grad_residual) {
  TORCH_CHECK(grad_output.sym_sizes().equals(input.sym_sizes()) && grad_output.dtype() == input.dtype(),
              "batch_norm_grad: expected a gradient of the input's size ", input.sym_sizes(), " and type ",
              input.dtype(), ", but got ", grad_output.sym_sizes(), " and ", grad_output.dtype());
  TORCH_CHECK(element_type(input.scalar_type()), "batch_norm_grad: not implemented for ", input.dtype());
  check_sizes(input, weight, bias, mean, variance);
  const Epilogue epilogue = epilogue_of("batch_norm_grad", activation, negative_slope, input.scalar_type());
  const auto none = [&] { return new_of_channels<Int>(input, false).to(input.scalar_type()); };
  const at::Tensor of_input = grad_input ? new_like<Int>(input) : none(),
                   of_residual = grad_residual ? new_like<Int>(input) : none(),
                   of_weight = new_of_channels<Int>(input), of_bias = new_of_channels<Int>(input);
  if constexpr (kRuns<Int>) {
    if (input.numel() == 0) return {of_input, of_weight.zero_(), of_bias.zero_(), of_residual};
    const at::Tensor x = laid_out_as(input, input), grad = laid_out_as(grad_output, input),
                     y = is_given(output) ? laid_out_as(*output, input) : at::Tensor(),
                     gain = of_channels(weight, input), offset = of_channels(bias, input),
                     center = of_channels(mean, input), spread = of_channels(variance, input);
    NormBuffers b;
    b.input = data(x);
    b.output = data(y);
    b.grad_output = data(grad);
    if (grad_input) b.grad_input = data(of_input);
    if (grad_residual) b.grad_residual = data(of_residual);
    b.weight = data(gain);
    b.bias = data(offset);
    b.mean = data(center);
    b.variance = data(spread);
    b.grad_weight = data(of_weight);
    b.grad_bias = data(of_bias);
    b.epilogue = epilogue;
    run_kernel("batch_norm_grad", CNNEXT_LIST(batch_norm_grad), problem_of(x, eps, of_batch), b, x);
  }
  return {of_input, of_weight, of_bias, of_residual};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(cnnext, m) {
  m.def(
      "batch_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? variance, float "
      "eps=1e-05, "
      "Tensor? residual=None, str activation=\"none\", float negative_slope=0.01) -> "
      "(Tensor output, Tensor mean, Tensor variance)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "batch_norm_grad(Tensor grad_output, Tensor input, Tensor? output, Tensor? weight, Tensor? bias, "
      "Tensor mean, "
      "Tensor variance, bool of_batch, float eps, str activation, float negative_slope, bool grad_input, "
      "bool grad_residual) -> (Tensor, Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}

template <class Int>
void implement(torch::Library& m) {
  m.impl("batch_norm", batch_norm_kernel<Int>);
  m.impl("batch_norm_grad", batch_norm_grad_kernel<Int>);
}
TORCH_LIBRARY_IMPL(cnnext, CPU, m) { implement<int64_t>(m); }
TORCH_LIBRARY_IMPL(cnnext, Meta, m) { implement<c10::SymInt>(m); }
TORCH_LIBRARY_IMPL(cnnext, CUDA, m) { m.impl("batch_norm", batch_norm_kernel<int64_t>); }

}  // namespace cnnext::ops
