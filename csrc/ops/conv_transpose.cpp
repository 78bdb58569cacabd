// Transposed convolution: the gradient of a convolution for its input, in torch's terms.
// cnnext::conv_transpose is composed of conv_grad_input, whose input_size is the size of the output here.
#include <ATen/ops/constant_pad_nd.h>
#include <torch/library.h>

#include <algorithm>

#include "conv.h"

namespace cnnext::ops {

at::Tensor conv_transpose(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                          SymInts stride, SymInts padding, SymInts output_padding, c10::SymInt groups,
                          SymInts dilation) {
  const size_t dims = std::max<int64_t>(weight.dim() - 2, 0);
  const PerAxis<c10::SymInt> s = per_axis(stride, dims), p = per_axis(padding, dims),
                             d = per_axis(dilation, dims), extra = per_axis(output_padding, dims);
  PerAxis<c10::SymInt> size, zeros;
  const auto valid = [&] {
    if (dims < 1 || dims > kAxes || input.dim() != weight.dim()) return false;
    if (s.size() != dims || p.size() != dims || d.size() != dims || extra.size() != dims) return false;
    if (groups < 1 || input.sym_size(1) != weight.sym_size(0) || input.sym_size(1) % groups != 0)
      return false;
    if (bias && (bias->dim() != 1 || bias->sym_size(0) != weight.sym_size(1) * groups)) return false;
    for (size_t i = 0; i < dims; ++i) {
      if (s[i] < 1 || p[i] < 0 || d[i] < 1 || extra[i] < 0 || (extra[i] >= s[i] && extra[i] >= d[i]))
        return false;
      size.push_back((input.sym_size(i + 2) - 1) * s[i] - p[i] * 2 + d[i] * (weight.sym_size(i + 2) - 1) +
                     extra[i] + 1);
      if (size[i] < 1) return false;
      // A dilation larger than the stride allows output that no element of the input reaches.
      zeros.insert(zeros.begin(), {0, extra[i] / s[i]});
    }
    return true;
  };
  const char* reason = left_to_aten({&input, &weight, bias ? &*bias : &weight});
  if (!reason && !valid()) reason = "invalid";  // torch raises its own error
  if (reason) {
    return aten::conv_transpose(reason, input, weight, bias, stride, padding, output_padding,
                                std::move(groups), dilation);
  }
  const bool beyond = std::any_of(zeros.begin(), zeros.end(), [](const c10::SymInt& n) { return n > 0; });
  const at::Tensor source = beyond ? at::constant_pad_nd_symint(input, zeros, 0) : input;
  return conv_grad_input(source, weight, bias, size, s, p, d, std::move(groups));
}

TORCH_LIBRARY_FRAGMENT(cnnext, m) {
  m.def(
      "conv_transpose(Tensor input, Tensor weight, Tensor? bias=None, SymInt[1] stride=1, "
      "SymInt[1] padding=0, SymInt[1] output_padding=0, SymInt groups=1, SymInt[1] dilation=1) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(cnnext, CompositeImplicitAutograd, m) { m.impl("conv_transpose", conv_transpose); }

}  // namespace cnnext::ops
