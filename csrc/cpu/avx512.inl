// One family of kernels (CNNEXT_FAMILY) for AVX-512 F, BW, DQ and VL.
#if defined(__x86_64__)
#include "conv_reference.h"
#include "kernels.h"
#include "pool_reference.h"

// After every other header, so that no inline function of theirs is compiled for this instruction set.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#define CNNEXT_ISA avx512
#define CNNEXT_VECTOR_BYTES 64
#include CNNEXT_FAMILY
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // x86-64
