// Derivatives of average pooling. Averages are linear: forward and gradient are each other's derivative, and
// nothing but sizes is kept.
#include <algorithm>

#include "autograd.h"
#include "pool.h"

namespace cnnext::ops {
namespace {

// torch's averages keep their input, so that a second backward pass is an error; ours would pass.
void check_first_pass(AutogradContext* ctx) { ctx->get_saved_variables(); }

struct AvgPoolFunction : public Function<AvgPoolFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, SymInts kernel_size,
                            SymInts stride, SymInts padding, bool ceil_mode, bool count_include_pad,
                            OptionalSymInt divisor_override) {
    at::AutoDispatchBelowADInplaceOrView below;
    const c10::SymInt flags[] = {ceil_mode, count_include_pad, divisor_override.value_or(0), is_last(input)};
    save_lists(ctx, {spatial(input), kernel_size, stride, padding, SymInts(flags)});
    return avg_pool(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list out(7);
    if (!grads[0].defined()) return out;
    check_first_pass(ctx);
    Saved saved(ctx);
    const SymInts input = saved.next(), kernel = saved.next(), stride = saved.next(), padding = saved.next(),
                  flags = saved.next();
    const auto divisor = flags[2] == 0 ? OptionalSymInt() : OptionalSymInt(flags[2]);
    out[0] = avg_pool_grad_input(grads[0], input, kernel, stride, padding, flags[0].expect_int() != 0,
                                 flags[1].expect_int() != 0, divisor, flags[3].expect_int() != 0);
    return out;
  }
};

struct AvgPoolGradInputFunction : public Function<AvgPoolGradInputFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& grad_output, SymInts input_size,
                            SymInts kernel_size, SymInts stride, SymInts padding, bool ceil_mode,
                            bool count_include_pad, OptionalSymInt divisor_override, bool channels_last) {
    at::AutoDispatchBelowADInplaceOrView below;
    const c10::SymInt flags[] = {ceil_mode, count_include_pad, divisor_override.value_or(0)};
    save_lists(ctx, {kernel_size, stride, padding, SymInts(flags)});
    return avg_pool_grad_input(grad_output, input_size, kernel_size, stride, padding, ceil_mode,
                               count_include_pad, divisor_override, channels_last);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list out(9);
    if (!grads[0].defined()) return out;
    Saved saved(ctx);
    const SymInts kernel = saved.next(), stride = saved.next(), padding = saved.next(), flags = saved.next();
    const auto divisor = flags[2] == 0 ? OptionalSymInt() : OptionalSymInt(flags[2]);
    out[0] = avg_pool(grads[0], kernel, stride, padding, flags[0].expect_int() != 0,
                      flags[1].expect_int() != 0, divisor);
    return out;
  }
};

struct AdaptiveAvgPoolFunction : public Function<AdaptiveAvgPoolFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, SymInts output_size) {
    at::AutoDispatchBelowADInplaceOrView below;
    const c10::SymInt last = is_last(input);
    save_lists(ctx, {spatial(input), SymInts(last)});
    return adaptive_avg_pool(input, output_size);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list out(2);
    if (!grads[0].defined()) return out;
    // To torch, those of whole planes are means, which keep nothing.
    const SymInts output = spatial(grads[0]);
    if (std::any_of(output.begin(), output.end(), [](const c10::SymInt& n) { return n != 1; }))
      check_first_pass(ctx);
    Saved saved(ctx);
    const SymInts input = saved.next();
    out[0] = adaptive_avg_pool_grad_input(grads[0], input, saved.next_number() != 0);
    return out;
  }
};

struct AdaptiveAvgPoolGradInputFunction : public Function<AdaptiveAvgPoolGradInputFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& grad_output, SymInts input_size,
                            bool channels_last) {
    at::AutoDispatchBelowADInplaceOrView below;
    save_lists(ctx, {spatial(grad_output)});
    return adaptive_avg_pool_grad_input(grad_output, input_size, channels_last);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list out(3);
    if (grads[0].defined()) out[0] = adaptive_avg_pool(grads[0], Saved(ctx).next());
    return out;
  }
};

at::Tensor avg_pool_autograd(const at::Tensor& input, SymInts kernel_size, SymInts stride, SymInts padding,
                             bool ceil_mode, bool count_include_pad, OptionalSymInt divisor_override) {
  if (const char* reason = left_to_aten({&input})) {
    return aten::avg_pool(reason, input, kernel_size, stride, padding, ceil_mode, count_include_pad,
                          divisor_override);
  }
  if (differentiates(input)) {
    return AvgPoolFunction::apply(input, kernel_size, stride, padding, ceil_mode, count_include_pad,
                                  divisor_override);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return avg_pool(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override);
}

at::Tensor avg_pool_grad_input_autograd(const at::Tensor& grad_output, SymInts input_size,
                                        SymInts kernel_size, SymInts stride, SymInts padding, bool ceil_mode,
                                        bool count_include_pad, OptionalSymInt divisor_override,
                                        bool channels_last) {
  if (const char* reason = left_to_aten({&grad_output})) {
    return aten::avg_pool_grad_input(reason, grad_output, input_size, kernel_size, stride, padding, ceil_mode,
                                     count_include_pad, divisor_override, channels_last);
  }
  if (differentiates(grad_output)) {
    return AvgPoolGradInputFunction::apply(grad_output, input_size, kernel_size, stride, padding, ceil_mode,
                                           count_include_pad, divisor_override, channels_last);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return avg_pool_grad_input(grad_output, input_size, kernel_size, stride, padding, ceil_mode,
                             count_include_pad, divisor_override, channels_last);
}

// torch averages empty planes and no channels, and gives their gradient the input's size.
const char* adaptive_avg_pool_left_to_aten(const at::Tensor& input) {
  const char* reason = left_to_aten({&input});
  for (int64_t i = 1; !reason && i < input.dim(); ++i) {
    if (input.sym_size(i) == 0) reason = "invalid or empty size";
  }
  return reason;
}

at::Tensor adaptive_avg_pool_autograd(const at::Tensor& input, SymInts output_size) {
  if (const char* reason = adaptive_avg_pool_left_to_aten(input)) {
    return aten::adaptive_avg_pool(reason, input, output_size);
  }
  if (differentiates(input)) return AdaptiveAvgPoolFunction::apply(input, output_size);
  at::AutoDispatchBelowADInplaceOrView below;
  return adaptive_avg_pool(input, output_size);
}

at::Tensor adaptive_avg_pool_grad_input_autograd(const at::Tensor& grad_output, SymInts input_size,
                                                 bool channels_last) {
  if (const char* reason = left_to_aten({&grad_output})) {
    return aten::adaptive_avg_pool_grad_input(reason, grad_output, input_size, channels_last);
  }
  if (differentiates(grad_output)) {
    return AdaptiveAvgPoolGradInputFunction::apply(grad_output, input_size, channels_last);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return adaptive_avg_pool_grad_input(grad_output, input_size, channels_last);
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnext, Autograd, m) {
  m.impl("avg_pool", avg_pool_autograd);
  m.impl("avg_pool_grad_input", avg_pool_grad_input_autograd);
  m.impl("adaptive_avg_pool", adaptive_avg_pool_autograd);
  m.impl("adaptive_avg_pool_grad_input", adaptive_avg_pool_grad_input_autograd);
}

}  // namespace cnnext::ops
