// One family of kernels (CNNEXT_FAMILY) for what every processor of the architecture has.
#include "conv_reference.h"
#include "kernels.h"
#include "pool_reference.h"

#define CNNEXT_ISA baseline
#define CNNEXT_VECTOR_BYTES 16
#include CNNEXT_FAMILY
