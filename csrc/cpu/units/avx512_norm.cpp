#define CNNEXT_FAMILY "norm.inl"
#include "../avx512.inl"
