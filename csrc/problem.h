// An operator's problem as its kernels see it, on every device, and the table that kernels are listed in. No
// torch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "geometry.h"

namespace cnnext {

enum class DType { kFloat32, kFloat64, kBFloat16, kFloat16 };
enum class Layout { kChannelsFirst, kChannelsLast };  // [N, C, axes] or [N, axes, C] in memory

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// Calls run with a null pointer of the element type, as a tag: `with_type(dtype, [&](auto* tag) { ... })`.
template <class Run>
void with_type(DType dtype, Run&& run) {
  switch (dtype) {
    case DType::kFloat32:
      return run(static_cast<float*>(nullptr));
    case DType::kFloat64:
      return run(static_cast<double*>(nullptr));
    case DType::kBFloat16:
      return run(static_cast<BFloat16*>(nullptr));
    case DType::kFloat16:
      return run(static_cast<Float16*>(nullptr));
  }
}

// The same of the types that compute in float32. Float64 is for checks more than for speed: what is made for
// some shapes only is not compiled for it.
template <class Run>
void with_float32_type(DType dtype, Run&& run) {
  with_type(dtype, [&](auto* tag) {
    if constexpr (sizeof(*tag) < sizeof(double)) run(tag);
  });
}
constexpr const char* kExcludesFloat64 = "float64 keeps to general kernels";

constexpr int64_t element_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

template <class Tag>
using Pointee = std::remove_pointer_t<Tag>;  // the type behind the tag

struct ConvProblem {
  ConvShape shape;
  DType dtype = DType::kFloat32;
  Layout layout = Layout::kChannelsFirst;         // of input, output and their gradients
  Layout weight_layout = Layout::kChannelsFirst;  // of the weight and its gradient
  int threads = 1;
  bool winograd = true;  // whether kernels may compute by Winograd's algorithm, whose rounding is another
  int arch = 0;          // of the GPU, 10 * major + minor; 0 on the CPU
  bool tf32 = false;     // on a GPU: whether float32 may be multiplied with a mantissa of 10 bits
  bool aligned = true;   // whether all tensors start at multiples of 16 bytes
  bool keeps_weight = false;  // whether the weight, as the kernel packs it, outlasts the call (CPU)

  constexpr bool operator==(const ConvProblem& p) const {
    return shape == p.shape && dtype == p.dtype && layout == p.layout && weight_layout == p.weight_layout &&
           threads == p.threads && winograd == p.winograd && arch == p.arch && tf32 == p.tf32 &&
           aligned == p.aligned && keeps_weight == p.keeps_weight;
  }
};

// What is done to each result of a forward operator before it is stored: activation(result + residual).
enum class Activation { kNone, kRelu, kRelu6, kLeakyRelu };
struct Epilogue {
  const void* residual = nullptr;  // laid out as the output, or null
  Activation activation = Activation::kNone;
  double negative_slope = 0;  // of kLeakyRelu

  constexpr bool any() const { return residual || activation != Activation::kNone; }
};

// forward: input, weight, bias, epilogue -> output. grad_input: output, weight, bias -> input.
// grad_weight: output, input -> weight. grad_bias: output -> bias. bias may be null where it is read.
struct ConvBuffers {
  void* input = nullptr;
  void* weight = nullptr;
  void* bias = nullptr;
  void* output = nullptr;
  Epilogue epilogue;
  void* packed = nullptr;  // if the problem keeps it, memory for the packed weight, and whether it is there
  bool is_packed = false;
};

// Strides of an activation, in elements. Pixels are numbered through all axes.
struct Strides {
  int64_t image, channel, pixel;
};

constexpr Strides strides_of(Layout layout, int64_t channels, int64_t pixels) {
  return layout == Layout::kChannelsFirst ? Strides{channels * pixels, pixels, 1}
                                          : Strides{channels * pixels, 1, channels};
}

// Strides of a weight [K, C / groups, kernel], in elements. Taps are numbered through all axes.
struct WeightStrides {
  int64_t k, c, tap;
};

constexpr WeightStrides weight_strides_of(Layout layout, int64_t C_per_group, int64_t taps) {
  return layout == Layout::kChannelsFirst ? WeightStrides{C_per_group * taps, taps, 1}
                                          : WeightStrides{C_per_group * taps, 1, C_per_group};
}

struct PoolProblem {
  PoolShape shape;
  DType dtype = DType::kFloat32;
  Layout layout = Layout::kChannelsFirst;
  int threads = 1;
  bool count_padding = true;     // an average divides by the padding's taps too
  int64_t divisor_override = 0;  // an average divides by this, if it is not zero
  int arch = 0;                  // as in ConvProblem

  // What window o of an axis has part in the divisor of an average, the product over all axes.
  constexpr int64_t divisor(int a, int64_t o) const {
    if (divisor_override) return a == 0 ? divisor_override : 1;
    return shape.counted_taps(a, o, count_padding);
  }

