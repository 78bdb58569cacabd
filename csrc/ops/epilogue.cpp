#include "epilogue.h"

#include <ATen/ops/add.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/relu6.h>
#include <c10/util/TypeCast.h>

namespace cnnext::ops {
namespace {

Activation activation_of(const char* op, c10::string_view name) {
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "relu6") return Activation::kRelu6;
  if (name == "leaky_relu") return Activation::kLeakyRelu;
  TORCH_CHECK_VALUE(false, op, ": expected the activation none, relu, relu6 or leaky_relu, but got ", name);
}

}  // namespace

Epilogue epilogue_of(const char* op, c10::string_view activation, double negative_slope,
                     at::ScalarType type) {
  const Activation kind = activation_of(op, activation);
  if (kind == Activation::kLeakyRelu && type != at::kDouble) {
    negative_slope = c10::checked_convert<float, double>(negative_slope, "float");
  }
  return {nullptr, kind, negative_slope};
}

at::Tensor finish_in_steps(const char* op, at::Tensor y, const OptionalTensor& residual,
                           c10::string_view activation, double negative_slope) {
  const Activation kind = activation_of(op, activation);
  if (residual && residual->defined()) y = at::add(y, *residual);
  switch (kind) {
    case Activation::kNone:
      return y;
    case Activation::kRelu:
      return at::relu(y);
    case Activation::kRelu6:
      return at::relu6(y);
    case Activation::kLeakyRelu:
      return at::leaky_relu(y, negative_slope);
  }
  return y;
}

}  // namespace cnnext::ops
