// Derivatives of max pooling. max_pool_grad_input and max_pool_select are each other's transposes:
// derivatives of any order run on our kernels.
#include "autograd.h"
#include "pool.h"

namespace cnnext::ops {
namespace {

struct MaxPoolFunction : public Function<MaxPoolFunction> {
  // The indices are written where asked for: they have no gradient. An empty kernel_size means adaptive
  // windows, of which `stride` is the output's size.
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, SymInts kernel_size,
                            SymInts stride, SymInts padding, SymInts dilation, bool ceil_mode,
                            at::Tensor* indices) {
    at::AutoDispatchBelowADInplaceOrView below;
    const bool adaptive = kernel_size.empty();
    auto [output, offsets] =
        adaptive ? adaptive_max_pool_with_offsets(input, stride)
                 : max_pool_with_offsets(input, kernel_size, stride, padding, dilation, ceil_mode);
    if (adaptive) stride = {};
    const c10::SymInt last = is_last(input);
    save_lists(ctx, {spatial(input), kernel_size, stride, padding, dilation, SymInts(last)});
    ctx->save_for_backward({offsets});
    if (indices) *indices = max_pool_indices(offsets, spatial(input), kernel_size, stride, padding, dilation);
    return output;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list out(7);
    if (!grads[0].defined()) return out;
    Saved saved(ctx);
    const SymInts input = saved.next(), kernel = saved.next(), stride = saved.next(), padding = saved.next(),
                  dilation = saved.next();
    out[0] = max_pool_grad_input(grads[0], ctx->get_saved_variables()[0], input, kernel, stride, padding,
                                 dilation, saved.next_number() != 0);
    return out;
  }
};

struct MaxPoolGradInputFunction : public Function<MaxPoolGradInputFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& grad_output, const at::Tensor& offsets,
                            SymInts input_size, SymInts kernel_size, SymInts stride, SymInts padding,
                            SymInts dilation, bool channels_last) {
    at::AutoDispatchBelowADInplaceOrView below;
    save_lists(ctx, {kernel_size, stride, padding, dilation});
    ctx->save_for_backward({offsets});
    return max_pool_grad_input(grad_output, offsets, input_size, kernel_size, stride, padding, dilation,
                               channels_last);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list out(8);
    if (!grads[0].defined()) return out;
    Saved saved(ctx);
    const SymInts kernel = saved.next(), stride = saved.next(), padding = saved.next(),
                  dilation = saved.next();
    out[0] = max_pool_select(grads[0], ctx->get_saved_variables()[0], kernel, stride, padding, dilation);
    return out;
  }
};

struct MaxPoolSelectFunction : public Function<MaxPoolSelectFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& offsets,
                            SymInts kernel_size, SymInts stride, SymInts padding, SymInts dilation) {
    at::AutoDispatchBelowADInplaceOrView below;
    const c10::SymInt last = is_last(input);
    save_lists(ctx, {spatial(input), kernel_size, stride, padding, dilation, SymInts(last)});
    ctx->save_for_backward({offsets});
    return max_pool_select(input, offsets, kernel_size, stride, padding, dilation);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    grads = MaxPoolFunction::backward(ctx, std::move(grads));
    grads.resize(6);
    return grads;
  }
};

// torch raises its own error, or computes and differentiates what is not ours.
constexpr const char* kDoesNotFit = "invalid or empty size";
bool has_batch(const at::Tensor& input) { return input.dim() >= 3 && input.dim() <= kAxes + 2; }

