#define CNNEXT_FAMILY "pool.inl"
#include "../baseline.inl"
