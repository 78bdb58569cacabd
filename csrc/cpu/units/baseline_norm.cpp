#define CNNEXT_FAMILY "norm.inl"
#include "../baseline.inl"
