// One family of kernels (CNNEXT_FAMILY) for what every processor of the architecture has.
#include "conv_reference.h"
#include "kernels.h"
#include "pool_reference.h"

// Of x86-64 hardly any processor is left that takes these: they need not be the fastest, but compile fast.
#if defined(__x86_64__) && !defined(__clang__)
#pragma GCC optimize("O2")
#endif
#define CNNEXT_ISA baseline
#define CNNEXT_VECTOR_BYTES 16
#include CNNEXT_FAMILY
