#define CNNEXT_FAMILY "pool.inl"
#include "../avx2.inl"
