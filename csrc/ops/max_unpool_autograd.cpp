// Derivatives of unpooling: it and its gradient are each other's transposes.
#include "autograd.h"
#include "pool.h"

namespace cnnext::ops {
namespace {

struct MaxUnpoolFunction : public Function<MaxUnpoolFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& indices,
                            SymInts output_size) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->saved_data["channels_last"] = is_last(input);
    ctx->save_for_backward({indices});
    return max_unpool(input, indices, output_size);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list out(3);
    if (!grads[0].defined()) return out;
    out[0] = max_unpool_grad_input(grads[0], ctx->get_saved_variables()[0],
                                   ctx->saved_data["channels_last"].toBool());
    return out;
  }
};

struct MaxUnpoolGradInputFunction : public Function<MaxUnpoolGradInputFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& grad_output, const at::Tensor& indices,
                            bool channels_last) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->saved_data["size"] = spatial(grad_output);
    ctx->save_for_backward({indices});
    return max_unpool_grad_input(grad_output, indices, channels_last);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list out(3);
    if (!grads[0].defined()) return out;
    const std::vector<c10::SymInt> size = ctx->saved_data["size"].toSymIntVector();
    out[0] = max_unpool(grads[0], ctx->get_saved_variables()[0], size);
    return out;
  }
};

at::Tensor max_unpool_autograd(const at::Tensor& input, const at::Tensor& indices, SymInts output_size) {
  if (const char* reason = left_to_aten({&input}))
    return aten::max_unpool(reason, input, indices, output_size);
  if (differentiates(input)) return MaxUnpoolFunction::apply(input, indices, output_size);
  at::AutoDispatchBelowADInplaceOrView below;
  return max_unpool(input, indices, output_size);
}

at::Tensor max_unpool_grad_input_autograd(const at::Tensor& grad_output, const at::Tensor& indices,
                                          bool channels_last) {
  if (const char* reason = left_to_aten({&grad_output})) {
    return aten::max_unpool_grad_input(reason, grad_output, indices, channels_last);
  }
  if (differentiates(grad_output))
    return MaxUnpoolGradInputFunction::apply(grad_output, indices, channels_last);
  at::AutoDispatchBelowADInplaceOrView below;
  return max_unpool_grad_input(grad_output, indices, channels_last);
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnext, Autograd, m) {
  m.impl("max_unpool", max_unpool_autograd);
  m.impl("max_unpool_grad_input", max_unpool_grad_input_autograd);
}

}  // namespace cnnext::ops
