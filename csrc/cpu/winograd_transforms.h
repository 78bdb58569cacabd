// The transforms of Winograd's minimal filtering (Lavin and Gray, arXiv 1509.09308). Along an axis, F(m, r)
// makes m outputs of a filter of r taps from m + r - 1 inputs by as many products instead of m * r; along
// both axes of a plane the savings multiply: F(4x4, 3x3) takes 36 products instead of 144.
//
// At points 0, +-a, +-b and infinity, inputs are interpolated (B^T), filters evaluated (G) and the products
// evaluated again (A^T): V = B^T d B, U = G g G^T, Y = A^T (U . V) A. The points are 2/3 and 3/2: products of
// the transforms then stay near one, and the error is less than half of that with the usual 1 and 2. Five
// points are these without 0, and 2/5 and 5/4. An axis without a filter (one tap) keeps its pixels.
#pragma once

#include "vec.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr double power(double x, int exponent) { return exponent == 0 ? 1 : x * power(x, exponent - 1); }

template <int Count>
struct Points {
  static_assert(Count == 5 || Count == 6, "of +-a, +-b, infinity and perhaps 0");
  static constexpr int kCount = Count, kZeros = Count - 5;  // the first is 0 if there is one
  static constexpr double a = kZeros ? 2.0 / 3 : 0.4, b = kZeros ? 1.5 : 1.25;

  // What makes G and B^T inverse to each other for a pair +-p, where +-q is the other.
  static constexpr double pair_scale(double p, double q) {
    return 1 / (2 * power(p, 1 + kZeros) * (p * p - q * q));
  }
};

// B^T: inputs to as many values.
template <class P, class A>
CNNEXT_INLINE void interpolate(const Vec<A>* d, Vec<A>* v, int64_t step) {
  constexpr A a = A(P::a), b = A(P::b), a2 = A(P::a * P::a), b2 = A(P::b * P::b),
              sum = A(P::a * P::a + P::b * P::b), product = A(P::a * P::a * P::b * P::b);
  if constexpr (P::kZeros == 1) {
    v[0] = product * d[0] - sum * d[2] + d[4];
    ++d, v += step;
  }
  const Vec<A> even_a = d[3] - b2 * d[1], odd_a = d[2] - b2 * d[0];
  const Vec<A> even_b = d[3] - a2 * d[1], odd_b = d[2] - a2 * d[0];
  v[0] = even_a + a * odd_a;
  v[step] = P::kZeros ? even_a - a * odd_a : a * odd_a - even_a;
  v[2 * step] = even_b + b * odd_b;
  v[3 * step] = P::kZeros ? even_b - b * odd_b : b * odd_b - even_b;
  v[4 * step] = product * d[0] - sum * d[2] + d[4];
}

// The polynomial with N coefficients at the points, each pair's values times its scale if Scaled.
template <class P, class A, int N, bool Scaled>
CNNEXT_INLINE void evaluate(const Vec<A>* x, Vec<A>* v, int64_t step) {
  constexpr double scale_a = Scaled ? P::pair_scale(P::a, P::b) : 1;
  constexpr double scale_b = Scaled ? P::pair_scale(P::b, P::a) : 1;
  Vec<A> a[2] = {}, b[2] = {};  // of the even powers, of the odd ones
#pragma GCC unroll 6
  for (int j = 0; j < N; ++j) {
    a[j % 2] += A(scale_a * power(P::a, j)) * x[j];
    b[j % 2] += A(scale_b * power(P::b, j)) * x[j];
  }
  if constexpr (P::kZeros == 1) {
    v[0] = x[0];
    v += step;
  }
  v[0] = a[0] + a[1];
  v[step] = a[0] - a[1];
  v[2 * step] = b[0] + b[1];
  v[3 * step] = b[0] - b[1];
  v[4 * step] = x[N - 1];
}

// The transpose of evaluate: values to N coefficients.
template <class P, class A, int N, bool Scaled>
CNNEXT_INLINE void accumulate(const Vec<A>* m, Vec<A>* y, int64_t step) {
  constexpr double scale_a = Scaled ? P::pair_scale(P::a, P::b) : 1;
  constexpr double scale_b = Scaled ? P::pair_scale(P::b, P::a) : 1;
  const Vec<A>* pairs = m + P::kZeros;
  const Vec<A> a[2] = {pairs[0] + pairs[1], pairs[0] - pairs[1]};
  const Vec<A> b[2] = {pairs[2] + pairs[3], pairs[2] - pairs[3]};
#pragma GCC unroll 6
  for (int j = 0; j < N; ++j) {
    Vec<A> sum = A(scale_a * power(P::a, j)) * a[j % 2] + A(scale_b * power(P::b, j)) * b[j % 2];
    if (P::kZeros && j == 0) sum += m[0];
    if (j == N - 1) sum += pairs[4];
    y[j * step] = sum;
  }
}

