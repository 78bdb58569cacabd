// Autocast of pooling, as torch has it: three-dimensional pooling and unpooling run in float32.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "pool.h"

namespace cnnext::ops {
namespace {

// In three dimensions torch pools in float32, except where max_pool3d is asked for indices.
template <auto Op, int64_t kDims>
struct InFloat32;
template <class Result, class... Args, Result (*Op)(const at::Tensor&, Args...), int64_t kDims>
struct InFloat32<Op, kDims> {
  static Result run(const at::Tensor& input, Args... args) {
    c10::impl::ExcludeDispatchKeyGuard once(c10::DispatchKey::AutocastCPU);
    return Op(
        input.dim() < kDims ? input : at::autocast::cached_cast(at::kFloat, input, c10::DeviceType::CPU),
        args...);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(cnnext, AutocastCPU, m) {
  m.impl("max_pool", InFloat32<&max_pool, 5>::run);
  m.impl("avg_pool", InFloat32<&avg_pool, 5>::run);
  m.impl("adaptive_max_pool", InFloat32<&adaptive_max_pool, 5>::run);
  m.impl("adaptive_max_pool_with_indices", InFloat32<&adaptive_max_pool_with_indices, 5>::run);
  m.impl("adaptive_avg_pool", InFloat32<&adaptive_avg_pool, 5>::run);
  m.impl("max_unpool", InFloat32<&max_unpool, 0>::run);
}

}  // namespace cnnext::ops
