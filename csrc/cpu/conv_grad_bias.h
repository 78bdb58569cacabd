// grad_bias[k] = sum of grad_output over images and pixels, in chunks cut by the shape alone and added in
// order.
#pragma once

#include "copy.h"
#include "entry.h"
#include "range.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kBiasChunk = 512;  // pixels summed in the accumulation type before they are added in double

template <class T>
struct GradBias {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

  GradBias(const ConvProblem& p, const ConvBuffers& b, char* workspace)
      : channels_last(p.layout == Layout::kChannelsLast),
        K(p.shape.K),
        images(p.shape.N),
        pixels(p.shape.output_pixels()),
        grad_output(static_cast<const T*>(b.output)),
        grad_bias(static_cast<T*>(b.bias)),
        partial(reinterpret_cast<A*>(workspace)) {}

  int64_t chunks() const { return ceil_div(images * pixels, kBiasChunk); }
  int64_t workspace_bytes() const { return channels_last ? chunks() * K * int64_t(sizeof(A)) : 0; }

  void run(const Parallel& parallel) const { channels_last ? sum_chunks(parallel) : sum_planes(parallel); }

  // A task for each channel: its planes, row by row of vectors.
  void sum_planes(const Parallel& parallel) const {
    parallel(K, [&](int64_t k, int) {
      double total = 0;
      for (int64_t n = 0; n < images; ++n) {
        const T* plane = grad_output + (n * K + k) * pixels;
        for (int64_t begin = 0; begin < pixels; begin += kBiasChunk) {
          const int64_t end = min_of(begin + kBiasChunk, pixels);
          Vec<A> sum[4] = {};
          int64_t i = begin;
          for (; i + 4 * L <= end; i += 4 * L) {
            for (int v = 0; v < 4; ++v) sum[v] += load(plane + i + v * L);
          }
          A rest = 0;
          for (; i < end; ++i) rest += load_one(plane + i);
          const Vec<A> all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
          for (int64_t lane = 0; lane < L; ++lane) rest += all[lane];
          total += rest;
        }
      }
      store_one(grad_bias + k, static_cast<A>(total));
    });
  }

  // Chunks of pixels first, each to a row of partial sums; then a task for each channel.
  void sum_chunks(const Parallel& parallel) const {
    parallel(chunks(), [&](int64_t chunk, int) {
      A* sums = partial + chunk * K;
      fill_zero(sums, K);
      const Range rows = block(chunk, kBiasChunk, images * pixels);
      const T* row = grad_output + rows.begin * K;
      for (int64_t r = rows.begin; r < rows.end; ++r, row += K) {
        int64_t k = 0;
        for (; k + L <= K; k += L) store(sums + k, load(sums + k) + load(row + k));
        for (; k < K; ++k) sums[k] += load_one(row + k);
      }
    });
    parallel(K, [&](int64_t k, int) {
      double total = 0;
      for (int64_t chunk = 0; chunk < chunks(); ++chunk) total += partial[chunk * K + k];
      store_one(grad_bias + k, static_cast<A>(total));
    });
  }

  bool channels_last;
  int64_t K, images, pixels;
  const T* grad_output;
  T* grad_bias;
  A* partial;
};

constexpr ConvKernel kConvGradBias =
    entry<ByType<GradBias>>("chunks", "sums of chunks, added in order", accepts_all);

}  // namespace cnnext::cpu::CNNEXT_ISA
