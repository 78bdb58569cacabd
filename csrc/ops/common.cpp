#include "common.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "fork.h"
#include "python.h"

namespace cnnext::ops {

const cpu::Kernels& cpu_kernels() {
  static const cpu::Kernels& chosen = []() -> const cpu::Kernels& {
#if defined(__x86_64__)
    const std::string capability = at::get_cpu_capability();
    if (capability.rfind("AVX512", 0) == 0) return cpu::avx512::kernels();
    if (capability == "AVX2") return cpu::avx2::kernels();
#endif
    return cpu::baseline::kernels();
  }();
  return chosen;
}

namespace {

struct alignas(64) Cursor {  // a cache line each, so that threads do not wait for each other's
  std::atomic<int64_t> next{0};
};

// Each thread takes the tasks of its own share, neighbours one after the other, and then helps with the other
// shares: tasks differ in size, and other programs slow single threads down.
void run_in_shares(int64_t tasks, void* context, void (*body)(void*, int64_t, int64_t, int)) {
  const bool nested = at::in_parallel_region();
  const int64_t shares = nested ? 1 : std::min<int64_t>(at::get_num_threads(), tasks);
  if (shares < 1) return;
  const int64_t size = at::divup(tasks, shares), step = std::max<int64_t>(1, size / 16);
  const std::unique_ptr<Cursor[]> cursors(new Cursor[shares]);
  at::parallel_for(0, shares, 1, [&](int64_t first, int64_t last) {
    // Inside another parallel region all tasks run here, whatever number this thread has there.
    const int thread = nested ? 0 : at::get_thread_num();
    for (int64_t own = first; own < last; ++own) {
      for (int64_t n = 0; n < shares; ++n) {
        const int64_t share = (own + n) % shares, end = std::min((share + 1) * size, tasks) - share * size;
        for (int64_t at; (at = cursors[share].next.fetch_add(step, std::memory_order_relaxed)) < end;)
          body(context, share * size + at, share * size + std::min(at + step, end), thread);
      }
    }
  });
}

void run_alone(int64_t tasks, void* context, void (*body)(void*, int64_t, int64_t, int)) {
  body(context, 0, tasks, 0);
}

}  // namespace

cpu::Parallel cpu_parallel(int threads) { return {threads, threads == 1 ? run_alone : run_in_shares}; }

std::optional<DType> element_type(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kDouble:
      return DType::kFloat64;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kFloat16;
    default:
      return std::nullopt;
  }
}

Layout layout_of(const at::Tensor& tensor) {
  const auto format = tensor.suggest_memory_format();
  return last_if(format == at::MemoryFormat::ChannelsLast || format == at::MemoryFormat::ChannelsLast3d);
}

at::MemoryFormat memory_format(Layout layout, int64_t dim) {
  if (layout == Layout::kChannelsFirst || dim < 4) return at::MemoryFormat::Contiguous;
  return dim == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::ChannelsLast3d;
}

namespace {

// Of the two maps below.
std::mutex& mutex() {
  static std::mutex& lock = *[] {
    hold_in_forks<&mutex>();
    return new std::mutex;
  }();
  return lock;
}
// What is forced is asked for on every call: an atomic flag keeps the lock off the usual path, where nothing
// is.
std::atomic<bool> any_forced{false};
std::map<std::string, std::string> forced[2];  // on the CPU and on GPUs
std::map<std::string, int64_t> fallback_counts;
// What this thread counts apart, for each block that it is in.
thread_local std::vector<std::map<std::string, int64_t>> counted_apart;

}  // namespace

void force_kernel(const std::string& op, const std::string& name, bool cuda) {
  const std::lock_guard<std::mutex> lock(mutex());
  if (name.empty()) {
    forced[cuda].erase(op);
  } else {
    forced[cuda][op] = name;
  }
  any_forced = !forced[0].empty() || !forced[1].empty();
}

std::optional<std::string> forced_kernel(const char* op, bool cuda) {
  if (!any_forced) return std::nullopt;
  const std::lock_guard<std::mutex> lock(mutex());
  const auto entry = forced[cuda].find(op);
  if (entry == forced[cuda].end()) return std::nullopt;
  return entry->second;
}

namespace {
std::atomic<bool> winograd{true};
}
bool winograd_enabled() { return winograd; }
void set_winograd(bool enabled) { winograd = enabled; }

const char* left_to_aten(std::initializer_list<const at::Tensor*> tensors) {
  using c10::impl::tls_is_dispatch_key_included;
  if (tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode) ||
      tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerBackMode)) {
    return "torch.func transform";
  }
  const at::Tensor& first = **tensors.begin();
  for (const at::Tensor* tensor : tensors) {
    if (!tensor->defined()) continue;
    if (tensor->_fw_grad(0).defined()) return "forward-mode differentiation";
    if (tensor->layout() != at::kStrided || tensor->is_quantized())
      return "sparse, quantised or opaque layout";
    if (tensor->scalar_type() != first.scalar_type()) return "mixed element types";
    if (tensor->device() != first.device()) return "several devices";  // torch raises its own error
    if (!element_type(tensor->scalar_type())) return "element type";
  }
  return nullptr;
}

void record_fallback(const char* op, const char* reason) {
  const std::string key = std::string(op) + ": " + reason;
  if (!counted_apart.empty()) {
    ++counted_apart.back()[key];
    return;
  }
  const std::lock_guard<std::mutex> lock(mutex());
  ++fallback_counts[key];
}

std::map<std::string, int64_t> fallbacks() {
  if (!counted_apart.empty()) return counted_apart.back();
  const std::lock_guard<std::mutex> lock(mutex());
  return fallback_counts;
}

void reset_fallbacks() {
  if (!counted_apart.empty()) {
    counted_apart.back().clear();
    return;
  }
  const std::lock_guard<std::mutex> lock(mutex());
  fallback_counts.clear();
}

void begin_counting_apart() { counted_apart.emplace_back(); }
void end_counting_apart() {
  if (!counted_apart.empty()) counted_apart.pop_back();
}

}  // namespace cnnext::ops
