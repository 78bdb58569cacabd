// Products of few pixels and weights that are read once, where they lie. To pack them for so few takes longer
// than to multiply, and reads of whole rows come sooner from memory. Each sum is taken in the order of
// gemm_tile.h, and has the same bits.
#pragma once

#include "conv_phases.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kPixelsAtOnce = 8;  // sums in registers beside a turned block of weights
constexpr int64_t kAddedRows = 8;     // of weights, before sums are stored again
constexpr int64_t kFewPixels = kPixelsAtOnce;

// Whether pixels are few, and weights rows that can be turned in blocks, or added up.
CNNEXT_INLINE bool takes_few(const Phases& phases, int64_t pixels) {
  return pixels <= kFewPixels && phases.joined_groups == 1 &&
         (phases.gradient ? phases.weight_channel : phases.weight_source) == 1;
}

// Numbers of pixels that code is made for.
template <class Visit>
CNNEXT_INLINE void with_few(int64_t pixels, const Visit& visit) {
  if (pixels == 1) return visit(std::integral_constant<int, 1>());
  if (pixels == 2) return visit(std::integral_constant<int, 2>());
  if (pixels <= 4) return visit(std::integral_constant<int, 4>());
  visit(std::integral_constant<int, kPixelsAtOnce>());
}
// With the zeros that are added to them.
CNNEXT_INLINE int64_t rounded_few(int64_t pixels) {
  int64_t all = 0;
  with_few(pixels, [&](auto n) { all = n; });
  return all;
}

template <Product P, class A, int Pixels>
CNNEXT_INLINE void add_column(Vec<A> (&sum)[Pixels], const A* x, Vec<A> y) {
#pragma GCC unroll 8
  for (int p = 0; p < Pixels; ++p) sum[p] = add_product<P>(sum[p], broadcast(x[p * kDepthStride]), y);
}

// Forward: the products of a vector of channels, whose weights are `row` elements apart, with pixels
// x[pixel][kDepthStride], along neighbours in memory.
template <Product P, class S, class A, int Pixels>
CNNEXT_INLINE void add_turned(Vec<A> (&sums)[Pixels], const S* w, int64_t row, const A* x, int64_t depth) {
  constexpr int64_t L = kLanes<A>;
  Vec<A> sum[Pixels];  // a copy: in registers
#pragma GCC unroll 8
  for (int p = 0; p < Pixels; ++p) sum[p] = sums[p];
  SharedRows<S, int(L)> rows(w, row);
  for (; depth >= L; depth -= L, rows.advance(L), x += L) {
    Vec<A> y[L];
#pragma GCC unroll 16
    for (int n = 0; n < L; ++n) y[n] = load(rows.at(n));
    transpose<A>(y);
#pragma GCC unroll 16
    for (int64_t n = 0; n < L; ++n) add_column<P>(sum, x + n, y[n]);
  }
  for (; depth > 0; --depth, rows.advance(1), ++x) {
    Vec<A> y = {};
    for (int64_t n = 0; n < L; ++n) y[n] = load_one(rows.at(0) + n * row);
    add_column<P>(sum, x, y);
  }
#pragma GCC unroll 8
  for (int p = 0; p < Pixels; ++p) sums[p] = sum[p];
}

// c[pixel][kCols] = or += the same for a block of the depth. `weight` is the first channel's.
template <Product P, class S, class A>
void multiply_turned(const Phases& phases, const Gather& g, const S* weight, Range depth, int64_t pixels,
                     const A* x, A* c, bool add) {
  with_few(pixels, [&](auto n) {
    constexpr int kPixels = decltype(n)::value;
    Vec<A> sum[kPixels] = {};
    for_each_weight_run(phases, g, depth, [&](int64_t offset, Range columns) __attribute__((always_inline)) {
      add_turned<P>(sum, weight + offset, phases.weight_channel, x + columns.begin - depth.begin,
                    columns.size());
    });
#pragma GCC unroll 8
    for (int p = 0; p < kPixels; ++p, c += kCols<A>) store(c, add ? sum[p] + load(c) : sum[p]);
  });
}

// Gradient: c[pixel][stride] = or += x[pixel][kDepthStride] * some rows w of weights.
template <Product P, int Pixels, int Rows, class W, class A>
CNNEXT_INLINE void add_rows(W w, int64_t row, const A* x, A* c, int64_t stride, int64_t size, bool add) {
  constexpr int64_t L = kLanes<A>;
  for (int64_t j = 0; j < size; j += L) {
    Vec<A> y[Rows];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) y[r] = load_part(w + (r * row + j), size - j);
#pragma GCC unroll 8
    for (int p = 0; p < Pixels; ++p) {
      Vec<A> sum = add ? load(c + p * stride + j) : Vec<A>{};
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) sum = add_product<P>(sum, broadcast(x[p * kDepthStride + r]), y[r]);
      store(c + p * stride + j, sum);
    }
  }
}

// c[pixel][stride] = those of all rows of a block of the depth, of `size` channels whose weights begin
// `first` elements from `weight`. c has whole vectors.
template <Product P, class S, class A>
void multiply_rows(const Phases& phases, const Gather& g, const S* weight, int64_t first, int64_t size,
                   Range depth, int64_t pixels, const A* x, A* c, int64_t stride) {
  const auto rows_from = [&](int64_t at) {
    if constexpr (std::is_same_v<S, BFloat16Pair>) {  // the two of a pair are apart, and counted as numbers
      return BFloat16Pairs{reinterpret_cast<const BFloat16*>(weight) + at, phases.weight_source / 2};
    } else {
      return weight + at;
    }
  };
  with_few(pixels, [&](auto n) {
    bool add = false;
    for_each_tap(g, depth, [&](int64_t m, Range source) {
      const int64_t tap = first + phases.weight_offset(g, m);
      const auto add_some = [&](auto count) {
        add_rows<P, n, count>(rows_from(tap + source.begin * phases.weight_source), phases.weight_source, x,
                              c, stride, size, add);
        source.begin += count, x += count, add = true;
      };
      while (source.size() >= kAddedRows) add_some(std::integral_constant<int, kAddedRows>());
      while (source.size() > 0) add_some(std::integral_constant<int, 1>());
    });
  });
}

// c[pixel][kCols] = or += sums[pixel][stride].
template <class A>
void add_panel(const A* sums, int64_t stride, int64_t pixels, A* c, bool add) {
  for (int64_t p = 0; p < pixels; ++p, sums += stride, c += kCols<A>) {
    for (int64_t k = 0; k < kCols<A>; k += kLanes<A>) {
      const Vec<A> sum = load(sums + k);
      store(c + k, add ? sum + load(c + k) : sum);
    }
  }
}

}  // namespace cnnext::cpu::CNNEXT_ISA
