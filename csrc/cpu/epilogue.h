// The epilogue of a forward operator, applied to its results as they are stored.
#pragma once

#include "stream.h"

namespace cnnext::cpu::CNNEXT_ISA {

// V: a vector of any length. NaN stays NaN.
template <class V>
CNNEXT_INLINE V activate(const Epilogue& epilogue, V y) {
  using A = std::remove_reference_t<decltype(y[0])>;
  const V zero = {};
  switch (epilogue.activation) {
    case Activation::kNone:
      return y;
    case Activation::kRelu:
      return y < zero ? zero : y;
    case Activation::kRelu6: {
      const V six = zero + A(6), positive = y < zero ? zero : y;
      return positive > six ? six : positive;
    }
    case Activation::kLeakyRelu: {
      const V scaled = y * A(epilogue.negative_slope);
      return y > zero ? y : scaled;
    }
  }
  return y;
}

// Of results of type T that go to `destination`: what is to be stored at `to` in place of `y`.
template <class T>
struct EpilogueOf {
  using A = Acc<T>;
  using One = typename VecOf<A, 1>::type;

  bool any() const { return epilogue.any(); }
  __attribute__((always_inline)) Vec<A> operator()(const T* to, Vec<A> y, int64_t count = kLanes<A>) const {
    if (!any()) return y;
    if (residual) y += load_part(residual + (to - destination), count);
    return activate(epilogue, y);
  }
  // As many neighbours as V has, of tensors that hold A.
  template <class V>
  __attribute__((always_inline)) V of_few(const T* to, V y) const {
    if (residual) y += load_unaligned<V>(residual + (to - destination));
    return activate(epilogue, y);
  }
  __attribute__((always_inline)) A one(const T* to, A y) const {
    if (!any()) return y;
    if (residual) y += load_one(residual + (to - destination));
    return activate(epilogue, One{y})[0];
  }

  Epilogue epilogue;
  const T *residual, *destination;
};

template <class T>
EpilogueOf<T> epilogue_of(const ConvBuffers& b) {
  return {b.epilogue, static_cast<const T*>(b.epilogue.residual), static_cast<const T*>(b.output)};
}

// A tile's results[rows][vectors] with the epilogue; `to` is where the first goes, rows and vectors are so
// far apart, and of each vector so many elements are stored. Out of line: tiles of all sizes share it, and
// are shorter without it.
template <class T>
__attribute__((noinline)) void put_finished(const EpilogueOf<T>& epilogue, const Vec<Acc<T>>* results,
                                            int rows, int vectors, T* to, int64_t row, int64_t vector,
                                            int64_t count = kLanes<Acc<T>>, bool streamed = false) {
  for (int r = 0; r < rows; ++r, to += row) {
    for (int v = 0; v < vectors; ++v, ++results) {
      T* out = to + v * vector;
      put(streamed, out, epilogue(out, *results, count), count);
    }
  }
}

// The same for results that are there already, by kernels that do not apply it themselves.
template <class T>
void apply_epilogue(const EpilogueOf<T>& epilogue, T* results, int64_t size, const Parallel& parallel) {
  constexpr int64_t kBlock = 1 << 13, L = kLanes<Acc<T>>;
  parallel(ceil_div(size, kBlock), [&](int64_t task, int) {
    const int64_t end = min_of((task + 1) * kBlock, size);
    for (int64_t i = task * kBlock; i < end; i += L) {
      const int64_t count = min_of(L, end - i);
      store_part(results + i, epilogue(results + i, load_part(results + i, count), count), count);
    }
  });
}

}  // namespace cnnext::cpu::CNNEXT_ISA
