// The transforms of Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, arXiv 1509.09308): 16 outputs
// of a 3x3 convolution from a patch of 6x6 inputs by 36 products instead of 144.
//
// The interpolation points are 0, +-2/3, +-3/2 and infinity: products of the transforms then stay near one,
// and the error is less than half of that with the usual 0, +-1, +-2. (2/3 * 3/2 = 1 saves multiplications as
// well.) With a, b the two points, V = B^T d B, U = G g G^T, Y = A^T (U . V) A.
#pragma once

#include "vec.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int kOutputs = 4, kPatch = 6, kProducts = kPatch * kPatch;

template <class A>
struct Points {
  static constexpr A a = A(2.0 / 3), b = A(1.5), a2 = A(4.0 / 9), b2 = A(2.25), a3 = A(8.0 / 27),
                     b3 = A(3.375);
  static constexpr A sum = A(4.0 / 9 + 2.25);                         // a^2 + b^2
  static constexpr A ga = A(1 / (2 * (4.0 / 9) * (4.0 / 9 - 2.25)));  // 1 / (2 a^2 (a^2 - b^2))
  static constexpr A gb = A(1 / (2 * 2.25 * (2.25 - 4.0 / 9)));
};

// B^T: six inputs to six.
template <class A>
CNNEXT_INLINE void input_transform(const Vec<A>* d, int64_t from_step, Vec<A>* v, int64_t to_step) {
  using P = Points<A>;
  const Vec<A> d0 = d[0], d1 = d[from_step], d2 = d[2 * from_step], d3 = d[3 * from_step],
               d4 = d[4 * from_step], d5 = d[5 * from_step];
  const Vec<A> even_a = d4 - P::b2 * d2, odd_a = d3 - P::b2 * d1;
  const Vec<A> even_b = d4 - P::a2 * d2, odd_b = d3 - P::a2 * d1;
  v[0] = d0 - P::sum * d2 + d4;
  v[to_step] = even_a + P::a * odd_a;
  v[2 * to_step] = even_a - P::a * odd_a;
  v[3 * to_step] = even_b + P::b * odd_b;
  v[4 * to_step] = even_b - P::b * odd_b;
  v[5 * to_step] = d1 - P::sum * d3 + d5;
}

// A patch d[row * step + column] to its 36 transforms, `plane` apart.
template <class A>
CNNEXT_INLINE void transform_patch(const Vec<A>* d, int64_t step, A* to, int64_t plane) {
  Vec<A> v[kProducts];
  for (int j = 0; j < kPatch; ++j) input_transform<A>(d + j, step, v + j, kPatch);
  for (int i = 0; i < kPatch; ++i) {
    Vec<A> row[kPatch];
    input_transform<A>(v + i * kPatch, 1, row, 1);
    for (int j = 0; j < kPatch; ++j) store(to + (i * kPatch + j) * plane, row[j]);
  }
}

// G: three weights to six.
template <class A>
CNNEXT_INLINE void weight_transform(const Vec<A>* g, int64_t from_step, Vec<A>* u, int64_t to_step) {
  using P = Points<A>;
  const Vec<A> g0 = g[0], g1 = g[from_step], g2 = g[2 * from_step];
  const Vec<A> even_a = P::ga * g0 + (P::ga * P::a2) * g2, even_b = P::gb * g0 + (P::gb * P::b2) * g2;
  u[0] = g0;
  u[to_step] = even_a + (P::ga * P::a) * g1;
  u[2 * to_step] = even_a - (P::ga * P::a) * g1;
  u[3 * to_step] = even_b + (P::gb * P::b) * g1;
  u[4 * to_step] = even_b - (P::gb * P::b) * g1;
  u[5 * to_step] = g2;
}

// A^T: six products to four outputs.
template <class A>
CNNEXT_INLINE void output_transform(const Vec<A>* m, int64_t from_step, Vec<A>* y, int64_t to_step) {
  using P = Points<A>;
  const Vec<A> m1 = m[from_step], m2 = m[2 * from_step], m3 = m[3 * from_step], m4 = m[4 * from_step];
  const Vec<A> even_a = m1 + m2, odd_a = m1 - m2, even_b = m3 + m4, odd_b = m3 - m4;
  y[0] = m[0] + (even_a + even_b);
  y[to_step] = P::a * odd_a + P::b * odd_b;
  y[2 * to_step] = P::a2 * even_a + P::b2 * even_b;
  y[3 * to_step] = P::a3 * odd_a + P::b3 * odd_b + m[5 * from_step];
}

// The transposes, for the gradient of the weight: A takes four output gradients to six, G^T six products to
// three.
template <class A>
CNNEXT_INLINE void gradient_transform(const Vec<A>* y, int64_t from_step, Vec<A>* v, int64_t to_step) {
  using P = Points<A>;
  const Vec<A> y0 = y[0], y1 = y[from_step], y2 = y[2 * from_step], y3 = y[3 * from_step];
  const Vec<A> even_a = y0 + P::a2 * y2, odd_a = P::a * y1 + P::a3 * y3;
  const Vec<A> even_b = y0 + P::b2 * y2, odd_b = P::b * y1 + P::b3 * y3;
  v[0] = y0;
  v[to_step] = even_a + odd_a;
  v[2 * to_step] = even_a - odd_a;
  v[3 * to_step] = even_b + odd_b;
  v[4 * to_step] = even_b - odd_b;
  v[5 * to_step] = y3;
}
template <class A>
CNNEXT_INLINE void grad_weight_transform(const Vec<A>* m, int64_t from_step, Vec<A>* g, int64_t to_step) {
  using P = Points<A>;
  const Vec<A> m1 = m[from_step], m2 = m[2 * from_step], m3 = m[3 * from_step], m4 = m[4 * from_step];
  const Vec<A> even_a = P::ga * (m1 + m2), even_b = P::gb * (m3 + m4);
  g[0] = m[0] + (even_a + even_b);
  g[to_step] = (P::ga * P::a) * (m1 - m2) + (P::gb * P::b) * (m3 - m4);
  g[2 * to_step] = P::a2 * even_a + P::b2 * even_b + m[5 * from_step];
}

}  // namespace cnnext::cpu::CNNEXT_ISA
