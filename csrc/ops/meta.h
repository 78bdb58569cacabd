// Operators are written once: for numbers (Int = int64_t) they run on the device, for symbols (c10::SymInt,
// the Meta key) they only make tensors of the right sizes and formats.
#pragma once

#include <ATen/ops/empty.h>

#include <type_traits>

#include "common.h"
#include "memory.h"

namespace cnnext::ops {

template <class Int>
constexpr bool kRuns = std::is_same_v<Int, int64_t>;

template <class Int>
c10::ArrayRef<Int> sizes(const at::Tensor& t) {
  if constexpr (kRuns<Int>) {
    return t.sizes();
  } else {
    return t.sym_sizes();
  }
}
template <class Int>
Int size(const at::Tensor& t, int64_t axis) {
  if constexpr (kRuns<Int>) {
    return t.size(axis);
  } else {
    return t.sym_size(axis);
  }
}
inline SymInts symbols(at::IntArrayRef list) { return c10::fromIntArrayRefSlow(list); }
inline SymInts symbols(SymInts list) { return list; }

template <class Int>
at::Tensor new_tensor(c10::ArrayRef<Int> size, const at::TensorOptions& options, Layout layout) {
  const auto format = memory_format(layout, int64_t(size.size()));
  if constexpr (kRuns<Int>) {
    return empty(size, options, format);
  } else {
    return at::empty_symint(size, options, format);
  }
}

}  // namespace cnnext::ops
