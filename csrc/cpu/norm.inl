// Batch normalisation and its gradients.
#include "vec.h"

#include "batch_norm.h"
#include "batch_norm_grad.h"
#include "list.h"

namespace cnnext::cpu::CNNEXT_ISA {

const Kernels& norm() {
  static const NormKernel batch_norm[] = {kBatchNorm};
  static const NormKernel batch_norm_grad[] = {kBatchNormGrad};
  static const Kernels table = [] {
    Kernels all = {};
    all.batch_norm = list(batch_norm);
    all.batch_norm_grad = list(batch_norm_grad);
    return all;
  }();
  return table;
}

}  // namespace cnnext::cpu::CNNEXT_ISA
