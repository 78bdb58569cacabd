// Sums that are divided among tasks, in splits. Their number depends on the shape alone, and they are added
// in order: threads do not change the result.
#pragma once

#include "vec.h"

namespace cnnext::cpu::CNNEXT_ISA {

// total[size], the first split's sums, += those of the other splits: whole vectors, splits `stride` elements
// apart.
template <class A>
CNNEXT_INLINE void add_splits(A* total, int64_t splits, int64_t size, int64_t stride) {
  for (int64_t split = 1; split < splits; ++split) {
    const A* part = total + split * stride;
    for (int64_t i = 0; i < size; i += kLanes<A>) store(total + i, load(total + i) + load(part + i));
  }
}

}  // namespace cnnext::cpu::CNNEXT_ISA
