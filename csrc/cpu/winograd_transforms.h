// The transforms of Winograd's minimal filtering (Lavin and Gray, arXiv 1509.09308). Along an axis, F(m, r)
// makes m outputs of a filter of r taps from six inputs by six products instead of m * r, for every m + r =
// 7; along both axes of a plane the savings multiply: F(4x4, 3x3) takes 36 products instead of 144.
//
// With the six points 0, +-a, +-b and infinity, inputs are interpolated (B^T), filters evaluated (G) and the
// products evaluated again (A^T): V = B^T d B, U = G g G^T, Y = A^T (U . V) A. The points are 2/3 and 3/2:
// products of the transforms then stay near one, and the error is less than half of that with the usual 1
// and 2. An axis without a filter (one tap) keeps its pixels.
#pragma once

#include "vec.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int kPoints = 6;
constexpr double kPointA = 2.0 / 3, kPointB = 1.5;

constexpr double power(double x, int exponent) { return exponent == 0 ? 1 : x * power(x, exponent - 1); }

// What makes G and B^T inverse to each other: 1 / (2 p^2 (p^2 - q^2)) for the pair +-p, where +-q is the
// other.
constexpr double pair_scale(double p, double q) {
  return 1 / (2 * power(p, 2) * (power(p, 2) - power(q, 2)));
}

// One axis of a tile: a filter of that many taps.
template <int Taps>
struct TileAxis {
  static constexpr int kTaps = Taps;
  static constexpr int kOutputs = Taps == 1 ? 1 : kPoints + 1 - Taps;
  static constexpr int kPatch = Taps == 1 ? 1 : kPoints;
};

// B^T: six inputs to six.
template <class A>
CNNEXT_INLINE void interpolate(const Vec<A>* d, Vec<A>* v, int64_t step) {
  constexpr A a = A(kPointA), b = A(kPointB), a2 = A(kPointA * kPointA), b2 = A(kPointB * kPointB),
              sum = A(kPointA * kPointA + kPointB * kPointB);
  const Vec<A> even_a = d[4] - b2 * d[2], odd_a = d[3] - b2 * d[1];
  const Vec<A> even_b = d[4] - a2 * d[2], odd_b = d[3] - a2 * d[1];
  v[0] = d[0] - sum * d[2] + d[4];
  v[step] = even_a + a * odd_a;
  v[2 * step] = even_a - a * odd_a;
  v[3 * step] = even_b + b * odd_b;
  v[4 * step] = even_b - b * odd_b;
  v[5 * step] = d[1] - sum * d[3] + d[5];
}

// The polynomial with N coefficients at the six points, each pair's values times its scale if Scaled.
template <class A, int N, bool Scaled>
CNNEXT_INLINE void evaluate(const Vec<A>* x, Vec<A>* v, int64_t step) {
  constexpr double scale_a = Scaled ? pair_scale(kPointA, kPointB) : 1;
  constexpr double scale_b = Scaled ? pair_scale(kPointB, kPointA) : 1;
  Vec<A> a[2] = {}, b[2] = {};  // of the even powers, of the odd ones
#pragma GCC unroll 6
  for (int j = 0; j < N; ++j) {
    a[j % 2] += A(scale_a * power(kPointA, j)) * x[j];
    b[j % 2] += A(scale_b * power(kPointB, j)) * x[j];
  }
  v[0] = x[0];
  v[step] = a[0] + a[1];
  v[2 * step] = a[0] - a[1];
  v[3 * step] = b[0] + b[1];
  v[4 * step] = b[0] - b[1];
  v[5 * step] = x[N - 1];
}

