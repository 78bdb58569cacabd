#include "conv_reference.h"
#include "kernels.h"
#include "pool_reference.h"

#define CNNEXT_ISA baseline
#define CNNEXT_CAPABILITY "baseline"
#define CNNEXT_VECTOR_BYTES 16
#include "kernels.inl"
