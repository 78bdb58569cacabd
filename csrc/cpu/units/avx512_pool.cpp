#define CNNEXT_FAMILY "pool.inl"
#include "../avx512.inl"
