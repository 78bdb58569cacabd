// Sums that are divided among tasks, in splits. Their number depends on the shape alone, and they are added
// in order: threads do not change the result.
#pragma once

#include "tasks.h"

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

// Blocks of sums, each divided among so many splits: a task for each of them.
template <class A>
struct SplitSums {
  bool divided() const { return splits > 1; }
  int64_t tasks() const { return blocks * splits; }
  int64_t elements() const { return divided() ? tasks() * size : 0; }
  int64_t block_of(int64_t task) const { return task / splits; }
  Range part(int64_t task, int64_t total) const {  // of what is summed
    return block(task % splits, ceil_div(total, splits), total);
  }
  // Where a task's sums go: those of a block that is not divided to the thread's own memory.
  A* of_task(int64_t task, A* own) const { return divided() ? memory + task * size : own; }

  // store(block, its sums) for blocks that are divided, after all tasks.
  template <class Store>
  void add_up(const Parallel& parallel, Store&& store) const {
    if (!divided()) return;
    parallel(blocks, [&](int64_t b, int) {
      A* total = memory + b * splits * size;
      add_splits(total, splits, size, size);
      store(b, total);
    });
  }

  int64_t blocks = 1, splits = 1, size = 0;  // size: elements of a block's sums, whole vectors
  A* memory = nullptr;                       // [block][split][size]
};

}  // namespace cnnext::cpu::CNNEXT_ISA
