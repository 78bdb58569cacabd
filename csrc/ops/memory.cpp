#include "memory.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <unordered_map>

namespace cnnext::ops {
namespace {

constexpr size_t kSmall = size_t{1} << 15;     // bytes; less is left to torch's allocator
constexpr size_t kHugePage = size_t{1} << 21;  // bytes
constexpr size_t kUnit = size_t{1} << 13;  // bytes; huge pages would waste a tenth of a network's activations
constexpr int64_t kSpare = int64_t{1} << 23;  // bytes that may wait beyond the peak

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// Outputs' blocks wait by size for a request that fills at least three quarters of one, scratch memory for the
// next kernel. What the pool holds in all, in use or waiting, exceeds the most that was in use at once by
// kSpare at most: keeping blocks hardly raises the peak, and small networks never wait for the system.
class Pool final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* block = bytes > 0 ? take(round_up(bytes, kUnit)) : nullptr;
    return data(block, bytes, &give_back);
  }
  // In whole huge pages: scratch memory is to stay in the second-level cache, where small pages at random
  // addresses displace each other.
  c10::DataPtr allocate_scratch(size_t bytes) {
    return data(take_scratch(round_up(bytes, kHugePage)), bytes, &give_back_scratch);
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

  static Pool& instance() {
    static Pool* pool = new Pool;  // outlives every tensor
    return *pool;
  }

  bool enabled() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return enabled_;
  }
  void set_enabled(bool enabled) {
    const std::lock_guard<std::mutex> lock(mutex_);
    enabled_ = enabled;
    if (!enabled) release(waiting_);
  }
  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    release(waiting_);
    peak_ = in_use_;
  }
  std::map<std::string, int64_t> stats() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {{"in_use_bytes", in_use_},
            {"cached_bytes", waiting_},
            {"peak_in_use_bytes", peak_},
            {"reused", reused_},
            {"allocated", allocated_}};
  }

 private:
  using Waiting = std::multimap<size_t, void*>;

  static c10::DataPtr data(void* block, size_t bytes, c10::DeleterFnPtr deleter) {
    if (block) c10::profiledCPUMemoryReporter().New(block, bytes);
    return {block, block, deleter, c10::Device(c10::DeviceType::CPU)};
  }
  static void give_back(void* block) { instance().put(block, instance().outputs_); }
  static void give_back_scratch(void* block) { instance().put(block, instance().scratch_); }

  void* take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = outputs_.lower_bound(bytes);
    if (found != outputs_.end() && bytes >= found->first / 4 * 3) return reuse(outputs_, found);
    return make(bytes);
  }
  // One block grows to what the largest kernel needs, with several calls at a time one for each.
  void* take_scratch(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = scratch_.lower_bound(bytes);
    if (found != scratch_.end()) return reuse(scratch_, found);
    if (!scratch_.empty()) drop(scratch_, std::prev(scratch_.end()));
    return make(bytes);
  }

  void* reuse(Waiting& waiting, Waiting::iterator found) {
    void* block = found->second;
    waiting_ -= found->first;
    use(found->first);
    waiting.erase(found);
    ++reused_;
    return block;
  }

  void* make(size_t bytes) {
    const int64_t held = in_use_ + waiting_ + int64_t(bytes),
                  most = std::max(peak_, in_use_ + int64_t(bytes)) + kSpare;
    release(std::max<int64_t>(held - most, 0));
    void* block = nullptr;
    if (posix_memalign(&block, bytes < kHugePage ? 64 : kHugePage, bytes) != 0) {
      release(waiting_);
      TORCH_CHECK(posix_memalign(&block, 64, bytes) == 0, "cnnext: not enough memory: you tried to allocate ",
                  bytes, " bytes");
    }
#if defined(MADV_HUGEPAGE)
    if (bytes >= kHugePage) madvise(block, bytes, MADV_HUGEPAGE);  // a wish: its failure is none
#endif
    sizes_[block] = bytes;
    use(bytes);
    ++allocated_;
    return block;
  }

  void put(void* block, Waiting& waiting) {
    if (!block) return;
    c10::profiledCPUMemoryReporter().Delete(block);
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t bytes = sizes_.at(block);
    in_use_ -= bytes;
    waiting_ += bytes;
    waiting.emplace(bytes, block);
    if (!enabled_) release(waiting_);
  }

  void use(size_t bytes) {
    in_use_ += bytes;
    peak_ = std::max(peak_, in_use_);
  }

  // Frees waiting blocks, outputs first and the largest of them, until this many bytes are free.
  void release(int64_t bytes) {
    for (Waiting* waiting : {&outputs_, &scratch_}) {
      while (bytes > 0 && !waiting->empty()) {
        const auto last = std::prev(waiting->end());
        bytes -= last->first;
        drop(*waiting, last);
      }
    }
  }
  void drop(Waiting& waiting, Waiting::iterator block) {
    waiting_ -= block->first;
    sizes_.erase(block->second);
    std::free(block->second);
    waiting.erase(block);
  }

  std::mutex mutex_;
  bool enabled_ = [] {
    const char* setting = std::getenv("CNNEXT_MEMORY_POOL");
    return !setting || std::string(setting) != "0";
  }();
  Waiting outputs_, scratch_;
  std::unordered_map<void*, size_t> sizes_;
  int64_t in_use_ = 0, waiting_ = 0, peak_ = 0, reused_ = 0, allocated_ = 0;
};

}  // namespace

at::Tensor empty(at::IntArrayRef size, const at::TensorOptions& options, at::MemoryFormat format) {
  const size_t bytes = c10::multiply_integers(size) * options.dtype().itemsize();
  if (bytes < kSmall || !options.device().is_cpu() || !Pool::instance().enabled())
    return at::empty(size, options, format);
  return at::detail::empty_generic(size, &Pool::instance(), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                   c10::typeMetaToScalarType(options.dtype()), format);
}

c10::DataPtr workspace(int64_t bytes) {
  if (bytes == 0) return {};
  const bool pooled = size_t(bytes) >= kSmall && Pool::instance().enabled();
  return pooled ? Pool::instance().allocate_scratch(bytes) : c10::GetCPUAllocator()->allocate(bytes);
}

void empty_cache() { Pool::instance().clear(); }
std::map<std::string, int64_t> memory_stats() { return Pool::instance().stats(); }
bool memory_pool_enabled() { return Pool::instance().enabled(); }
void set_memory_pool(bool enabled) { Pool::instance().set_enabled(enabled); }

}  // namespace cnnext::ops
