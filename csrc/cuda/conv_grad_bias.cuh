// grad_bias[k] = sum over n, o of grad_output[n, k, o], in parts: each block sums a part of the pixels for
// some channels, a second kernel adds the parts. Both by several sums side by side, added in pairs at the
// end: that is accurate, and keeps many loads on their way.
#pragma once

#include "device.cuh"

namespace cnnext::cuda {

constexpr int kGradBiasThreads = 256;
constexpr int kGradBiasLanes = 8;  // vectors of channels that a block sums in channels last

// Adds a block's numbers in pairs: those of threads that differ by a multiple of `lanes`. The first `lanes`
// threads get the sums.
template <class A>
CNNEXT_DEVICE A add_across(A sum, int lanes) {
  A* sums = shared_memory<A>();
  __syncthreads();
  sums[threadIdx.x] = sum;
  for (int half = kGradBiasThreads / 2; half >= lanes; half /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  return sums[threadIdx.x];
}

struct GradBias {
  const void* grad_output;
  void* partial;  // of Acc<T>: [part][K]
  Strides strides;
  int64_t all;  // vectors along the pixels of all images, or pixels in channels last
  int64_t per_part;
  int64_t units;  // of `all` in one image
  int64_t pixels;
  int K;
  Divisor by_units;
};

// A vector of 16 bytes lies along the channels (kLast) or along the pixels. kWhole: all are aligned and
// whole.
template <class T, bool kLast, bool kWhole>
CNNEXT_LAUNCH(kGradBiasThreads, 1)
conv_grad_bias(GradBias g) {
  using A = Acc<T>;
  constexpr int kVector = kPerVector<T>, kLanes = kLast ? kGradBiasLanes : 1, kAtOnce = 4;
  constexpr int kUnits = kGradBiasThreads / kLanes;
  const int channel = (blockIdx.x * kLanes + threadIdx.x % kLanes) * (kLast ? kVector : 1);
  const int lane = threadIdx.x / kLanes;
  const int64_t begin = blockIdx.y * g.per_part;
  const int count = int(min_of(g.per_part, g.all - begin));
  const T* grad_output = static_cast<const T*>(g.grad_output) + channel * g.strides.channel;
  int64_t image = 0;
  uint32_t in_image = 0;  // in channels last images follow each other as pixels do
  if constexpr (kLast) {
    grad_output += begin * g.strides.pixel;
  } else {
    image = begin / g.units;
    in_image = uint32_t(begin - image * g.units);
  }

  A sum[kAtOnce][kVector] = {};
  for (int first = lane; first < count; first += kAtOnce * kUnits) {
    Pack<T, kVector> x[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int i = first + j * kUnits;
      const T* from;
      int elements = kVector;  // of the vector that are there
      if constexpr (kLast) {
        from = grad_output + i * g.strides.pixel;
        elements = int(min_of(kVector, g.K - channel));
      } else {
        uint32_t images = in_image + i;
        const int64_t pixel = int64_t(split(images, g.by_units)) * kVector;
        from = grad_output + (image + images) * g.strides.image + pixel;
        elements = int(min_of(kVector, g.pixels - pixel));
      }
      if (i >= count) elements = 0;
      if constexpr (kWhole) {
        x[j] = load_if<T, kVector>(elements > 0, from, {});
      } else {
#pragma unroll
        for (int v = 0; v < kVector; ++v) x[j].at[v] = load_if<T, 1>(v < elements, from + v, {}).at[0];
      }
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
#pragma unroll
      for (int v = 0; v < kVector; ++v) sum[j][v] += to_float(x[j].at[v]);
    }
  }
#pragma unroll
  for (int v = 0; v < kVector; ++v) sum[0][v] = (sum[0][v] + sum[1][v]) + (sum[2][v] + sum[3][v]);
  A* partial = static_cast<A*>(g.partial) + int64_t(blockIdx.y) * g.K;
  if constexpr (kLast) {
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      const A all = add_across(sum[0][v], kLanes);
      if (lane == 0 && channel + v < g.K) partial[channel + v] = all;
    }
  } else {
#pragma unroll
    for (int half = kVector / 2; half > 0; half /= 2) {
#pragma unroll
      for (int v = 0; v < half; ++v) sum[0][v] += sum[0][v + half];
    }
    const A all = add_across(sum[0][0], kLanes);
    if (lane == 0) partial[channel] = all;
  }
}

constexpr int kAddBiasLanes = 32;  // channels of a block

template <class T>
CNNEXT_LAUNCH(kGradBiasThreads, 1)
add_grad_bias(const Acc<T>* partial, int parts, int K, T* grad_bias) {
  constexpr int kParts = kGradBiasThreads / kAddBiasLanes;
  const int k = blockIdx.x * kAddBiasLanes + threadIdx.x % kAddBiasLanes;
  Acc<T> sum = 0;
  if (k < K) {
#pragma unroll 4
    for (int part = threadIdx.x / kAddBiasLanes; part < parts; part += kParts) {
      sum += partial[int64_t(part) * K + k];
    }
  }
  sum = add_across(sum, kAddBiasLanes);
  if (threadIdx.x < kAddBiasLanes && k < K) convert(sum, grad_bias + k);
}

}  // namespace cnnext::cuda
