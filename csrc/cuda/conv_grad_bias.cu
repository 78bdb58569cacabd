#include "conv_grad_bias.cuh"
#include "kernels.h"
#include "plan.h"

namespace cnnext::cuda {
void run_conv_grad_bias(const ConvProblem& p, const ConvBuffers& b, const Stream& stream, char* workspace) {
  const ConvShape& s = p.shape;
  const bool last = p.layout == Layout::kChannelsLast;
  with_type(p.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    constexpr int kVector = kPerVector<T>;
    const int64_t pixels = s.output_pixels(), units = last ? pixels : ceil_div(pixels, kVector);
    const int64_t per_part = ceil_div(s.N * units, grad_bias_parts(p)),
                  parts = ceil_div(s.N * units, per_part);
    const GradBias g = {b.output, workspace, strides_of(p.layout, s.K, pixels), s.N * units, per_part, units,
                        pixels,   int(s.K),  Divisor(last ? 1 : units)};
    const auto start = [&](auto kernel, int64_t channels) {
      launch(kernel, {ceil_div(s.K, channels), parts}, kGradBiasThreads,
             kGradBiasThreads * int(sizeof(Acc<T>)), stream, g);
    };
    const bool whole = (last ? s.K : pixels) % kVector == 0 && are_aligned(b.output);
    if (last) {
      start(whole ? conv_grad_bias<T, true, true> : conv_grad_bias<T, true, false>, kGradBiasLanes * kVector);
    } else {
      start(whole ? conv_grad_bias<T, false, true> : conv_grad_bias<T, false, false>, 1);
    }
    launch(add_grad_bias<T>, {ceil_div(s.K, kAddBiasLanes)}, kGradBiasThreads,
           kGradBiasThreads * int(sizeof(Acc<T>)), stream, reinterpret_cast<const Acc<T>*>(workspace),
           int(parts), int(s.K), static_cast<T*>(b.bias));
  });
}

}  // namespace cnnext::cuda