  // A max window's argument is kept as the number of the tap, one byte where that is enough.
  constexpr bool wide_offsets() const { return shape.taps() > 256; }
};

// As with_type, with a tag of the type that offsets are stored as.
template <class Run>
void with_offset_type(const PoolProblem& p, Run&& run) {
  if (p.wide_offsets()) {
    run(static_cast<int32_t*>(nullptr));
  } else {
    run(static_cast<uint8_t*>(nullptr));
  }
}

// forward: input -> output (offsets). grad_input: output (offsets) -> input. select: input, offsets ->
// output. indices: offsets -> indices. unpool: output, indices -> input; its gradient: input, indices ->
// output.
struct PoolBuffers {
  void* input = nullptr;
  void* output = nullptr;
  void* offsets = nullptr;  // uint8_t or int32_t, as output
  int64_t* indices = nullptr;
  int64_t* invalid_index = nullptr;  // set to an index that lies outside of the plane, if there is one
};

// Batch normalisation of [N, C, pixels].
struct NormProblem {
  int64_t N = 0, C = 0, pixels = 0;
  double eps = 0;
  DType dtype = DType::kFloat32;
  Layout layout = Layout::kChannelsFirst;
  int threads = 1;
  bool batch_statistics = true;  // normalised by its own moments; else by given ones
  int arch = 0;                  // as in ConvProblem
};

// forward: input, weight, bias (mean, variance), epilogue -> output, mean, variance. Gradient: grad_output,
// input, weight, bias, mean, variance and, where there was a residual, output -> the others; those that are
// null are not wanted. Numbers of a channel are float, for float64 double; weight and bias may be null.
struct NormBuffers {
  void* input = nullptr;
  void* output = nullptr;
  void* grad_output = nullptr;
  void* grad_input = nullptr;
  void* grad_residual = nullptr;
  void* weight = nullptr;
  void* bias = nullptr;
  void* mean = nullptr;
  void* variance = nullptr;  // the sum of squares divided by the number of elements
  void* grad_weight = nullptr;
  void* grad_bias = nullptr;
  Epilogue epilogue;
};

// One candidate in the ordered list of an operator; the first that accepts the problem is taken. Context is
// what a device runs kernels in: a pool of threads or a stream.
template <class Problem, class Buffers, class Context>
struct Kernel {
  const char* name;
  const char* summary;                     // why one would choose it, a phrase for explain()
  const char* (*refuses)(const Problem&);  // null where it accepts the problem, else the reason
  int64_t (*workspace)(const Problem&);    // bytes of scratch memory, aligned to kAlignment by the caller
  void (*run)(const Problem&, const Buffers&, const Context&, char* workspace);
  int64_t (*packed)(const Problem&) = nullptr;  // bytes of a packed weight that is kept, if there can be one
};

constexpr int64_t kAlignment = 64;  // bytes: a cache line

template <class Kernel>
struct KernelList {
  const Kernel* first = nullptr;
  int64_t count = 0;
  const Kernel* begin() const { return first; }
  const Kernel* end() const { return first + count; }
};

// Of kernels that take every problem, and of those that need no scratch memory.
template <class Problem>
const char* accepts_all(const Problem&) {
  return nullptr;
}
template <class Problem>
int64_t no_workspace(const Problem&) {
  return 0;
}

// The kernels of one device or instruction set. A new operator is a member and a line of for_each_list.
template <class Context>
struct KernelTable {
  using Conv = KernelList<Kernel<ConvProblem, ConvBuffers, Context>>;
  using Pool = KernelList<Kernel<PoolProblem, PoolBuffers, Context>>;
  using Norm = KernelList<Kernel<NormProblem, NormBuffers, Context>>;
  const char* capability = nullptr;
  Conv conv, conv_grad_input, conv_grad_weight, conv_grad_bias;
  Pool max_pool, max_pool_with_offsets, max_pool_indices, max_pool_grad_input, max_pool_select;
  Pool avg_pool, avg_pool_grad_input, max_unpool, max_unpool_grad_input;
  Norm batch_norm, batch_norm_grad;

  // Calls visit(name, the member that is its list) for each operator.
  template <class Visit>
  static void for_each_list(Visit&& visit) {
    visit("conv", &KernelTable::conv);
    visit("conv_grad_input", &KernelTable::conv_grad_input);
    visit("conv_grad_weight", &KernelTable::conv_grad_weight);
    visit("conv_grad_bias", &KernelTable::conv_grad_bias);
    visit("max_pool", &KernelTable::max_pool);
    visit("max_pool_with_offsets", &KernelTable::max_pool_with_offsets);
    visit("max_pool_indices", &KernelTable::max_pool_indices);
    visit("max_pool_grad_input", &KernelTable::max_pool_grad_input);
    visit("max_pool_select", &KernelTable::max_pool_select);
    visit("avg_pool", &KernelTable::avg_pool);
    visit("avg_pool_grad_input", &KernelTable::avg_pool_grad_input);
    visit("max_unpool", &KernelTable::max_unpool);
    visit("max_unpool_grad_input", &KernelTable::max_unpool_grad_input);
    visit("batch_norm", &KernelTable::batch_norm);
    visit("batch_norm_grad", &KernelTable::batch_norm_grad);
  }
};

}  // namespace cnnext
