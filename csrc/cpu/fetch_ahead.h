// Memory that will be wanted next, asked for a few cache lines at a time between products. Requested all at
// once, it would fill the queue in which the products' own loads wait; not requested, it costs a tenth of a
// convolution whose operands lie beyond the caches.
#pragma once

#include "vec.h"

namespace cnnext::cpu::CNNEXT_ISA {

// Rows of elements, in two loops.
class FetchedRows {
 public:
  struct Loop {
    int64_t count, step;  // elements from one row to the next
  };

  FetchedRows() = default;
  // All lines are asked for within `calls` calls of fetch().
  template <class T>
  FetchedRows(const T* from, int64_t elements, Loop inner, Loop outer, int64_t calls)
      : size(elements * bytes<T>),
        rows(inner.count),
        row_step(inner.step * bytes<T>),
        blocks(outer.count),
        block_step(outer.step * bytes<T>),
        line(reinterpret_cast<const char*>(from)),
        row(line),
        block(line) {
    if (calls > 0) each_call = ceil_div(ceil_div(size, kLine) * rows * blocks, calls);
  }

  // Into the second-level cache (2), or the first as well (3).
  template <int Locality = 2>
  __attribute__((always_inline)) void fetch() {
    for (int64_t n = each_call; n > 0; --n) {
      __builtin_prefetch(line, 0, Locality);
      line += kLine;
      if (line - row >= size) next_row();
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  template <class T>
  static constexpr int64_t bytes = sizeof(T);

  void next_row() {
    row += row_step;
    if (++number == rows) {
      number = 0;
      row = block += block_step;
      if (--blocks == 0) each_call = 0;
    }
    line = row;
  }

  int64_t size = 0, rows = 0, row_step = 0, blocks = 0, block_step = 0;
  int64_t each_call = 0, number = 0;  // of lines; of the row in its block
  const char *line = nullptr, *row = nullptr, *block = nullptr;
};

// Weights are the last to come from memory; requests for the first-level cache are served sooner.
struct Ahead {
  FetchedRows source, destination, weights;

  __attribute__((always_inline)) void fetch() {
    source.fetch();
    destination.fetch();
    weights.fetch<3>();
  }
};

}  // namespace cnnext::cpu::CNNEXT_ISA
