// What a CUDA kernel sees beside its problem: a stream. No torch.
#pragma once

#include "../problem.h"

namespace cnnext::cuda {

struct Stream {
  void* handle = nullptr;  // a cudaStream_t
};

struct Grid {  // of blocks
  int64_t x, y = 1, z = 1;
};
enum class Direction { kForward, kGradInput };  // of a gather

constexpr int64_t kMostGridX = 0x7fffffff, kMostGridYZ = 65535;

// So many groups are computed by one grid that has a row for each of their tiles; what starts behind them has
// the alignment of the first.
constexpr int64_t groups_at_once(int64_t tiles_of_group) { return max_of(1, (1 << 15) / tiles_of_group); }

using ConvKernel = Kernel<ConvProblem, ConvBuffers, Stream>;
using PoolKernel = Kernel<PoolProblem, PoolBuffers, Stream>;
using Kernels = KernelTable<Stream>;

// The table of kernels. It is there in every build, so that explain() can tell what a GPU would run; without
// CUDA its kernels can not be run.
const Kernels& kernels();

}  // namespace cnnext::cuda
