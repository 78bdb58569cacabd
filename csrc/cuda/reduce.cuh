// Adds partial sums in the order of their parts, so that a result never depends on timing.
#pragma once

#include "conv_grad_weight.cuh"

namespace cnnext::cuda {

constexpr int kReduceThreads = 256;

// to[k, c, tap] = sum over parts of partial[part][k][tap][c]: a thread for each weight.
template <class T>
CNNEXT_LAUNCH(kReduceThreads, 1)
reduce_grad_weight(const Acc<T>* partial, int parts, int64_t weights, int C, int taps, WeightStrides strides,
                   T* to) {
  const int64_t i = int64_t(blockIdx.x) * kReduceThreads + threadIdx.x;
  if (i >= weights) return;
  Acc<T> sum = 0;
  for (int part = 0; part < parts; ++part) sum += partial[part * weights + i];
  const int64_t row = i / C;
  const int c = int(i - row * C), tap = int(row % taps);
  convert(sum, to + row / taps * strides.k + c * strides.c + tap * strides.tap);
}

template <class T>
void reduce_parts(const ConvProblem& p, const ConvGradWeight& g, void* weight, const Stream& stream) {
  const WeightStrides strides = weight_strides_of(p.weight_layout, g.C, g.taps);
  launch(reduce_grad_weight<T>, {ceil_div(g.weights(), kReduceThreads)}, kReduceThreads, 0, stream,
         static_cast<const Acc<T>*>(g.partial), g.parts, g.weights(), g.C, g.taps, strides,
         static_cast<T*>(weight));
}
}  // namespace cnnext::cuda
