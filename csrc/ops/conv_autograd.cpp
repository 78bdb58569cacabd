// Derivatives of convolution. It and its gradients for the input and the weight close under differentiation:
// the derivatives of each are the other two, so that gradients of any order run on our kernels.
#include <algorithm>

#include "autograd.h"
#include "conv.h"
#include "weight_cache.h"

namespace cnnext::ops {
namespace {

// The parameters of a convolution, as they are kept between forward and backward.
struct Parameters {
  SymInts stride, padding, dilation;
  c10::SymInt groups;
  c10::SymInt channels_last;  // 1 where the gradient of the output shall be laid out so

  void save(AutogradContext* ctx) const {
    const c10::SymInt numbers[] = {groups, channels_last};
    save_lists(ctx, {stride, padding, dilation, SymInts(numbers)});
  }
};

struct SavedParameters : Parameters {
  explicit SavedParameters(AutogradContext* ctx) : saved(ctx) {
    stride = saved.next();
    padding = saved.next();
    dilation = saved.next();
    const SymInts numbers = saved.next();
    groups = numbers[0];
    channels_last = numbers[1];
  }
  at::Tensor laid_out(const at::Tensor& grad) const {
    // One of a batch (torch.autograd.grad with is_grads_batched) has no memory format.
    if (grad.key_set().has(c10::DispatchKey::Batched)) return grad;
    const Layout layout = last_if(channels_last.expect_int() == 1, grad.dim());
    return grad.contiguous(memory_format(layout, grad.dim()));
  }
  Saved saved;
};

// A Function numbers its inputs without the optional tensors that are absent, and number 2 may be none.
void save_bias(AutogradContext* ctx, const OptionalTensor& bias) {
  ctx->saved_data["bias"] = bias && bias->defined();
}
bool bias_needs_grad(AutogradContext* ctx) {
  return ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2);
}

// Gradients that are differentiated again are in the graph, as torch's are, even where one is a constant.
struct InGraph : public Function<InGraph> {
  static at::Tensor forward(AutogradContext*, const at::Tensor& gradient, const at::Tensor&) {
    return gradient.detach();
  }
  static variable_list backward(AutogradContext*, const variable_list&) { return {{}, {}}; }
};
variable_list in_graph(variable_list gradients, const variable_list& operands) {
  if (!at::GradMode::is_enabled()) return gradients;
  const auto operand = std::find_if(operands.begin(), operands.end(),
                                    [](const at::Tensor& operand) { return wants_grad(operand); });
  if (operand == operands.end()) return gradients;
  for (at::Tensor& gradient : gradients) {
    if (gradient.defined() && !gradient.requires_grad()) gradient = InGraph::apply(gradient, *operand);
  }
  return gradients;
}

struct ConvFunction : public Function<ConvFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& weight,
                            const OptionalTensor& bias, Parameters p) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Differentiating differentiating;
    at::Tensor output = conv(input, weight, bias, p.stride, p.padding, p.dilation, p.groups);
    p.channels_last = is_last(output);
    p.save(ctx);
    ctx->save_for_backward({input, weight});
    save_bias(ctx, bias);
    return output;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return {{}, {}, {}, {}};
    const SavedParameters p(ctx);
    const Differentiating differentiating;
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &input = saved[0], &weight = saved[1];
    const at::Tensor grad = p.laid_out(grads[0]);
    variable_list out(4);
    if (ctx->needs_input_grad(0)) {
      out[0] = conv_grad_input(grad, weight, {}, spatial(input), p.stride, p.padding, p.dilation, p.groups);
    }
    if (ctx->needs_input_grad(1)) {
      out[1] = conv_grad_weight(grad, input, spatial(weight), p.stride, p.padding, p.dilation, p.groups,
                                is_last(weight));
    }
    if (bias_needs_grad(ctx)) out[2] = conv_grad_bias(grad);
    return in_graph(std::move(out), {saved[0], saved[1], grad});
  }
};

struct ConvGradInputFunction : public Function<ConvGradInputFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& grad_output, const at::Tensor& weight,
                            const OptionalTensor& bias, SymInts input_size, Parameters p) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Differentiating differentiating;
    at::Tensor grad_input =
        conv_grad_input(grad_output, weight, bias, input_size, p.stride, p.padding, p.dilation, p.groups);
    p.channels_last = is_last(grad_input);
    p.save(ctx);
    ctx->save_for_backward({grad_output, weight});
    save_bias(ctx, bias);
    return grad_input;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return {{}, {}, {}, {}, {}};
    const SavedParameters p(ctx);
    const Differentiating differentiating;
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &grad_output = saved[0], &weight = saved[1];
    const at::Tensor grad = p.laid_out(grads[0]);
    variable_list out(5);
    if (ctx->needs_input_grad(0)) out[0] = conv(grad, weight, {}, p.stride, p.padding, p.dilation, p.groups);
    if (ctx->needs_input_grad(1)) {
      out[1] = conv_grad_weight(grad_output, grad, spatial(weight), p.stride, p.padding, p.dilation, p.groups,
                                is_last(weight));
    }
    if (bias_needs_grad(ctx)) out[2] = conv_grad_bias(grad);
    return in_graph(std::move(out), {saved[0], saved[1], grad});
  }
};

