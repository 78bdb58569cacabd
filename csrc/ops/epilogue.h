// What follows an operator: an addition and an activation.
#pragma once

#include "common.h"

namespace cnnext::ops {

// none, relu, relu6 or leaky_relu; its slope must be one of the element type's.
Epilogue epilogue_of(const char* op, c10::string_view activation, double negative_slope, at::ScalarType type);

// activation(y + residual) by ATen.
at::Tensor finish_in_steps(const char* op, at::Tensor y, const OptionalTensor& residual,
                           c10::string_view activation, double negative_slope);

}  // namespace cnnext::ops
