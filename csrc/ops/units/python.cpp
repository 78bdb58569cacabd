// The library's functions for Python.
#include "../eager.cpp"
#include "../python.cpp"
