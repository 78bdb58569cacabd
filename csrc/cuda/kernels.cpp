// The ordered lists of candidates, the first that accepts wins. Plain C++: builds without CUDA have the table
// too, to tell what a GPU would run. To add a kernel: write its body in a .cuh of its own, its launcher in a
// .cu of the same name, declare that in kernels.h, and put it in a list here.
#include "kernels.h"
#include "plan.h"

#if defined(CNNEXT_WITH_CUDA)
#define CNNEXT_RUN(launcher) launcher
#else
#define CNNEXT_RUN(launcher) nullptr
#endif

namespace cnnext::cuda {
namespace {

// Positions along an axis are numbered in 32 bits, those in the padding and one step further too.
constexpr int64_t kMostAxis = int64_t{1} << 30;
template <class Shape>
const char* axes_refuse(const Shape& s) {
  for (const Window& w : s.axis) {
    if (max_of(w.input + 2 * w.padding, w.output) > kMostAxis) return "an axis of more than 2^30 pixels";
  }
  return nullptr;
}

const char* direct_refuses(const ConvProblem& p) {
  const ConvShape& s = p.shape;
  if (const char* reason = axes_refuse(s)) return reason;
  if (max_of(s.input_pixels(), s.output_pixels()) > kMostPixels) return "an image of more than 2^31 pixels";
  if (s.taps() > kMostPixels) return "a window of more than 2^31 taps";
  const int64_t tiles = ceil_div(max_of(s.C_per_group(), s.K_per_group()), 16);
  return tiles > kMostGridYZ ? "more than 2^20 channels in a group" : nullptr;
}
int64_t direct_workspace(const ConvProblem& p) {
  return direct_parts(p) * p.shape.weights() * accumulator_bytes(p);
}

const char* depthwise_refuses(const ConvProblem& p) {
  const ConvShape& s = p.shape;
  if (s.groups != s.C || s.K != s.C) return "a group has other than one input and one output";
  if (s.axis[2].kernel > 128) return "a kernel of more than 128 columns";
  return direct_refuses(p);
}
const char* grad_weight_depthwise_refuses(const ConvProblem& p) {
  const char* reason = depthwise_refuses(p);
  return !reason && depthwise_tap_tiles(p, 3) > kMostGridYZ ? "a large kernel" : reason;
}
int64_t grad_weight_depthwise_workspace(const ConvProblem& p) {
  return depthwise_parts(p) * p.shape.weights() * accumulator_bytes(p);
}

// Matrix products on tensor cores: of 16-bit types and of float32 as TF32, both also by Hopper's own
// instructions, of float32 by three TF32 products.
enum class Product { kHalf, kHalfSm90, kTf32, kTf32Sm90, kAccurate };

template <Product kProduct>
const char* gemm_refuses(const ConvProblem& p) {
  const ConvShape& s = p.shape;
  constexpr bool is_half = kProduct == Product::kHalf || kProduct == Product::kHalfSm90;
  constexpr bool is_tf32 = kProduct == Product::kTf32 || kProduct == Product::kTf32Sm90;
  constexpr bool is_sm90 = kProduct == Product::kHalfSm90 || kProduct == Product::kTf32Sm90;
  if (is_sm90 && p.arch != 90) return "for compute capability 9.0, by code for 9.0a";
  if (p.arch < 80) return "needs compute capability 8.0";
  if (is_half && p.dtype != DType::kFloat16 && p.dtype != DType::kBFloat16) {
    return "for float16 and bfloat16";
  }
  if (!is_half && p.dtype != DType::kFloat32) return "for float32";
  if (is_tf32 && !p.tf32) return "TF32 is not allowed (torch.backends.cudnn.allow_tf32)";
  if (kProduct == Product::kTf32Sm90 && s.groups > 1) return "for one group";
  if (s.groups > 1 && min_of(s.C_per_group(), s.K_per_group()) < 4) return "fewer than 4 channels in a group";
  if (const char* reason = axes_refuse(s)) return reason;
  if (ceil_div(max_of(s.C_per_group(), s.K_per_group()), 32) * s.groups > kMostGridYZ)
    return "more than 65535 groups";
  if (max_of(s.C * s.input_pixels(), s.K * s.output_pixels()) > kMostPixels) {
    return "an image of more than 2^31 elements";
  }
  if (s.taps() * padded_channels(p, max_of(s.C_per_group(), s.K_per_group())) > kMostPixels)
    return "a window of more than 2^31 elements";
  return nullptr;
}
// packed: bytes of operands that are packed.
template <Product kProduct, int64_t (*packed)(const ConvProblem&)>
const char* gemm_refuses_unpacked(const ConvProblem& p) {
  if (packed(p) > 0) return "operands are not channels last in whole chunks of 16 bytes";
  return gemm_refuses<kProduct>(p);
}
int64_t packed_forward(const ConvProblem& p) { return packed_input_bytes(p) + packed_weight_bytes(p); }
int64_t packed_grad_input(const ConvProblem& p) { return packed_output_bytes(p) + packed_weight_bytes(p); }
int64_t packed_grad_weight(const ConvProblem& p) { return packed_input_bytes(p) + packed_output_bytes(p); }
int64_t rounded_forward(const ConvProblem& p) {
  return packed_input_bytes(p) + rounded_weight_bytes(p, Direction::kForward);
}
int64_t rounded_grad_input(const ConvProblem& p) {
  return packed_output_bytes(p) + rounded_weight_bytes(p, Direction::kGradInput);
}
template <bool kAccurate>
int64_t gemm_grad_weight_workspace(const ConvProblem& p) {
  return packed_grad_weight(p) + gemm_grad_weight_parts(p, kAccurate) * p.shape.weights() * 4;
}

int64_t grad_bias_workspace(const ConvProblem& p) {
  return grad_bias_parts(p) * p.shape.K * accumulator_bytes(p);
}

const char* grad_bias_refuses(const ConvProblem& p) {
  if (p.layout == Layout::kChannelsFirst &&
      p.shape.output_pixels() * element_bytes(p.dtype) / 16 > kMostPixels) {
    return "a plane of more than 2^31 vectors";
  }
  return p.shape.K > kMostGridX ? "more than 2^31 channels" : nullptr;
}

const char* pool_refuses(const PoolProblem& p) {
  if (const char* reason = axes_refuse(p.shape)) return reason;
  if (p.shape.C > kMostGridX) return "more than 2^31 channels";
  return p.shape.taps() > kMostPixels ? "a window of more than 2^31 taps" : nullptr;
}
const char* unpool_refuses(const PoolProblem& p) {
  const int64_t pixels = max_of(p.shape.input_pixels(), p.shape.output_pixels());
  if (pixels > kMostPixels) return "a plane of more than 2^31 pixels";
  return p.shape.C > kMostGridX ? "more than 2^31 channels" : nullptr;
}
int64_t unpool_workspace(const PoolProblem& p) {  // an owner for each element of the blocks' planes
  return unpool_blocks(p) * p.shape.input_pixels() * 4;
}

constexpr const char* kDirect = "multiply-adds, any shape and type";
constexpr const char* kDepthwise = "one channel in a group: a strip of pixels for each thread";
constexpr const char* kGather = "each element gathered by one thread";

// A matrix product, by operands as they are and by packed ones.
#define CNNEXT_GEMM(name, what, product, packed, workspace, launcher)                                   \
  {name, what, gemm_refuses_unpacked<Product::product, packed>, workspace, CNNEXT_RUN(launcher)}, {     \
    name "_packed", what ", once packed into channels last", gemm_refuses<Product::product>, workspace, \
        CNNEXT_RUN(launcher)                                                                            \
  }
#define CNNEXT_GEMM_TF32_SM90(run, packed, workspace)                                        \
  CNNEXT_GEMM("gemm_tf32_sm90", "Hopper's tensor cores, TF32", kTf32Sm90, packed, workspace, \
              run##_gemm_tf32_sm90)
#define CNNEXT_GEMMS(run, packed, workspace, accurate_workspace)                                           \
  CNNEXT_GEMM("gemm_sm90", "Hopper's tensor cores", kHalfSm90, packed, workspace, run##_gemm_sm90),        \
      CNNEXT_GEMM("gemm_sm80", "tensor cores", kHalf, packed, workspace, run##_gemm_sm80),                 \
      CNNEXT_GEMM("gemm_tf32_sm80", "tensor cores, TF32", kTf32, packed, workspace, run##_gemm_tf32_sm80), \
      CNNEXT_GEMM("gemm_3xtf32_sm80", "tensor cores, three TF32 products of each pair", kAccurate, packed, \
                  accurate_workspace, run##_gemm_3xtf32_sm80)

const ConvKernel kConv[] = {
    {"depthwise", kDepthwise, depthwise_refuses, no_workspace, CNNEXT_RUN(run_conv_depthwise)},
    CNNEXT_GEMM_TF32_SM90(run_conv, packed_input_bytes, rounded_forward),
    CNNEXT_GEMMS(run_conv, packed_forward, packed_forward, packed_forward),
    {"direct", kDirect, direct_refuses, no_workspace, CNNEXT_RUN(run_conv_direct)},
};
const ConvKernel kConvGradInput[] = {
    {"depthwise", kDepthwise, depthwise_refuses, no_workspace, CNNEXT_RUN(run_conv_grad_input_depthwise)},
    CNNEXT_GEMM_TF32_SM90(run_conv_grad_input, packed_output_bytes, rounded_grad_input),
    CNNEXT_GEMMS(run_conv_grad_input, packed_grad_input, packed_grad_input, packed_grad_input),
    {"direct", kDirect, direct_refuses, no_workspace, CNNEXT_RUN(run_conv_grad_input_direct)},
};
const ConvKernel kConvGradWeight[] = {
    {"depthwise", "one channel in a group: one pass, parts added in order", grad_weight_depthwise_refuses,
     grad_weight_depthwise_workspace, CNNEXT_RUN(run_conv_grad_weight_depthwise)},
    CNNEXT_GEMM_TF32_SM90(run_conv_grad_weight, packed_grad_weight, gemm_grad_weight_workspace<false>),
    CNNEXT_GEMMS(run_conv_grad_weight, packed_grad_weight, gemm_grad_weight_workspace<false>,
                 gemm_grad_weight_workspace<true>),
    {"direct", kDirect, direct_refuses, direct_workspace, CNNEXT_RUN(run_conv_grad_weight_direct)},
};
const ConvKernel kConvGradBias[] = {
    {"sum", "parts added in order", grad_bias_refuses, grad_bias_workspace, CNNEXT_RUN(run_conv_grad_bias)},
};
constexpr PoolKernel gather(decltype(PoolKernel::run) run) {
  return {"gather", kGather, pool_refuses, no_workspace, run};
}
const PoolKernel kMaxPool[] = {gather(CNNEXT_RUN(run_max_pool))};
const PoolKernel kMaxPoolWithOffsets[] = {gather(CNNEXT_RUN(run_max_pool_with_offsets))};
const PoolKernel kMaxPoolIndices[] = {gather(CNNEXT_RUN(run_max_pool_indices))};
const PoolKernel kMaxPoolGradInput[] = {gather(CNNEXT_RUN(run_max_pool_grad_input))};
const PoolKernel kMaxPoolSelect[] = {gather(CNNEXT_RUN(run_max_pool_select))};
const PoolKernel kAvgPool[] = {gather(CNNEXT_RUN(run_avg_pool))};
const PoolKernel kAvgPoolGradInput[] = {gather(CNNEXT_RUN(run_avg_pool_grad_input))};
const PoolKernel kMaxUnpoolGradInput[] = {
    {"gather", kGather, unpool_refuses, no_workspace, CNNEXT_RUN(run_max_unpool_grad_input)},
};
const PoolKernel kMaxUnpool[] = {
    {"planes", "a block for each plane", unpool_refuses, unpool_workspace, CNNEXT_RUN(run_max_unpool)},
};

template <class Kernel, int kCount>
constexpr KernelList<Kernel> list(const Kernel (&kernels)[kCount]) {
  return {kernels, kCount};
}

}  // namespace

const Kernels& kernels() {
  static const Kernels table = [] {
    Kernels all = {};
    all.capability = "cuda";
    all.conv = list(kConv);
    all.conv_grad_input = list(kConvGradInput);
    all.conv_grad_weight = list(kConvGradWeight);
    all.conv_grad_bias = list(kConvGradBias);
    all.max_pool = list(kMaxPool);
    all.max_pool_with_offsets = list(kMaxPoolWithOffsets);
    all.max_pool_indices = list(kMaxPoolIndices);
    all.max_pool_grad_input = list(kMaxPoolGradInput);
    all.max_pool_select = list(kMaxPoolSelect);
    all.avg_pool = list(kAvgPool);
    all.avg_pool_grad_input = list(kAvgPoolGradInput);
    all.max_unpool = list(kMaxUnpool);
    all.max_unpool_grad_input = list(kMaxUnpoolGradInput);
    return all;
  }();
  return table;
}

}  // namespace cnnext::cuda
