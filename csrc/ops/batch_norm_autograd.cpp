// Derivatives of batch normalisation. Those of its gradients are ATen's: they are wanted by penalties on
// gradients alone.
#include <ATen/TensorOperators.h>
#include <ATen/ops/native_batch_norm_backward.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include "autograd.h"
#include "batch_norm.h"
#include "dispatch.h"

namespace cnnext::ops {
namespace {

OptionalTensor optional(const at::Tensor& t) { return t.defined() ? OptionalTensor(t) : OptionalTensor(); }

// What passes of a gradient through an activation whose result is y.
at::Tensor through_activation(const at::Tensor& gradient, const at::Tensor& y, const std::string& activation,
                              double negative_slope) {
  if (activation == "leaky_relu") return at::where(y > 0, gradient, gradient * negative_slope);
  const at::Tensor stopped = activation == "relu6" ? (y <= 0).logical_or(y >= 6) : y <= 0;
  return at::where(stopped, at::zeros_like(gradient), gradient);
}

struct BatchNormFunction : public Function<BatchNormFunction> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& input, const OptionalTensor& weight,
                               const OptionalTensor& bias, const OptionalTensor& mean,
                               const OptionalTensor& variance, double eps, const OptionalTensor& residual,
                               std::string activation, double negative_slope) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [output, batch_mean, batch_variance] =
        batch_norm(input, weight, bias, mean, variance, eps, residual, activation, negative_slope);
    const bool of_batch = !is_given(mean), keeps_output = is_given(residual) && activation != "none";
    const auto or_none = [](const OptionalTensor& t) { return is_given(t) ? *t : at::Tensor(); };
    ctx->save_for_backward({input, or_none(weight), or_none(bias), of_batch ? batch_mean : *mean,
                            of_batch ? batch_variance : *variance, keeps_output ? output : at::Tensor()});
    ctx->saved_data["of_batch"] = of_batch;
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["activation"] = std::move(activation);
    ctx->saved_data["negative_slope"] = negative_slope;
    ctx->saved_data["input"] = input.requires_grad();
    ctx->saved_data["residual"] = wants_grad(residual);
    ctx->mark_non_differentiable({batch_mean, batch_variance});
    return {output, batch_mean, batch_variance};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list out(9);
    if (!grads[0].defined()) return out;
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &input = saved[0], &weight = saved[1], &bias = saved[2], &mean = saved[3],
                     &variance = saved[4], &output = saved[5];
    const bool of_batch = ctx->saved_data["of_batch"].toBool();
    const double eps = ctx->saved_data["eps"].toDouble();
    const std::string activation = ctx->saved_data["activation"].toStringRef();
    const double negative_slope = ctx->saved_data["negative_slope"].toDouble();
    const bool of_residual = ctx->saved_data["residual"].toBool();
    at::Tensor grad_weight, grad_bias;
    if (at::GradMode::is_enabled()) {
      at::Tensor gradient = grads[0];
      if (activation != "none") {
        const at::NoGradGuard constant;
        const at::Tensor y = output.defined()
                                 ? output
                                 : std::get<0>(batch_norm(input, optional(weight), optional(bias), mean,
                                                          variance, eps, {}, "none", 0));
        const at::AutoGradMode again(true);
        gradient = through_activation(gradient, y.detach(), activation, negative_slope);
      }
      std::tie(out[0], grad_weight, grad_bias) =
          at::native_batch_norm_backward(gradient, input, optional(weight), mean, variance, mean,
                                         at::rsqrt(variance + eps), of_batch, eps, {true, true, true});
      if (of_residual) out[6] = gradient;
    } else {
      // Without an activation a residual's gradient is that of the result.
      const bool gated = of_residual && activation != "none";
      at::Tensor of_gated;
      std::tie(out[0], grad_weight, grad_bias, of_gated) = batch_norm_grad(
          grads[0], input, optional(output), optional(weight), optional(bias), mean, variance, of_batch, eps,
          activation, negative_slope, ctx->saved_data["input"].toBool(), gated);
      if (of_residual) out[6] = gated ? of_gated : grads[0];
      if (!ctx->saved_data["input"].toBool()) out[0] = at::Tensor();
    }
    if (wants_grad(weight)) out[1] = grad_weight.to(weight.scalar_type());
    if (wants_grad(bias)) out[2] = grad_bias.to(bias.scalar_type());
    return out;
  }
};

TensorTriple batch_norm_autograd(const at::Tensor& input, const OptionalTensor& weight,
                                 const OptionalTensor& bias, const OptionalTensor& mean,
                                 const OptionalTensor& variance, double eps, const OptionalTensor& residual,
                                 c10::string_view activation, double negative_slope) {
  if (const char* reason = batch_norm_left_to_aten(input, weight, bias, mean, variance, residual)) {
    return aten::batch_norm(reason, input, weight, bias, mean, variance, eps, residual, activation,
                            negative_slope);
  }
  if (differentiates(input, weight, bias, residual)) {
    const variable_list outputs = BatchNormFunction::apply(input, weight, bias, mean, variance, eps, residual,
                                                           std::string(activation), negative_slope);
    return {outputs[0], outputs[1], outputs[2]};
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return batch_norm(input, weight, bias, mean, variance, eps, residual, activation, negative_slope);
}

TensorQuadruple batch_norm_grad_autograd(const at::Tensor& grad_output, const at::Tensor& input,
                                         const OptionalTensor& output, const OptionalTensor& weight,
                                         const OptionalTensor& bias, const at::Tensor& mean,
                                         const at::Tensor& variance, bool of_batch, double eps,
                                         c10::string_view activation, double negative_slope, bool grad_input,
                                         bool grad_residual) {
  TORCH_CHECK(!differentiates(grad_output, input, weight),
              "batch_norm_grad: not differentiable; batch_norm's gradients are, with create_graph=True");
  at::AutoDispatchBelowADInplaceOrView below;
  return batch_norm_grad(grad_output, input, output, weight, bias, mean, variance, of_batch, eps, activation,
                         negative_slope, grad_input, grad_residual);
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnext, Autograd, m) {
  m.impl("batch_norm", batch_norm_autograd);
  m.impl("batch_norm_grad", batch_norm_grad_autograd);
}
TORCH_LIBRARY_IMPL(cnnext, FuncTorchBatched, m) { m.impl("batch_norm", Batched<aten::batch_norm>::run); }

}  // namespace cnnext::ops
