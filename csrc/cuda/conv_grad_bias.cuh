// grad_bias[k] = sum over n, o of grad_output[n, k, o], in parts: each block sums a part of the pixels for
// some channels, by threads that lie along whatever is contiguous; a second kernel adds the parts in order.
#pragma once

#include "device.cuh"

namespace cnnext::cuda {

constexpr int kGradBiasThreads = 256;

// kLanes: neighbouring channels that a block sums: 32 in channels last, one in channels first.
template <class T, int kLanes>
CNNEXT_LAUNCH(kGradBiasThreads, 1)
conv_grad_bias(const T* grad_output, Strides strides, int64_t images, int64_t pixels, int K, int64_t per_part,
               Acc<T>* partial) {
  using A = Acc<T>;
  constexpr int kPixels = kGradBiasThreads / kLanes;
  const int channel = blockIdx.x * kLanes + threadIdx.x % kLanes, lane = threadIdx.x / kLanes;
  const int64_t begin = blockIdx.y * per_part, end = min_of(images * pixels, begin + per_part);
  A sum = 0;
  for (int64_t at = begin; at < end;) {  // the rest of one image at a time
    const int64_t image = at / pixels, last = min_of(end, (image + 1) * pixels);
    const T* from = grad_output + image * strides.image + channel * strides.channel;
    for (int64_t i = at + lane; channel < K && i < last; i += kPixels) {
      sum += to_float(from[(i - image * pixels) * strides.pixel]);
    }
    at = last;
  }
  A* sums = shared_memory<A>();
  sums[threadIdx.x] = sum;
  for (int half = kPixels / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane < half) sums[threadIdx.x] += sums[threadIdx.x + half * kLanes];
  }
  if (lane == 0 && channel < K) partial[int64_t(blockIdx.y) * K + channel] = sums[threadIdx.x];
}

template <class T>
CNNEXT_LAUNCH(kGradBiasThreads, 1)
add_grad_bias(const Acc<T>* partial, int parts, int K, T* grad_bias) {
  const int k = blockIdx.x * kGradBiasThreads + threadIdx.x;
  if (k >= K) return;
  Acc<T> sum = 0;
  for (int part = 0; part < parts; ++part) sum += partial[int64_t(part) * K + k];
  convert(sum, grad_bias + k);
}

}  // namespace cnnext::cuda
