// The kernels of an instruction set: an ordered list of candidates for each operator, the first that accepts
// wins. Every body is compiled once for each set (avx512.inl), in five families that compile side by side
// (units/). To add a kernel: write its body in a header of its own and put it in the list of its family.
#pragma once

#include "kernel.h"

namespace cnnext::cpu {

using Kernels = KernelTable<Parallel>;

// All of them, and the families.
namespace baseline {
const Kernels &kernels(), &grouped(), &dense(), &grad_weight(), &pool(), &norm();
}
#if defined(__x86_64__)
namespace avx2 {  // with FMA and F16C
const Kernels &kernels(), &grouped(), &dense(), &grad_weight(), &pool(), &norm();
}
namespace avx512 {  // F, BW, DQ, VL
const Kernels &kernels(), &grouped(), &dense(), &grad_weight(), &pool(), &norm();
}
#endif

}  // namespace cnnext::cpu