// The transpose of evaluate: six values to N.
template <class A, int N, bool Scaled>
CNNEXT_INLINE void accumulate(const Vec<A>* m, Vec<A>* y, int64_t step) {
  constexpr double scale_a = Scaled ? pair_scale(kPointA, kPointB) : 1;
  constexpr double scale_b = Scaled ? pair_scale(kPointB, kPointA) : 1;
  const Vec<A> a[2] = {m[1] + m[2], m[1] - m[2]}, b[2] = {m[3] + m[4], m[3] - m[4]};
#pragma GCC unroll 6
  for (int j = 0; j < N; ++j) {
    Vec<A> sum = A(scale_a * power(kPointA, j)) * a[j % 2] + A(scale_b * power(kPointB, j)) * b[j % 2];
    if (j == 0) sum += m[0];
    if (j == N - 1) sum += m[5];
    y[j * step] = sum;
  }
}

enum class Transform { kInput, kWeight, kOutput, kGradOutput, kGradWeight };

template <Transform Which, class Axis>
constexpr int kFrom = Which == Transform::kWeight       ? Axis::kTaps
                      : Which == Transform::kGradOutput ? Axis::kOutputs
                                                        : Axis::kPatch;
template <Transform Which, class Axis>
constexpr int kTo = Which == Transform::kOutput       ? Axis::kOutputs
                    : Which == Transform::kGradWeight ? Axis::kTaps
                                                      : Axis::kPatch;

template <class A, Transform Which, class Axis>
CNNEXT_INLINE void transform_axis(const Vec<A>* from, Vec<A>* to, int64_t step) {
  if constexpr (Axis::kTaps == 1) {
    to[0] = from[0];
  } else if constexpr (Which == Transform::kInput) {
    interpolate<A>(from, to, step);
  } else if constexpr (Which == Transform::kWeight || Which == Transform::kGradOutput) {
    evaluate<A, kFrom<Which, Axis>, Which == Transform::kWeight>(from, to, step);
  } else {
    accumulate<A, kTo<Which, Axis>, Which == Transform::kGradWeight>(from, to, step);
  }
}

// Both axes of a tile: get(row, column) is an element, put(n, value) is called for each result, rows first.
template <class A, Transform Which, class Tile, class Get, class Put>
CNNEXT_INLINE void transform_tile(Get&& get, Put&& put) {
  using H = typename Tile::H;
  using W = typename Tile::W;
  constexpr int kRows = kFrom<Which, H>, kColumns = kFrom<Which, W>;
  Vec<A> half[kTo<Which, H> * kColumns];
#pragma GCC unroll 6
  for (int j = 0; j < kColumns; ++j) {
    Vec<A> column[kRows];
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) column[i] = get(i, j);
    transform_axis<A, Which, H>(column, half + j, kColumns);
  }
#pragma GCC unroll 6
  for (int i = 0; i < kTo<Which, H>; ++i) {
    Vec<A> row[kTo<Which, W>];
    transform_axis<A, Which, W>(half + i * kColumns, row, 1);
#pragma GCC unroll 6
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
#pragma GCC unroll 6
  for (int j = 0; j < kColumns; ++j) {
    Vec<A> column[kRows], all[kTo<Which, H>];
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) column[i] = get(i, j);
    transform_axis<A, Which, H>(column, all, 1);
    half[j] = all[I];
  }
  transform_axis<A, Which, W>(half, row, 1);
#pragma GCC unroll 6
  for (int j = 0; j < kTo<Which, W>; ++j) put(j, row[j]);
}

// A tile of a plane, for filters of these numbers of taps. A third axis, the first, has none.
template <int TapsH, int TapsW>
struct WinogradTile {
  using H = TileAxis<TapsH>;
  using W = TileAxis<TapsW>;
  static constexpr int64_t kTapsOf[kAxes] = {1, TapsH, TapsW}, kSizeOf[kAxes] = {1, H::kOutputs, W::kOutputs};
  static constexpr int64_t kPatchOf[kAxes] = {1, H::kPatch, W::kPatch};
  static constexpr int kTaps = TapsH * TapsW, kProducts = H::kPatch * W::kPatch,
                       kOutputs = H::kOutputs * W::kOutputs;
  // Products of a tile with an output less along each axis.
  static constexpr int kLeast = (H::kPatch - (TapsH > 1)) * (W::kPatch - (TapsW > 1));
};

}  // namespace cnnext::cpu::CNNEXT_ISA
