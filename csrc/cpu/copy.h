// Runs and blocks of elements, copied or transposed, and converted on the way.
#pragma once

#include "vec.h"

namespace cnnext::cpu::CNNEXT_ISA {

template <class A>
CNNEXT_INLINE void fill_zero(A* to, int64_t count) {
  if (count > 0) __builtin_memset(to, 0, count * sizeof(A));
}

template <class From, class A>
CNNEXT_INLINE void copy_run(From from, A* to, int64_t count) {
  constexpr int64_t L = kLanes<A>;
  if (count >= L) {
    for (int64_t i = 0; i + L <= count; i += L) store(to + i, load(from + i));
    if (count % L != 0) store(to + count - L, load(from + (count - L)));
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = load_one(from + i);
  }
}

// Copies `count` runs of `size` elements, step by step; may write a vector where a run is shorter.
template <class T>
CNNEXT_INLINE void copy_runs(const T* from, int64_t from_step, Acc<T>* to, int64_t to_step, int64_t size,
                             int64_t count) {
  constexpr int64_t L = kLanes<Acc<T>>;
  if (size <= L) {
    for (; count > 0; --count, from += from_step, to += to_step) store(to, load(from));
  } else if (size <= 2 * L) {
    for (; count > 0; --count, from += from_step, to += to_step) {
      store(to, load(from));
      store(to + size - L, load(from + size - L));
    }
  } else {
    for (; count > 0; --count, from += from_step, to += to_step) copy_run(from, to, size);
  }
}

// Every Step-th element for a vector, for a step of two or four: from[0], from[Step], ... The last one read
// is the last one wanted.
template <int Step, class T, int... Lane>
CNNEXT_INLINE Vec<Acc<T>> load_every(const T* from, std::integer_sequence<int, Lane...>) {
  constexpr int L = kLanes<Acc<T>>;
  if constexpr (Step == 2) {
    return shuffle<(Lane < L / 2 ? 2 * Lane : L + 2 * (Lane - L / 2) + 1)...>(load(from), load(from + L - 1));
  } else {
    const auto lower = shuffle<(4 * Lane % (2 * L))...>(load(from), load(from + L)),
               upper = shuffle<((4 * Lane + 3) % (2 * L))...>(load(from + 2 * L - 3), load(from + 3 * L - 3));
    return shuffle<(Lane < L / 2 ? Lane : L + Lane)...>(lower, upper);
  }
}

// Steps that copy_strided takes by vectors.
CNNEXT_INLINE bool copies_vectors(int64_t step) { return step == 1 || step == 2 || step == 4; }

// to[i] = from[i * step]. Where there is room on both sides, a short run is read and written as a vector.
template <class T>
CNNEXT_INLINE void copy_strided(const T* from, int64_t step, Acc<T>* to, int64_t count, bool room) {
  constexpr int64_t L = kLanes<Acc<T>>;
  const auto copy_every = [&](auto known) {
    constexpr int kStep = decltype(known)::value;
    const auto copy = [&](int64_t i) {
      store(to + i, load_every<kStep>(from + kStep * i, std::make_integer_sequence<int, int(L)>()));
    };
    for (int64_t i = 0; i + L <= count; i += L) copy(i);
    if (count % L != 0) copy(max_of(count - L, 0));
  };
  if (!copies_vectors(step) || (count < L && !(room && step < 4))) {
    for (int64_t i = 0; i < count; ++i) to[i] = load_one(from + i * step);
  } else if (step == 1) {
    if (count < L) return store(to, load(from));
    copy_run(from, to, count);
  } else if (step == 2) {
    copy_every(std::integral_constant<int, 2>());
  } else {
    copy_every(std::integral_constant<int, 4>());
  }
}

// The transpose of a block: row(j)[i] = from[i * stride + j], for i < rows and j < columns.
template <class From, class Row>
CNNEXT_INLINE void transpose_block(From from, int64_t stride, int64_t rows, int64_t columns, Row&& row) {
  using A = Acc<Pointee<decltype(row(0))>>;
  constexpr int64_t L = kLanes<A>;
  int64_t i = 0;
  for (; i + L <= rows; i += L, from = from + L * stride) {
    int64_t j = 0;
    for (; j + L <= columns; j += L) {
      Vec<A> x[L];
#pragma GCC unroll 16
      for (int64_t n = 0; n < L; ++n) x[n] = load(from + (n * stride + j));
      transpose<A>(x);
#pragma GCC unroll 16
      for (int64_t n = 0; n < L; ++n) store(row(j + n) + i, x[n]);
    }
    for (; j < columns; ++j) {
      const auto out = row(j) + i;
      for (int64_t n = 0; n < L; ++n) store_one(out + n, load_one(from + (n * stride + j)));
    }
  }
  for (; i < rows; ++i, from = from + stride) {
    for (int64_t j = 0; j < columns; ++j) store_one(row(j) + i, load_one(from + j));
  }
}

// Rows `stride` apart of bfloat16, as float: every Step-th and the next become one of pairs, in the order of
// the rows; where there is none, the partner is zero.
template <int Step = 2>
CNNEXT_INLINE void pair_rows(float* rows, int64_t stride, int64_t count, int64_t size) {
  for (int64_t i = 0; i < count; i += Step) {
    const float *first = rows + i * stride, *second = first + stride;
    for (int64_t j = 0; j < size; j += kLanes<float>) {
      UintVec bits = bit_cast<UintVec>(load(first + j)) >> 16;
      if (i + 1 < count) bits |= bit_cast<UintVec>(load(second + j));
      store(rows + i / Step * stride + j, bit_cast<Vec<float>>(bits));
    }
  }
}

}  // namespace cnnext::cpu::CNNEXT_ISA
