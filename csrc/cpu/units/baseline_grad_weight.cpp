#define CNNEXT_FAMILY "grad_weight.inl"
#include "../baseline.inl"