at::Tensor max_pool_autograd(const at::Tensor& input, SymInts kernel_size, SymInts stride, SymInts padding,
                             SymInts dilation, bool ceil_mode) {
  if (const char* reason = left_to_aten({&input})) {
    return aten::max_pool(reason, input, kernel_size, stride, padding, dilation, ceil_mode);
  }
  if (differentiates(input) && has_batch(input)) {
    if (!pool_fits(input, kernel_size, stride, padding, dilation, ceil_mode))
      return aten::max_pool(kDoesNotFit, input, kernel_size, stride, padding, dilation, ceil_mode);
    return MaxPoolFunction::apply(input, kernel_size, stride, padding, dilation, ceil_mode, nullptr);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return max_pool(input, kernel_size, stride, padding, dilation, ceil_mode);
}

TensorPair max_pool_with_indices_autograd(const at::Tensor& input, SymInts kernel_size, SymInts stride,
                                          SymInts padding, SymInts dilation, bool ceil_mode) {
  if (const char* reason = left_to_aten({&input})) {
    return aten::max_pool_with_indices(reason, input, kernel_size, stride, padding, dilation, ceil_mode);
  }
  if (differentiates(input) && has_batch(input)) {
    if (!pool_fits(input, kernel_size, stride, padding, dilation, ceil_mode)) {
      return aten::max_pool_with_indices(kDoesNotFit, input, kernel_size, stride, padding, dilation,
                                         ceil_mode);
    }
    at::Tensor indices;
    at::Tensor output =
        MaxPoolFunction::apply(input, kernel_size, stride, padding, dilation, ceil_mode, &indices);
    return {output, indices};
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return max_pool_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode);
}

at::Tensor adaptive_max_pool_autograd(const at::Tensor& input, SymInts output_size) {
  if (const char* reason = left_to_aten({&input})) return aten::adaptive_max_pool(reason, input, output_size);
  if (differentiates(input))
    return MaxPoolFunction::apply(input, SymInts(), output_size, SymInts(), SymInts(), false, nullptr);
  at::AutoDispatchBelowADInplaceOrView below;
  return adaptive_max_pool(input, output_size);
}

TensorPair adaptive_max_pool_with_indices_autograd(const at::Tensor& input, SymInts output_size) {
  if (const char* reason = left_to_aten({&input})) {
    return aten::adaptive_max_pool_with_indices(reason, input, output_size);
  }
  if (differentiates(input)) {
    at::Tensor indices;
    at::Tensor output =
        MaxPoolFunction::apply(input, SymInts(), output_size, SymInts(), SymInts(), false, &indices);
    return {output, indices};
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return adaptive_max_pool_with_indices(input, output_size);
}

at::Tensor max_pool_grad_input_autograd(const at::Tensor& grad_output, const at::Tensor& offsets,
                                        SymInts input_size, SymInts kernel_size, SymInts stride,
                                        SymInts padding, SymInts dilation, bool channels_last) {
  if (const char* reason = left_to_aten({&grad_output})) {
    return aten::max_pool_grad_input(reason, grad_output, offsets, input_size, kernel_size, stride, padding,
                                     dilation, channels_last);
  }
  if (differentiates(grad_output)) {
    return MaxPoolGradInputFunction::apply(grad_output, offsets, input_size, kernel_size, stride, padding,
                                           dilation, channels_last);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return max_pool_grad_input(grad_output, offsets, input_size, kernel_size, stride, padding, dilation,
                             channels_last);
}

at::Tensor max_pool_select_autograd(const at::Tensor& input, const at::Tensor& offsets, SymInts kernel_size,
                                    SymInts stride, SymInts padding, SymInts dilation) {
  if (const char* reason = left_to_aten({&input})) {
    return aten::max_pool_select(reason, input, offsets, kernel_size, stride, padding, dilation);
  }
  if (differentiates(input)) {
    return MaxPoolSelectFunction::apply(input, offsets, kernel_size, stride, padding, dilation);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return max_pool_select(input, offsets, kernel_size, stride, padding, dilation);
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnext, Autograd, m) {
  m.impl("max_pool", max_pool_autograd);
  m.impl("max_pool_with_indices", max_pool_with_indices_autograd);
  m.impl("adaptive_max_pool", adaptive_max_pool_autograd);
  m.impl("adaptive_max_pool_with_indices", adaptive_max_pool_with_indices_autograd);
  m.impl("max_pool_grad_input", max_pool_grad_input_autograd);
  m.impl("max_pool_select", max_pool_select_autograd);
}

}  // namespace cnnext::ops
