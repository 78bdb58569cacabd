// Weights in the order in which a kernel reads them, made in units such as a panel of channels.
//
// Each thread makes small ones for itself, a unit when a task first asks for it: to read a cache line that
// another core has just written takes 15 to 65 cycles, to pack one takes 5. Large ones, of which several
// copies would not fit the caches, are made once, by all threads.
#pragma once

#include "conv_phases.h"
#include "kernel.h"

namespace cnnext::cpu::CNNEXT_ISA {

template <class A>
class PackedWeights {
 public:
  PackedWeights() = default;
  PackedWeights(int64_t units, int64_t unit_elements, int64_t threads)
      : count(units), size(round_up(unit_elements, 64 / sizeof(A))), copies(threads) {
    const int64_t most = max_of(kCopiesBytes / threads, kCopyBytes);
    if (count * size * int64_t(sizeof(A)) > most) copies = 1, own = false;
  }

  int64_t bytes() const { return round_up(copies * count * (size * int64_t(sizeof(A)) + own), kAlignment); }
  // `memory` has bytes() of them.
  void place(char* memory) {
    elements = reinterpret_cast<A*>(memory);
    made = memory + copies * count * size * int64_t(sizeof(A));
  }

  // Before any task: make(unit, to, thread) for all units, if they are shared.
  template <class Make>
  void start(const Parallel& parallel, Make&& make) const {
    if (own) {
      __builtin_memset(made, 0, size_t(copies * count));
    } else {
      parallel(count, [&](int64_t unit, int thread) { make(unit, at(unit, thread), thread); });
    }
  }
  // A thread's unit; make(unit, to, thread) is called if it has none yet.
  template <class Make>
  const A* get(int64_t unit, int thread, Make&& make) const {
    A* to = at(unit, thread);
    if (own && !made[thread * count + unit]) {
      make(unit, to, thread);
      made[thread * count + unit] = 1;
    }
    return to;
  }
  // Where a unit is, or will be.
  A* at(int64_t unit, int thread) const { return elements + ((own ? thread * count : 0) + unit) * size; }

 private:
  static constexpr int64_t kCopyBytes = 512 << 10, kCopiesBytes = 16 << 20;  // of one, of all

  int64_t count = 0, size = 0, copies = 1;
  bool own = true;
  A* elements = nullptr;
  char* made = nullptr;  // [thread][unit]
};

}  // namespace cnnext::cpu::CNNEXT_ISA
