// What all operators share.
#include "../common.cpp"
#include "../device.cpp"
#include "../epilogue.cpp"
#include "../explain.cpp"
#include "../memory.cpp"
#include "../no_cuda.cpp"
#include "../weight_cache.cpp"
