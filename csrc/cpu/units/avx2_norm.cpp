#define CNNEXT_FAMILY "norm.inl"
#include "../avx2.inl"
