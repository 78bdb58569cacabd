// Weights as kernels have packed them, kept from call to call.
//
// A packed weight belongs to a kernel of one direction, to a problem, and to a tensor's memory at one version
// of it: in-place operators, load_state_dict and new memory in .data are all seen. A write through .data, the
// storage or NumPy is not, which is why weights are kept only where that is asked for. Python drops them
// after an optimizer's step: fused ones count no version.
#pragma once

#include <ATen/core/Tensor.h>

#include "common.h"

namespace cnnext::ops {

// While there is one, weights that get gradients are not kept: they are soon others.
class Differentiating {
 public:
  Differentiating();
  ~Differentiating();
  Differentiating(const Differentiating&) = delete;
  Differentiating& operator=(const Differentiating&) = delete;

 private:
  bool before_;
};

// Whether a call would keep what a kernel packs of the weight.
bool caches_weight(const at::Tensor& weight);

// Runs a kernel that was chosen for a weight that is kept: with what an earlier call has packed, or for the
// next to find.
void run_with_cached_weight(const cpu::ConvKernel& kernel, ConvProblem problem, ConvBuffers buffers,
                            const at::Tensor& weight);

}  // namespace cnnext::ops