struct ConvGradWeightFunction : public Function<ConvGradWeightFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& grad_output, const at::Tensor& input,
                            SymInts kernel_size, Parameters p) {
    at::AutoDispatchBelowADInplaceOrView below;
    p.save(ctx);
    ctx->save_for_backward({grad_output, input});
    return conv_grad_weight(grad_output, input, kernel_size, p.stride, p.padding, p.dilation, p.groups,
                            p.channels_last.expect_int() == 1);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return {{}, {}, {}, {}};
    const SavedParameters p(ctx);
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &grad_output = saved[0], &input = saved[1];
    const at::Tensor grad = p.laid_out(grads[0]);
    variable_list out(4);
    if (ctx->needs_input_grad(0)) out[0] = conv(input, grad, {}, p.stride, p.padding, p.dilation, p.groups);
    if (ctx->needs_input_grad(1)) {
      out[1] =
          conv_grad_input(grad_output, grad, {}, spatial(input), p.stride, p.padding, p.dilation, p.groups);
    }
    return in_graph(std::move(out), {grad_output, input, grad});
  }
};

struct ConvGradBiasFunction : public Function<ConvGradBiasFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& grad_output) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->saved_data["size"] = grad_output.sym_sizes();
    return conv_grad_bias(grad_output);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return {{}};
    const auto size = ctx->saved_data["size"].toSymIntVector();
    std::vector<int64_t> column(size.size(), 1);
    column[1] = -1;
    return {grads[0].reshape(column).expand_symint(size)};
  }
};

at::Tensor conv_autograd(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                         SymInts stride, SymInts padding, SymInts dilation, c10::SymInt groups) {
  const char* reason = left_to_aten({&input, &weight, bias ? &*bias : &weight});
  // torch's result has no channels then, and only its own gradients take that.
  if (!reason && weight.dim() > 1 && weight.sym_size(1) == 0) reason = "empty tensor";
  if (reason) {
    return aten::conv(reason, input, weight, bias, stride, padding, dilation, groups);
  }
  if (differentiates(input, weight, bias)) {
    return ConvFunction::apply(input, weight, bias, Parameters{stride, padding, dilation, groups, 0});
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return conv(input, weight, bias, stride, padding, dilation, groups);
}

at::Tensor conv_grad_input_autograd(const at::Tensor& grad_output, const at::Tensor& weight,
                                    const OptionalTensor& bias, SymInts input_size, SymInts stride,
                                    SymInts padding, SymInts dilation, c10::SymInt groups) {
  if (const char* reason = left_to_aten({&grad_output, &weight, bias ? &*bias : &weight})) {
    return aten::conv_grad_input(reason, grad_output, weight, bias, input_size, stride, padding, dilation,
                                 groups);
  }
  if (differentiates(grad_output, weight, bias)) {
    return ConvGradInputFunction::apply(grad_output, weight, bias, input_size,
                                        Parameters{stride, padding, dilation, groups, 0});
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return conv_grad_input(grad_output, weight, bias, input_size, stride, padding, dilation, groups);
}

at::Tensor conv_grad_weight_autograd(const at::Tensor& grad_output, const at::Tensor& input,
                                     SymInts kernel_size, SymInts stride, SymInts padding, SymInts dilation,
                                     c10::SymInt groups, bool channels_last) {
  if (const char* reason = left_to_aten({&grad_output, &input})) {
    return aten::conv_grad_weight(reason, grad_output, input, kernel_size, stride, padding, dilation, groups,
                                  channels_last);
  }
  if (differentiates(grad_output, input)) {
    return ConvGradWeightFunction::apply(grad_output, input, kernel_size,
                                         Parameters{stride, padding, dilation, groups, channels_last});
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return conv_grad_weight(grad_output, input, kernel_size, stride, padding, dilation, groups, channels_last);
}

at::Tensor conv_grad_bias_autograd(const at::Tensor& grad_output) {
  if (const char* reason = left_to_aten({&grad_output})) return aten::conv_grad_bias(reason, grad_output);
  if (differentiates(grad_output)) return ConvGradBiasFunction::apply(grad_output);
  at::AutoDispatchBelowADInplaceOrView below;
  return conv_grad_bias(grad_output);
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnext, Autograd, m) {
  m.impl("conv", conv_autograd);
  m.impl("conv_grad_input", conv_grad_input_autograd);
  m.impl("conv_grad_weight", conv_grad_weight_autograd);
  m.impl("conv_grad_bias", conv_grad_bias_autograd);
}

}  // namespace cnnext::ops
