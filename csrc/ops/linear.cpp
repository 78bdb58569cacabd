// Linear layers: a convolution of one tap, whose pixels are the rows of the input.
#include <torch/library.h>

#include "conv.h"

namespace cnnext::ops {

at::Tensor linear(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias) {
  const auto fits = [&] {
    return input.dim() >= 1 && weight.dim() == 2 && input.sym_size(-1) == weight.sym_size(1) &&
           (!bias || (bias->dim() == 1 && bias->sym_size(0) == weight.sym_size(0)));
  };
  const char* reason = left_to_aten({&input, &weight, bias ? &*bias : &weight});
  if (!reason && !fits()) reason = "invalid";  // torch raises its own error
  if (!reason && (input.sym_numel() == 0 || weight.sym_numel() == 0)) reason = "empty tensor";
  if (reason) return aten::linear(reason, input, weight, bias);
  c10::SymDimVector size(input.sym_sizes());
  size.back() = weight.sym_size(0);
  // One image of one row of pixels, channels last.
  const at::Tensor pixels = input.reshape_symint({1, 1, -1, weight.sym_size(1)}).permute({0, 3, 1, 2});
  const c10::SymInt one = 1, zero = 0;
  const at::Tensor output = conv(pixels, weight.unsqueeze(-1).unsqueeze(-1), bias, one, zero, one, one);
  return output.permute({0, 2, 3, 1}).reshape_symint(size);
}

TORCH_LIBRARY_FRAGMENT(cnnext, m) {
  m.def("linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor", {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(cnnext, CompositeImplicitAutograd, m) { m.impl("linear", linear); }

}  // namespace cnnext::ops
