// What batch normalisation and its gradient share: how a tensor is cut, and the numbers of each channel.
#pragma once

#include "entry.h"
#include "stream.h"
#include "tasks.h"

namespace cnnext::cpu::CNNEXT_ISA {

// A tensor in parts, by its shape alone: some rows of all channels in channels last, a plane or a piece of
// one in channels first. What is summed over a part is added up in order.
struct NormParts {
  explicit NormParts(const NormProblem& p)
      : channels_last(p.layout == Layout::kChannelsLast || p.pixels == 1), N(p.N), C(p.C), pixels(p.pixels) {
    axis = channels_last ? CutAxis(N * pixels, 8) : CutAxis(pixels, 64);
    axis.cut(ceil_div(axis.size, channels_last ? clamp((1 << 16) / C, 64, 128) : 1 << 12));
  }

  int64_t of_channel() const { return channels_last ? axis.blocks : N * axis.blocks; }
  int64_t elements(int64_t part) const { return axis.at(part % axis.blocks).size(); }

  // A task for each: rows(part, offset, number of rows) or plane(part, channel, offset, number of elements).
  // Small planes are a task together.
  template <class Rows, class Plane>
  void visit(const Parallel& parallel, const Rows& rows, const Plane& plane) const {
    if (channels_last) {
      return parallel(axis.blocks, [&](int64_t part, int) {
        const Range range = axis.at(part);
        rows(part, range.begin * C, range.size());
      });
    }
    const int64_t all = N * C * axis.blocks, together = max_of(1, kElementsTogether / pixels);
    parallel(ceil_div(all, together), [&](int64_t task, int) {
      const Range some = block(task, together, all);
      int64_t piece = some.begin % axis.blocks, c = some.begin / axis.blocks % C;
      int64_t image = some.begin / axis.blocks / C;
      for (int64_t i = some.begin; i < some.end; ++i) {
        const Range range = axis.at(piece);
        plane(image * axis.blocks + piece, c, (image * C + c) * pixels + range.begin, range.size());
        if (++piece < axis.blocks) continue;
        piece = 0;
        if (++c == C) c = 0, ++image;
      }
    });
  }
  // merge(first channel, number of them) of all, in blocks.
  template <class Merge>
  void of_channels(const Parallel& parallel, const Merge& merge) const {
    parallel(ceil_div(C, kMerged), [&](int64_t task, int) {
      const Range channels = block(task, kMerged, C);
      merge(channels.begin, channels.size());
    });
  }
  static constexpr int64_t kMerged = 32, kElementsTogether = 1 << 11;

  bool channels_last;
  int64_t N, C, pixels;
  CutAxis axis;
};

// So many rows at a time read and write the numbers of a channel once.
constexpr int kNormRows = 4;

// visit(offset, rows as a constant, first channel, number of them, next) for vectors of channels of some
// rows. Several rows side by side are no stream that a processor foresees: with the vector of row i the
// visitor asks for what stands at next + i * L, in the rows after these.
template <int64_t L, class Visit>
CNNEXT_INLINE void for_tiles(int64_t rows, int64_t C, const Visit& visit) {
  for (int64_t r = 0; r < rows; r += kNormRows) {
    with_count<kNormRows>(rows - r, [&](auto count) {
      for (int64_t c = 0; c < C; c += L) {
        visit(r * C, count, c, min_of(L, C - c), (r + count) * C + c * count);
      }
    });
  }
}
CNNEXT_INLINE void fetch(const void* p) { __builtin_prefetch(p, 0, 2); }

// visit(the activation as a constant)
template <class Visit>
void with_activation(Activation activation, const Visit& visit) {
  switch (activation) {
    case Activation::kNone:
      return visit(std::integral_constant<Activation, Activation::kNone>());
    case Activation::kRelu:
      return visit(std::integral_constant<Activation, Activation::kRelu>());
    case Activation::kRelu6:
      return visit(std::integral_constant<Activation, Activation::kRelu6>());
    case Activation::kLeakyRelu:
      return visit(std::integral_constant<Activation, Activation::kLeakyRelu>());
  }
}

// Stores past the caches where the result would not stay there, and rows are whole lines.
template <class T>
bool streams(const NormProblem& p, const NormParts& parts) {
  const int64_t row = (parts.channels_last ? p.C : p.pixels) * int64_t(sizeof(T));
  return p.N * p.C * p.pixels * int64_t(sizeof(T)) > kCachedBytes && row % kAlignment == 0;
}

// A sum of vectors with the digits that additions lose: Knuth's TwoSum.
template <class A>
struct LongSum {
  Vec<A> sum = {}, lost = {};

  __attribute__((always_inline)) void add(Vec<A> x) {
    const Vec<A> before = sum;
    sum += x;
    const Vec<A> taken = sum - before;
    lost += (before - (sum - taken)) + (x - taken);
  }
  double of_lanes() const {
    double total = 0;
    for (int64_t lane = 0; lane < kLanes<A>; ++lane) total += double(sum[lane]) + lost[lane];
    return total;
  }
};

// (x - mean) * scale + bias of each channel, in arrays of whole vectors.
template <class A>
struct NormOfChannels {
  static constexpr int64_t L = kLanes<A>;

  NormOfChannels(const NormProblem& p, const NormBuffers& b, ScratchLayout& scratch)
      : C(p.C),
        eps(p.eps),
        given_mean(static_cast<const A*>(b.mean)),
        given_variance(static_cast<const A*>(b.variance)),
        given_weight(static_cast<const A*>(b.weight)),
        given_bias(static_cast<const A*>(b.bias)),
        mean(scratch.take<A>(round_up(C, L))),
        scale(scratch.take<A>(round_up(C, L))),
        bias(scratch.take<A>(round_up(C, L))) {}

  double inverse_deviation(int64_t c) const { return 1 / __builtin_sqrt(double(given_variance[c]) + eps); }
  void prepare(int64_t first, int64_t count) const {
    for (int64_t c = first; c < first + count; ++c) {
      mean[c] = given_mean[c];
      scale[c] = A(inverse_deviation(c) * (given_weight ? given_weight[c] : 1));
      bias[c] = given_bias ? given_bias[c] : 0;
    }
  }

  int64_t C;
  double eps;
  const A *given_mean, *given_variance, *given_weight, *given_bias;
  A *mean, *scale, *bias;
};

}  // namespace cnnext::cpu::CNNEXT_ISA
