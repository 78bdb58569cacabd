// Adds partial sums in an order that their number alone decides, so that a result never depends on timing.
#pragma once

#include "conv_grad_weight.cuh"

namespace cnnext::cuda {

constexpr int kReduceThreads = 256;

struct ReducePlan {
  const void* partial;  // of Acc<T>: [part][k][tap][c]
  void* to;
  int parts, part_lanes;  // threads that share the parts of one sum
  int64_t weights;
  Divisor by_C, by_taps;
  bool vectors;  // `to` has the order of `partial`, and takes vectors
};

// to[k, c, tap] = sum over parts of partial[part][k][tap][c]. A thread adds every part_lanes-th part of
// kVector neighbouring weights; the sums of threads that share a weight are added in pairs. Threads follow
// the order of `partial`, which is many times what they write.
template <class T, int kVector>
CNNEXT_LAUNCH(kReduceThreads, 1)
reduce_grad_weight(ReducePlan plan) {
  using A = Acc<T>;
  constexpr int kAtOnce = 4;
  const int lanes = kReduceThreads / plan.part_lanes, lane = threadIdx.x % lanes;
  const int64_t at = (int64_t(blockIdx.x) * lanes + lane) * kVector;
  const bool inside = at < plan.weights;
  const A* partial = static_cast<const A*>(plan.partial) + at;
  A sum[kVector] = {};
#pragma unroll 1
  for (int part = threadIdx.x / lanes; part < plan.parts; part += kAtOnce * plan.part_lanes) {
    Pack<A, kVector> x[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int each = part + j * plan.part_lanes;
      x[j] = load_if<A, kVector>(inside && each < plan.parts, partial + each * plan.weights, {});
    }
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) sum[v] += x[j].at[v];
    }
  }
  A* sums = shared_memory<A>();  // [kVector][kReduceThreads]
  for (int half = kReduceThreads / 2; half >= lanes; half /= 2) {
#pragma unroll
    for (int v = 0; v < kVector; ++v) sums[v * kReduceThreads + threadIdx.x] = sum[v];
    __syncthreads();
    if (int(threadIdx.x) < half) {
#pragma unroll
      for (int v = 0; v < kVector; ++v) sum[v] += sums[v * kReduceThreads + threadIdx.x + half];
    }
    __syncthreads();
  }
  if (int(threadIdx.x) >= lanes || !inside) return;
  Pack<T, kVector> result;
#pragma unroll
  for (int v = 0; v < kVector; ++v) convert(sum[v], &result.at[v]);
  T* to = static_cast<T*>(plan.to);
  if (plan.vectors) return store_pack(to + at, result);
#pragma unroll
  for (int v = 0; v < kVector; ++v) {
    const auto place = [&](auto k) {  // at first the number of the weight
      const int c = split(k, plan.by_C), tap = split(k, plan.by_taps);
      return (int64_t(k) * plan.by_C.by + c) * plan.by_taps.by + tap;
    };
    to[plan.weights < kMostPixels ? place(uint32_t(at + v)) : place(at + v)] = result.at[v];
  }
}

template <class T>
void reduce_parts(const ConvProblem& p, const ConvGradWeight& g, void* weight, const Stream& stream) {
  constexpr int kVector = kPerVector<Acc<T>>;
  const bool same = p.weight_layout == Layout::kChannelsLast || g.taps == 1 || g.C == 1;
  const bool whole = g.weights() % kVector == 0 && are_aligned(g.partial);
  int part_lanes = 1;
  while (part_lanes < 8 && 2 * part_lanes < g.parts) part_lanes *= 2;
  const ReducePlan plan = {g.partial,
                           weight,
                           g.parts,
                           part_lanes,
                           g.weights(),
                           Divisor(g.C),
                           Divisor(same ? 1 : g.taps),
                           same && whole && are_aligned(weight)};
  const int64_t of_block = kReduceThreads / part_lanes * (whole ? kVector : 1);
  launch(whole ? reduce_grad_weight<T, kVector> : reduce_grad_weight<T, 1>, {ceil_div(g.weights(), of_block)},
         kReduceThreads, part_lanes > 1 ? kReduceThreads * 16 : 0, stream, plan);
}

}  // namespace cnnext::cuda
