#define CNNEXT_FAMILY "dense.inl"
#include "../avx2.inl"
