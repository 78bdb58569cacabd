// The operators of convolution.
#include "../conv.cpp"
#include "../conv_aten.cpp"
#include "../conv_autocast.cpp"
#include "../conv_autograd.cpp"
#include "../conv_calls.cpp"
#include "../conv_fused.cpp"
#include "../conv_transpose.cpp"
#include "../linear.cpp"
