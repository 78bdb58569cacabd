#define CNNEXT_FAMILY "grad_weight.inl"
#include "../avx2.inl"
