// Weights in the order in which a kernel reads them, made in units such as a panel of channels.
//
// Each thread makes small ones for itself, a unit when a task first asks for it: to read a cache line that
// another core has just written takes 15 to 65 cycles, to pack one takes 5. Large ones, of which several
// copies would not fit the caches, are made once, by all threads; so are those that outlast the call.
#pragma once

#include "conv_phases.h"
#include "kernel.h"

namespace cnnext::cpu::CNNEXT_ISA {

template <class A>
class PackedWeights {
 public:
  PackedWeights() = default;
  PackedWeights(const ConvProblem& p, int64_t units, int64_t unit_elements)
      : count(units),
        size(round_up(unit_elements, 64 / sizeof(A))),
        copies(p.threads),
        keeps(p.keeps_weight && units > 0) {
    const int64_t most = max_of(kCopiesBytes / p.threads, kCopyBytes);
    if (keeps || count * size * int64_t(sizeof(A)) > most) copies = 1, own = false;
  }

  // In the workspace, and in memory that outlasts the call.
  int64_t bytes() const { return keeps ? 0 : all_bytes(); }
  int64_t kept_bytes() const { return keeps ? all_bytes() : 0; }
  // Returns where the rest of the workspace is.
  char* place(const ConvBuffers& b, char* workspace) {
    char* memory = keeps ? static_cast<char*>(b.packed) : workspace;
    elements = reinterpret_cast<A*>(memory);
    made = memory + copies * count * size * int64_t(sizeof(A));
    is_packed = keeps && b.is_packed;
    return workspace + bytes();
  }

  // Before any task: make(unit, to, thread) for all units, if they are shared.
  template <class Make>
  void start(const Parallel& parallel, Make&& make) const {
    if (own) {
      __builtin_memset(made, 0, size_t(copies * count));
    } else if (!is_packed) {
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

  int64_t all_bytes() const {
    return round_up(copies * count * (size * int64_t(sizeof(A)) + own), kAlignment);
  }

  int64_t count = 0, size = 0, copies = 1;
  bool own = true, keeps = false, is_packed = false;
  A* elements = nullptr;
  char* made = nullptr;  // [thread][unit]
};

}  // namespace cnnext::cpu::CNNEXT_ISA
