// The kernels of one instruction set: an ordered list of candidates for each operator, the first that accepts
// wins.
#pragma once

#include "kernel.h"

namespace cnnext::cpu {

using Kernels = KernelTable<Parallel>;

namespace baseline {
const Kernels& kernels();
}
#if defined(__x86_64__)
namespace avx2 {  // with FMA and F16C
const Kernels& kernels();
}
namespace avx512 {  // F, BW, DQ, VL
const Kernels& kernels();
}
#endif

}  // namespace cnnext::cpu
