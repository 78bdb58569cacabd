// Convolution by its definition, for every problem: last in the lists, and what other kernels are tested
// against.
#pragma once

#include "kernel.h"

namespace cnnext::cpu {

extern const ConvKernel kConvReference, kConvGradInputReference, kConvGradWeightReference;

}  // namespace cnnext::cpu
