// The operators of batch normalisation.
#include "../batch_norm.cpp"
#include "../batch_norm_autograd.cpp"
