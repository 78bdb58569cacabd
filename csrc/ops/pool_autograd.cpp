// Derivatives of pooling. max_pool_grad_input and max_pool_select are each other's transposes, and so are the
// averages and their gradients, and unpooling and its gradient: derivatives of any order run on our kernels.
// Autocast is here too, as torch has it: three-dimensional pooling and unpooling run in float32.
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "pool.h"

namespace cnnext::ops {

#define CNNEXT_OP(name)                                               \
  static const auto op = c10::Dispatcher::singleton()                 \
                             .findSchemaOrThrow("cnnext::" #name, "") \
                             .typed<std::remove_pointer_t<decltype(&name)>>()

at::Tensor max_pool(const at::Tensor& input, SymInts kernel_size, SymInts stride, SymInts padding,
                    SymInts dilation, bool ceil_mode) {
  CNNEXT_OP(max_pool);
  return op.call(input, kernel_size, stride, padding, dilation, ceil_mode);
}
TensorPair max_pool_with_indices(const at::Tensor& input, SymInts kernel_size, SymInts stride,
                                 SymInts padding, SymInts dilation, bool ceil_mode) {
  CNNEXT_OP(max_pool_with_indices);
  return op.call(input, kernel_size, stride, padding, dilation, ceil_mode);
}
TensorPair max_pool_with_offsets(const at::Tensor& input, SymInts kernel_size, SymInts stride,
                                 SymInts padding, SymInts dilation, bool ceil_mode) {
  CNNEXT_OP(max_pool_with_offsets);
  return op.call(input, kernel_size, stride, padding, dilation, ceil_mode);
}
at::Tensor adaptive_max_pool(const at::Tensor& input, SymInts output_size) {
  CNNEXT_OP(adaptive_max_pool);
  return op.call(input, output_size);
}
TensorPair adaptive_max_pool_with_indices(const at::Tensor& input, SymInts output_size) {
  CNNEXT_OP(adaptive_max_pool_with_indices);
  return op.call(input, output_size);
}
TensorPair adaptive_max_pool_with_offsets(const at::Tensor& input, SymInts output_size) {
  CNNEXT_OP(adaptive_max_pool_with_offsets);
  return op.call(input, output_size);
}
at::Tensor max_pool_indices(const at::Tensor& offsets, SymInts input_size, SymInts kernel_size,
                            SymInts stride, SymInts padding, SymInts dilation) {
  CNNEXT_OP(max_pool_indices);
  return op.call(offsets, input_size, kernel_size, stride, padding, dilation);
}
at::Tensor max_pool_grad_input(const at::Tensor& grad_output, const at::Tensor& offsets, SymInts input_size,
                               SymInts kernel_size, SymInts stride, SymInts padding, SymInts dilation,
                               bool channels_last) {
  CNNEXT_OP(max_pool_grad_input);
  return op.call(grad_output, offsets, input_size, kernel_size, stride, padding, dilation, channels_last);
}
at::Tensor max_pool_select(const at::Tensor& input, const at::Tensor& offsets, SymInts kernel_size,
                           SymInts stride, SymInts padding, SymInts dilation) {
  CNNEXT_OP(max_pool_select);
  return op.call(input, offsets, kernel_size, stride, padding, dilation);
}
at::Tensor avg_pool(const at::Tensor& input, SymInts kernel_size, SymInts stride, SymInts padding,
                    bool ceil_mode, bool count_include_pad, OptionalSymInt divisor_override) {
  CNNEXT_OP(avg_pool);
  return op.call(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override);
}
at::Tensor avg_pool_grad_input(const at::Tensor& grad_output, SymInts input_size, SymInts kernel_size,
                               SymInts stride, SymInts padding, bool ceil_mode, bool count_include_pad,
                               OptionalSymInt divisor_override, bool channels_last) {
  CNNEXT_OP(avg_pool_grad_input);
  return op.call(grad_output, input_size, kernel_size, stride, padding, ceil_mode, count_include_pad,
                 divisor_override, channels_last);
}
at::Tensor adaptive_avg_pool(const at::Tensor& input, SymInts output_size) {
  CNNEXT_OP(adaptive_avg_pool);
  return op.call(input, output_size);
}
at::Tensor adaptive_avg_pool_grad_input(const at::Tensor& grad_output, SymInts input_size,
                                        bool channels_last) {
  CNNEXT_OP(adaptive_avg_pool_grad_input);
  return op.call(grad_output, input_size, channels_last);
}
at::Tensor max_unpool(const at::Tensor& input, const at::Tensor& indices, SymInts output_size) {
  CNNEXT_OP(max_unpool);
  return op.call(input, indices, output_size);
}
at::Tensor max_unpool_grad_input(const at::Tensor& grad_output, const at::Tensor& indices,
                                 bool channels_last) {
  CNNEXT_OP(max_unpool_grad_input);
  return op.call(grad_output, indices, channels_last);
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

bool is_last(const at::Tensor& t) { return layout_of(t) == Layout::kChannelsLast; }
SymInts spatial(const at::Tensor& t) { return t.sym_sizes().slice(2); }

// A C++ autograd Function only where it is needed: nothing is saved, and no offsets are made, where no
// gradient is.
bool differentiates(const at::Tensor& t) { return at::GradMode::is_enabled() && t.requires_grad(); }

// Windows as they are kept between forward and backward: all lists in one, each after its length. Flags are
// numbers.
struct Saved {
  Saved(AutogradContext* ctx, std::initializer_list<SymInts> lists) {
    for (const SymInts& list : lists) {
      all.emplace_back(int64_t(list.size()));
      all.append(list.begin(), list.end());
    }
    ctx->saved_data["windows"] = SymInts(all);
  }
  explicit Saved(AutogradContext* ctx) {
    const std::vector<c10::SymInt> kept = ctx->saved_data["windows"].toSymIntVector();
    all.append(kept.begin(), kept.end());
  }

  SymInts next() {
    const int64_t length = all[at].expect_int();
    const SymInts list = SymInts(all).slice(at + 1, length);
    at += length + 1;
    return list;
  }
  int64_t next_number() { return next()[0].expect_int(); }

  c10::SmallVector<c10::SymInt, 24> all;
  size_t at = 0;
};

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
    const Saved saved(ctx, {spatial(input), kernel_size, stride, padding, dilation, SymInts(last)});
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
    const Saved saved(ctx, {kernel_size, stride, padding, dilation});
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
    const Saved saved(ctx, {spatial(input), kernel_size, stride, padding, dilation, SymInts(last)});
    ctx->save_for_backward({offsets});
    return max_pool_select(input, offsets, kernel_size, stride, padding, dilation);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    grads = MaxPoolFunction::backward(ctx, std::move(grads));
    grads.resize(6);
    return grads;
  }
};

// Averages are linear: forward and gradient are each other's derivative, and nothing but sizes is kept.
struct AvgPoolFunction : public Function<AvgPoolFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, SymInts kernel_size,
                            SymInts stride, SymInts padding, bool ceil_mode, bool count_include_pad,
                            OptionalSymInt divisor_override) {
    at::AutoDispatchBelowADInplaceOrView below;
    const c10::SymInt flags[] = {ceil_mode, count_include_pad, divisor_override.value_or(0), is_last(input)};
    const Saved saved(ctx, {spatial(input), kernel_size, stride, padding, SymInts(flags)});
    return avg_pool(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list out(7);
    if (!grads[0].defined()) return out;
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
    const Saved saved(ctx, {kernel_size, stride, padding, SymInts(flags)});
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
    const Saved saved(ctx, {spatial(input), SymInts(last)});
    return adaptive_avg_pool(input, output_size);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list out(2);
    if (!grads[0].defined()) return out;
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
    const Saved saved(ctx, {spatial(grad_output)});
    return adaptive_avg_pool_grad_input(grad_output, input_size, channels_last);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list out(3);
    if (grads[0].defined()) out[0] = adaptive_avg_pool(grads[0], Saved(ctx).next());
    return out;
  }
};

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

