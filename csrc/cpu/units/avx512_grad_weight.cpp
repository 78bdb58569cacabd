#define CNNEXT_FAMILY "grad_weight.inl"
#include "../avx512.inl"
