#define CNNEXT_FAMILY "dense.inl"
#include "../avx512.inl"
