// Lists of kernels, in the files of the families.
#pragma once

#include "kernels.h"
#include "vec.h"

// Kernels by AMX, where there can be a processor that has it.
#if CNNEXT_VECTOR_BYTES == 64
#define CNNEXT_AMX(...) __VA_ARGS__,
#else
#define CNNEXT_AMX(...)
#endif

// Kernels by loads of some lanes of a vector.
#if CNNEXT_VECTOR_BYTES >= 32
#define CNNEXT_MASKED(...) __VA_ARGS__,
#else
#define CNNEXT_MASKED(...)
#endif

namespace cnnext::cpu::CNNEXT_ISA {

template <class Kernel, int kCount>
CNNEXT_INLINE constexpr KernelList<Kernel> list(const Kernel (&kernels)[kCount]) {
  return {kernels, kCount};
}

}  // namespace cnnext::cpu::CNNEXT_ISA