at::Tensor max_pool_autograd(const at::Tensor& input, SymInts kernel_size, SymInts stride, SymInts padding,
                             SymInts dilation, bool ceil_mode) {
  if (const char* reason = left_to_aten({&input})) {
    return aten::max_pool(reason, input, kernel_size, stride, padding, dilation, ceil_mode);
  }
  if (differentiates(input) && !kernel_size.empty()) {
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
  // In one dimension torch words an error of this operator otherwise than one of max_pool.
  const bool fits = input.dim() > 3 || pool_fits(input, kernel_size, stride, padding, dilation, ceil_mode);
  if (differentiates(input) && !kernel_size.empty() && fits) {
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

at::Tensor adaptive_avg_pool_autograd(const at::Tensor& input, SymInts output_size) {
  if (const char* reason = left_to_aten({&input})) return aten::adaptive_avg_pool(reason, input, output_size);
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

// In three dimensions torch pools in float32, except where max_pool3d is asked for indices.
template <auto Op, int64_t kDims>
struct InFloat32;
template <class Result, class... Args, Result (*Op)(const at::Tensor&, Args...), int64_t kDims>
struct InFloat32<Op, kDims> {
  static Result run(const at::Tensor& input, Args... args) {
    c10::impl::ExcludeDispatchKeyGuard once(c10::DispatchKey::AutocastCPU);
    return Op(
        input.dim() < kDims ? input : at::autocast::cached_cast(at::kFloat, input, c10::DeviceType::CPU),
        args...);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(cnnext, Autograd, m) {
  m.impl("max_pool", max_pool_autograd);
  m.impl("max_pool_with_indices", max_pool_with_indices_autograd);
  m.impl("adaptive_max_pool", adaptive_max_pool_autograd);
  m.impl("adaptive_max_pool_with_indices", adaptive_max_pool_with_indices_autograd);
  m.impl("max_pool_grad_input", max_pool_grad_input_autograd);
  m.impl("max_pool_select", max_pool_select_autograd);
  m.impl("avg_pool", avg_pool_autograd);
  m.impl("avg_pool_grad_input", avg_pool_grad_input_autograd);
  m.impl("adaptive_avg_pool", adaptive_avg_pool_autograd);
  m.impl("adaptive_avg_pool_grad_input", adaptive_avg_pool_grad_input_autograd);
  m.impl("max_unpool", max_unpool_autograd);
  m.impl("max_unpool_grad_input", max_unpool_grad_input_autograd);
}

TORCH_LIBRARY_IMPL(cnnext, AutocastCPU, m) {
  m.impl("max_pool", InFloat32<&max_pool, 5>::run);
  m.impl("avg_pool", InFloat32<&avg_pool, 5>::run);
  m.impl("adaptive_max_pool", InFloat32<&adaptive_max_pool, 5>::run);
  m.impl("adaptive_max_pool_with_indices", InFloat32<&adaptive_max_pool_with_indices, 5>::run);
  m.impl("adaptive_avg_pool", InFloat32<&adaptive_avg_pool, 5>::run);
  m.impl("max_unpool", InFloat32<&max_unpool, 0>::run);
}

}  // namespace cnnext::ops
