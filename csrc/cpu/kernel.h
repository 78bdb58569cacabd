// What a CPU kernel sees beside its problem: threads. No torch.
#pragma once

#include "../problem.h"

namespace cnnext::cpu {

// The thread pool, handed in by the glue. Work is cut into tasks whose results do not depend on which thread
// runs them nor on how many there are: this is what makes every result bitwise reproducible.
struct Parallel {
  int threads = 1;  // thread numbers are in [0, threads)
  void (*launch)(int64_t tasks, void* context,
                 void (*body)(void*, int64_t begin, int64_t end, int thread)) = nullptr;

  // body(task, thread) for each task in [0, tasks)
  template <class Body>
  void operator()(int64_t tasks, Body&& body) const {
    launch(tasks, &body, [](void* context, int64_t begin, int64_t end, int thread) {
      for (int64_t task = begin; task < end; ++task) (*static_cast<Body*>(context))(task, thread);
    });
  }
};

// Operands of more bytes in all do not stay in the caches from one operator to the next.
constexpr int64_t kCachedBytes = 16 << 20;

using ConvKernel = Kernel<ConvProblem, ConvBuffers, Parallel>;
using PoolKernel = Kernel<PoolProblem, PoolBuffers, Parallel>;
using NormKernel = Kernel<NormProblem, NormBuffers, Parallel>;

}  // namespace cnnext::cpu
