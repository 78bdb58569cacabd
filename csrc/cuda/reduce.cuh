// Adds partial sums in the order of their parts, so that a result never depends on timing.
#pragma once

#include "conv_grad_weight.cuh"

namespace cnnext::cuda {

constexpr int kReduceThreads = 256;

// to[k, c, tap] = sum over parts of partial[part][k][tap][c]. Of a block's threads 2^rows take a weight:
// parts row, row + 2^rows, ... each, so that many are read at once.
template <class T>
CNNEXT_LAUNCH(kReduceThreads, 1)
reduce_grad_weight(const Acc<T>* partial, int parts, int rows, int64_t weights, int C, int taps,
                   WeightStrides strides, T* to) {
  const int in_row = kReduceThreads >> rows, row = threadIdx.x / in_row;
  const int64_t i = int64_t(blockIdx.x) * in_row + threadIdx.x % in_row;
  Acc<T> sum = 0;
  if (i < weights) {
#pragma unroll 8
    for (int part = row; part < parts; part += 1 << rows) sum += partial[part * weights + i];
  }
  if (rows > 0) {
    Acc<T>* sums = shared_memory<Acc<T>>();  // [rows][in_row]
    sums[threadIdx.x] = sum;
    __syncthreads();
    sum = 0;
    for (int at = threadIdx.x; row == 0 && at < kReduceThreads; at += in_row) sum += sums[at];
  }
  if (row > 0 || i >= weights) return;
  const int64_t k_tap = i / C;
  const int c = int(i - k_tap * C), tap = int(k_tap % taps);
  convert(sum, to + k_tap / taps * strides.k + c * strides.c + tap * strides.tap);
}

template <class T>
void reduce_parts(const ConvProblem& p, const ConvGradWeight& g, void* weight, const Stream& stream) {
  const WeightStrides strides = weight_strides_of(p.weight_layout, g.C, g.taps);
  int rows = 0;
  while (rows < 5 && g.parts >> rows >= 16) ++rows;  // eight parts a thread or more
  launch(reduce_grad_weight<T>, {ceil_div(g.weights(), kReduceThreads >> rows)}, kReduceThreads,
         kReduceThreads * int(sizeof(Acc<T>)), stream, static_cast<const Acc<T>*>(g.partial), g.parts, rows,
         g.weights(), g.C, g.taps, strides, static_cast<T*>(weight));
}
}  // namespace cnnext::cuda
