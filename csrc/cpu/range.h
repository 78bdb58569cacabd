// Ranges of indices, and small arithmetic.
#pragma once

#include "vec.h"

namespace cnnext::cpu::CNNEXT_ISA {

template <class X>
CNNEXT_INLINE void swap(X& x, X& y) {
  const X before = x;
  x = y;
  y = before;
}

// The index-th block of that size.
CNNEXT_INLINE Range block(int64_t index, int64_t size, int64_t total) {
  return {min_of(index * size, total), min_of((index + 1) * size, total)};
}

CNNEXT_INLINE int64_t clamp(int64_t x, int64_t low, int64_t high) { return max_of(low, min_of(x, high)); }

// visit(n as std::integral_constant<int, n>), for n in [1, Most].
template <int Most, class Visit>
CNNEXT_INLINE auto with_count(int64_t n, const Visit& visit) {
  if constexpr (Most > 1) {
    if (n < Most) return with_count<Most - 1>(n, visit);
  }
  return visit(std::integral_constant<int, Most>());
}

// Rounds up to an odd number of 16 elements, a cache line of float32: planes at powers of two would collide
// in the cache.
CNNEXT_INLINE int64_t odd_lines(int64_t elements) { return (ceil_div(elements, 16) | 1) * 16; }

}  // namespace cnnext::cpu::CNNEXT_ISA
