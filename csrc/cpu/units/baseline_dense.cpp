#define CNNEXT_FAMILY "dense.inl"
#include "../baseline.inl"
