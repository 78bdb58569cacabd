#define CNNEXT_FAMILY "grouped.inl"
#include "../avx2.inl"
