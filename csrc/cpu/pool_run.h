// Sums and maxima of a run of elements in memory, vectors along it.
#pragma once

#include "pool_vec.h"

namespace cnnext::cpu::CNNEXT_ISA {

// In all of these, `available` elements may be read, no less than `count`.

// Sums of chunks are added up, so that errors do not grow with the run.
template <class T>
Acc<T> sum_run(const T* from, int64_t count, int64_t available) {
  using A = Acc<T>;
  constexpr int64_t L = kLanes<A>, kChunk = 64 * L;
  const OffsetVec<A> lane = lane_numbers<A>(1);
  Vec<A> total = {};
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    const int64_t end = min_of(count, begin + kChunk);
    Vec<A> part[4] = {};
    int64_t i = begin;
    for (; i + 4 * L <= end; i += 4 * L) {
      for (int v = 0; v < 4; ++v) part[v] += load(from + i + v * L);
    }
    for (; i + L <= end; i += L) part[0] += load(from + i);
    if (i < end) {
      const Vec<A> next = load_part(from + i, available - i);
      part[1] += lane < static_cast<Offset<A>>(end - i) ? next : Vec<A>{};
    }
    total += (part[0] + part[1]) + (part[2] + part[3]);
  }
  return sum_lanes<A, L>(total);
}

// The maximum; with kOffsets also its place: the last NaN, or the first of the greatest.
template <bool kOffsets, class T>
Acc<T> maximum_run(const T* from, int64_t count, int64_t available, Offset<Acc<T>>* place) {
  using A = Acc<T>;
  constexpr int64_t L = kLanes<A>;
  const OffsetVec<A> lane = lane_numbers<A>(1);
  Vec<A> best = broadcast<A>(lowest(A{}));
  OffsetVec<A> where = {};
  for (int64_t i = 0; i < count; i += L) {
    Vec<A> next = load_part(from + i, available - i);
    if (i + L > count) next = lane < static_cast<Offset<A>>(count - i) ? next : broadcast<A>(lowest(A{}));
    if constexpr (!kOffsets) {
      best = larger(best, next);
    } else {
      const auto stay = stays(best, next);
      best = stay ? best : next;
      where = stay ? where : lane + static_cast<Offset<A>>(i);
    }
  }
  for (Offset<A> half = L / 2; half > 0; half /= 2) {
    const Vec<A> other = rotate_lanes<A>(best, half);
    if constexpr (kOffsets) {
      const OffsetVec<A> other_where = bit_cast<OffsetVec<A>>(rotate_lanes<A>(bit_cast<Vec<A>>(where), half));
      const auto nan = best != best, other_nan = other != other;
      const auto take = (other_nan & (~nan | (other_where > where))) |
                        (~nan & ~other_nan & ((other > best) | ((other == best) & (other_where < where))));
      best = take ? other : best;
      where = take ? other_where : where;
    } else {
      best = larger(best, other);
    }
  }
  if constexpr (kOffsets) {
    *place = where[0];
  } else if (best[0] == A(0)) {  // equals but for their signs; which came first the lanes do not tell
    while (load_one(from) != A(0)) ++from;
    return load_one(from);
  }
  return best[0];
}

}  // namespace cnnext::cpu::CNNEXT_ISA
