// The CPU's kernels for AMX, compiled for the emulated registers of amx.h.
#define CNNEXT_EMULATED_AMX
#define CNNEXT_FAMILY "amx_kernels.h"
#include "cpu/avx512.inl"