enum class Transform { kInput, kWeight, kOutput, kGradOutput, kGradWeight };

// One axis of a tile: a filter of that many taps. `weight` tells by which value of the filter an input's is
// multiplied, `last` whether only a tile's last output needs the product.
template <int Taps>
struct TileAxis {
  using P = Points<6>;
  static constexpr bool kFilters = Taps > 1;
  static constexpr int kTaps = Taps, kStride = 1;
  static constexpr int kProducts = kFilters ? P::kCount : 1, kInputs = kProducts, kWeights = kProducts;
  static constexpr int kOutputs = kFilters ? P::kCount + 1 - Taps : 1;
  static constexpr int kSize = kOutputs, kLasts = kFilters;
  static constexpr int weight(int product) { return product; }
  static constexpr bool last(int product) { return kFilters && product == kProducts - 1; }

  template <class A, Transform Which>
  CNNEXT_INLINE void transform(const Vec<A>* from, Vec<A>* to, int64_t step) {
    if constexpr (!kFilters) {
      to[0] = from[0];
    } else if constexpr (Which == Transform::kInput) {
      interpolate<P, A>(from, to, step);
    } else if constexpr (Which == Transform::kWeight) {
      evaluate<P, A, kTaps, true>(from, to, step);
    } else if constexpr (Which == Transform::kGradOutput) {
      evaluate<P, A, kOutputs, false>(from, to, step);
    } else if constexpr (Which == Transform::kOutput) {
      accumulate<P, A, kOutputs, false>(from, to, step);
    } else {
      accumulate<P, A, kTaps, true>(from, to, step);
    }
  }
};

// Three taps at a stride of two: taps 0 and 2 filter the even inputs, F(4, 2) by five products, and tap 1
// meets each odd input once. Nine products make four outputs, of nine inputs, instead of twelve. The gradient
// with respect to the input has the same products: five pixels of grad_output make four pairs of its pixels,
// of which the first sees tap 1 alone and the second tap 2 of its pixel and tap 0 of the next.
template <bool Gradient>
struct StridedAxis {
  using P = Points<5>;
  static constexpr int kTaps = 3, kStride = 2, kSize = 4;  // outputs, or pairs of a gradient
  static constexpr int kProducts = P::kCount + kSize, kWeights = P::kCount + 1, kLasts = 2;
  static constexpr int kInputs = Gradient ? kSize + 1 : 2 * kSize + 1,
                       kOutputs = Gradient ? 2 * kSize : kSize;
  static constexpr int weight(int product) { return product < P::kCount ? product : P::kCount; }
  static constexpr bool last(int product) { return product == P::kCount - 1 || product == kProducts - 1; }

  template <class A, Transform Which>
  CNNEXT_INLINE void transform(const Vec<A>* from, Vec<A>* to, int64_t step) {
    const auto single = [&](int i) -> Vec<A>& { return to[(P::kCount + i) * step]; };
    if constexpr (Which == Transform::kInput && Gradient) {
      interpolate<P, A>(from, to, step);
#pragma GCC unroll 4
      for (int i = 0; i < kSize; ++i) single(i) = from[i];
    } else if constexpr (Which == Transform::kInput) {
      const Vec<A> even[P::kCount] = {from[0], from[2], from[4], from[6], from[8]};
      interpolate<P, A>(even, to, step);
#pragma GCC unroll 4
      for (int i = 0; i < kSize; ++i) single(i) = from[2 * i + 1];
    } else if constexpr (Which == Transform::kWeight) {
      const Vec<A> outer[2] = {from[0], from[2]};
      evaluate<P, A, 2, true>(outer, to, step);
      single(0) = from[1];
    } else if constexpr (Which == Transform::kGradOutput) {
      evaluate<P, A, kSize, false>(from, to, step);
#pragma GCC unroll 4
      for (int i = 0; i < kSize; ++i) single(i) = from[i];
    } else if constexpr (Which == Transform::kOutput) {
      constexpr int kPixels = kOutputs / kSize;
      accumulate<P, A, kSize, false>(from, to + (kPixels - 1) * step, kPixels * step);
#pragma GCC unroll 4
      for (int i = 0; i < kSize; ++i) {
        const Vec<A> product = from[P::kCount + i];
        to[kPixels * i * step] = Gradient ? product : to[kPixels * i * step] + product;
      }
    } else {
      accumulate<P, A, 2, true>(from, to, 2 * step);
      to[step] = from[P::kCount];
    }
  }
};

