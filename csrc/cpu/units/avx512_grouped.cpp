#define CNNEXT_FAMILY "grouped.inl"
#include "../avx512.inl"
