#define CNNEXT_FAMILY "grouped.inl"
#include "../baseline.inl"
