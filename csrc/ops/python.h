// What the extension module shows to Python beside the operators.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

struct PyMethodDef;

namespace cnnext::ops {

// The operators by their short names, for eager calls; the list ends with an empty entry.
PyMethodDef* eager_functions();

std::map<std::string, int64_t> fallbacks();
void reset_fallbacks();
// Between the two, this thread's fallbacks are counted apart, and the functions above see those alone.
void begin_counting_apart();
void end_counting_apart();

// The pool of memory.h.
void empty_cache();
std::map<std::string, int64_t> memory_stats();
bool memory_pool_enabled();
void set_memory_pool(bool enabled);
bool torch_memory_pooled();
void set_torch_memory_pooled(bool pooled);

// The cache of weight_cache.h.
bool packed_weights_enabled();
void set_packed_weights(bool enabled);
int64_t packed_weight_bytes();
void drop_packed_weights();

// Names of the kernels of an operator, in the order they are tried.
std::vector<std::string> candidates(const std::string& op, bool cuda);

struct Candidate {
  std::string name, summary, refusal;  // refusal is empty where the kernel takes the problem
};

// Which kernel an operator would run, and why. Nothing is computed. arch is 10 * major + minor of a GPU, or 0
// for the CPU; every build knows the kernels of GPUs.
struct Choice {
  std::string kernel, capability;
  std::vector<Candidate> candidates;
  int64_t workspace_bytes;
};

// op: conv, conv_grad_input or conv_grad_weight; sizes of the forward convolution, parameters for each
// spatial axis.
Choice explain_conv(const std::string& op, const std::vector<int64_t>& input,
                    const std::vector<int64_t>& weight, const std::vector<int64_t>& stride,
                    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups,
                    c10::ScalarType type, bool channels_last, bool weight_channels_last, bool keeps_weight,
                    int arch);

// op: a pooling operator or its gradient; sizes of the forward pooling's input and output. Without
// "adaptive_" in front of its name the windows are those of kernel_size, stride, padding and dilation, with a
// number for each spatial axis.
Choice explain_pool(const std::string& op, const std::vector<int64_t>& input,
                    const std::vector<int64_t>& output, const std::vector<int64_t>& kernel_size,
                    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                    const std::vector<int64_t>& dilation, c10::ScalarType type, bool channels_last, int arch);

}  // namespace cnnext::ops