template <Transform Which, class Axis>
constexpr int kFrom = Which == Transform::kInput        ? Axis::kInputs
                      : Which == Transform::kWeight     ? Axis::kTaps
                      : Which == Transform::kGradOutput ? Axis::kOutputs
                      : Which == Transform::kGradWeight ? Axis::kWeights
                                                        : Axis::kProducts;
template <Transform Which, class Axis>
constexpr int kTo = Which == Transform::kWeight       ? Axis::kWeights
                    : Which == Transform::kOutput     ? Axis::kOutputs
                    : Which == Transform::kGradWeight ? Axis::kTaps
                                                      : Axis::kProducts;

// Both axes of a tile: get(row, column) is an element, put(n, value) is called for each result, rows first.
template <class A, Transform Which, class Tile, class Get, class Put>
CNNEXT_INLINE void transform_tile(Get&& get, Put&& put) {
  using H = typename Tile::H;
  using W = typename Tile::W;
  constexpr int kRows = kFrom<Which, H>, kColumns = kFrom<Which, W>;
  Vec<A> half[kTo<Which, H> * kColumns];
#pragma GCC unroll 9
  for (int j = 0; j < kColumns; ++j) {
    Vec<A> column[kRows];
#pragma GCC unroll 9
    for (int i = 0; i < kRows; ++i) column[i] = get(i, j);
    H::template transform<A, Which>(column, half + j, kColumns);
  }
#pragma GCC unroll 9
  for (int i = 0; i < kTo<Which, H>; ++i) {
    Vec<A> row[kTo<Which, W>];
    W::template transform<A, Which>(half + i * kColumns, row, 1);
#pragma GCC unroll 9
    for (int j = 0; j < kTo<Which, W>; ++j) put(i * kTo<Which, W> + j, row[j]);
  }
}

// Row I alone of what transform_tile makes.
template <class A, Transform Which, class Tile, int I, class Get, class Put>
CNNEXT_INLINE void transform_row(Get&& get, Put&& put) {
  using H = typename Tile::H;
  using W = typename Tile::W;
  constexpr int kRows = kFrom<Which, H>, kColumns = kFrom<Which, W>;
  Vec<A> half[kColumns], row[kTo<Which, W>];
#pragma GCC unroll 9
  for (int j = 0; j < kColumns; ++j) {
    Vec<A> column[kRows], all[kTo<Which, H>];
#pragma GCC unroll 9
    for (int i = 0; i < kRows; ++i) column[i] = get(i, j);
    H::template transform<A, Which>(column, all, 1);
    half[j] = all[I];
  }
  W::template transform<A, Which>(half, row, 1);
#pragma GCC unroll 9
  for (int j = 0; j < kTo<Which, W>; ++j) put(j, row[j]);
}

// A tile of a plane. A third axis, the first, has no filter.
template <class AxisH, class AxisW>
struct WinogradTile {
  using H = AxisH;
  using W = AxisW;
  static constexpr int64_t kTapsOf[kAxes] = {1, H::kTaps, W::kTaps}, kSizeOf[kAxes] = {1, H::kSize, W::kSize};
  static constexpr int64_t kStrideOf[kAxes] = {1, H::kStride, W::kStride};
  static constexpr int64_t kInputsOf[kAxes] = {1, H::kInputs, W::kInputs};
  static constexpr int64_t kProductsOf[kAxes] = {1, H::kProducts, W::kProducts};
  static constexpr int64_t kLastsOf[kAxes] = {0, H::kLasts, W::kLasts};
  static constexpr int kTaps = H::kTaps * W::kTaps;
  static constexpr int kProducts = H::kProducts * W::kProducts, kWeights = H::kWeights * W::kWeights;
  static constexpr bool kStrides = H::kStride > 1 || W::kStride > 1;
  // How much dearer direct sums must be, which round less. With a stride they hardly do.
  static constexpr double kMargin = kStrides ? 1 : 1.2;
  // Products of a tile with an output less along each axis.
  static constexpr int kLeast = (H::kProducts - H::kLasts) * (W::kProducts - W::kLasts);

  // By which of the transformed weights a product multiplies.
  static constexpr int weight(int product) {
    return H::weight(product / W::kProducts) * W::kWeights + W::weight(product % W::kProducts);
  }
};
template <int TapsH, int TapsW>
using PlainTile = WinogradTile<TileAxis<TapsH>, TileAxis<TapsW>>;
template <bool Gradient>
using StridedTile = WinogradTile<StridedAxis<Gradient>, StridedAxis<Gradient>>;

}  // namespace cnnext::cpu::CNNEXT_ISA
