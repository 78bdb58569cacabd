#include "conv_grad_bias.cuh"
#include "kernels.h"
#include "plan.h"

namespace cnnext::cuda {
void run_conv_grad_bias(const ConvProblem& p, const ConvBuffers& b, const Stream& stream, char* workspace) {
  const ConvShape& s = p.shape;
  const int64_t pixels = s.N * s.output_pixels(), per_part = ceil_div(pixels, grad_bias_parts(p));
  const int64_t used = ceil_div(pixels, per_part);
  with_type(p.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    auto* partial = reinterpret_cast<Acc<T>*>(workspace);
    const auto start = [&](auto kernel, int lanes) {
      launch(kernel, {ceil_div(s.K, lanes), used}, kGradBiasThreads, kGradBiasThreads * int(sizeof(Acc<T>)),
             stream, static_cast<const T*>(b.output), strides_of(p.layout, s.K, s.output_pixels()), s.N,
             s.output_pixels(), int(s.K), per_part, partial);
    };
    if (p.layout == Layout::kChannelsLast) {
      start(conv_grad_bias<T, 32>, 32);
    } else {
      start(conv_grad_bias<T, 1>, 1);
    }
    launch(add_grad_bias<T>, {ceil_div(s.K, kGradBiasThreads)}, kGradBiasThreads, 0, stream,
           static_cast<const Acc<T>*>(partial), int(used), int(s.K), static_cast<T*>(b.bias));
  });
}

}  // namespace cnnext::cuda
