#include "memory.h"

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "fork.h"
#include "heap.h"
#include "python.h"

namespace cnnext::ops {
namespace {

constexpr size_t kSmall = size_t{1} << 15;  // bytes; less is left to torch's allocator
constexpr size_t kLine = 64;                // bytes

// What may be held in all, in use or waiting, for the most that was in use at once. With less to spare,
// segments would be given back and asked for again with every step.
int64_t most_held(int64_t peak) { return peak + peak / 8 + (int64_t{8} << 20); }

class MemoryPool final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes < kSmall) {
      void* small = bytes > 0 ? torch_->raw_allocate(bytes) : nullptr;
      return {small, small, &give_back, c10::Device(c10::DeviceType::CPU)};
    }
    // A line more: blocks at the same place of their pages would hinder each other.
    void* block = take(outputs_, round_up(bytes, kLine) + kLine);
    c10::profiledCPUMemoryReporter().New(block, bytes);
    return {block, block, &give_back, c10::Device(c10::DeviceType::CPU)};
  }
  // Scratch memory has a heap of its own, in which kernel after kernel has the same pages: they stay in the
  // second-level cache.
  c10::DataPtr allocate_scratch(size_t bytes) {
    void* block = take(scratch_, round_up(bytes, kHugePage));
    c10::profiledCPUMemoryReporter().New(block, bytes);
    return {block, block, &give_back, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

  static MemoryPool& instance() {
    static MemoryPool* pool = [] {
      hold_in_forks<&MemoryPool::mutex>();
      return new MemoryPool;  // outlives every tensor
    }();
    return *pool;
  }

  // Whether torch's own tensors come from the pool too.
  bool torch_pooled() const { return c10::GetCPUAllocator() == this; }
  void set_torch_pooled(bool pooled) { c10::SetCPUAllocator(pooled ? this : torch_); }

  bool enabled() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return enabled_;
  }
  void set_enabled(bool enabled) {
    const std::lock_guard<std::mutex> lock(mutex_);
    enabled_ = enabled;
    if (!enabled) release(waiting());
  }
  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    release(waiting());
    peak_ = in_use();
    most_tied_ = tied();
    spare_ = 0;
  }
  std::map<std::string, int64_t> stats() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {{"in_use_bytes", in_use()},
            {"cached_bytes", waiting()},
            {"peak_in_use_bytes", peak_},
            {"reused", reused_},
            {"allocated", allocated_}};
  }

 private:
  static std::mutex& mutex() { return instance().mutex_; }

  void* take(Heap& heap, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    void* block = heap.take(bytes);
    if (block) {
      ++reused_;
    } else {
      if (&heap == &scratch_) scratch_.release(scratch_.waiting());  // too small: makes way
      const int64_t segment = round_up(bytes, kHugePage);
      release(held() + segment - most_held(std::max(peak_, in_use() + segment)) - spare_for(segment));
      block = heap.take_new(bytes);
      if (!block) {
        release(waiting());
        block = heap.take_new(bytes);
      }
      TORCH_CHECK(block, "cnnext: not enough memory: you tried to allocate ", bytes, " bytes");
      ++allocated_;
    }
    peak_ = std::max(peak_, in_use());
    most_tied_ = std::max(most_tied_, tied());
    return block;
  }

  static void give_back(void* block) {
    if (block) instance().put(block);
  }
  void put(void* block) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (Heap* heap : {&outputs_, &scratch_}) {
      if (!heap->owns(block)) continue;
      c10::profiledCPUMemoryReporter().Delete(block);
      heap->put(block);
      if (!enabled_) release(waiting());
      return;
    }
    lock.unlock();
    torch_->raw_deallocate(block);
  }

  // Where blocks that live long lie among the others, segments are tied up by less than they hold, and what
  // is held for the peak may not suffice: then slowly more is, up to what was tied up at once.
  int64_t spare_for(int64_t segment) {
    const bool lacking = held() + segment > most_held(peak_) + spare_ && in_use() + segment <= peak_;
    if (lacking) spare_ = std::min(spare_ + segment / 8, std::max<int64_t>(most_tied_ - peak_, 0));
    return spare_;
  }
  // Gives segments back, of outputs first, until this many bytes are given.
  void release(int64_t bytes) {
    const int64_t least = held() - bytes;
    for (Heap* heap : {&outputs_, &scratch_}) heap->release(std::max<int64_t>(held() - least, 0));
  }

  int64_t held() const { return outputs_.held() + scratch_.held(); }
  int64_t waiting() const { return outputs_.waiting() + scratch_.waiting(); }
  int64_t in_use() const { return held() - waiting(); }
  int64_t tied() const { return held() - outputs_.whole() - scratch_.whole(); }  // can not be given back

  std::mutex mutex_;
  bool enabled_ = [] {
    const char* setting = std::getenv("CNNEXT_MEMORY_POOL");
    return !setting || std::string(setting) != "0";
  }();
  c10::Allocator* torch_ = c10::GetDefaultCPUAllocator();
  Heap outputs_, scratch_;
  int64_t peak_ = 0, most_tied_ = 0, spare_ = 0, reused_ = 0, allocated_ = 0;
};

}  // namespace

at::Tensor empty(at::IntArrayRef size, const at::TensorOptions& options, at::MemoryFormat format) {
  const size_t bytes = c10::multiply_integers(size) * options.dtype().itemsize();
  if (bytes < kSmall || !options.device().is_cpu() || !MemoryPool::instance().enabled())
    return at::empty(size, options, format);
  return at::detail::empty_generic(size, &MemoryPool::instance(), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                   c10::typeMetaToScalarType(options.dtype()), format);
}

c10::DataPtr workspace(int64_t bytes) {
  if (bytes == 0) return {};
  if (size_t(bytes) >= kSmall && MemoryPool::instance().enabled())
    return MemoryPool::instance().allocate_scratch(bytes);
  c10::DataPtr memory = c10::GetCPUAllocator()->allocate(bytes);
  if (fills_workspaces()) std::memset(memory.get(), 0xff, size_t(bytes));
  return memory;
}

bool fills_workspaces() {
  const at::Context& context = at::globalContext();
  return context.deterministicAlgorithms() && context.deterministicFillUninitializedMemory();
}

void empty_cache() { MemoryPool::instance().clear(); }
std::map<std::string, int64_t> memory_stats() { return MemoryPool::instance().stats(); }
bool memory_pool_enabled() { return MemoryPool::instance().enabled(); }
void set_memory_pool(bool enabled) { MemoryPool::instance().set_enabled(enabled); }
bool torch_memory_pooled() { return MemoryPool::instance().torch_pooled(); }
void set_torch_memory_pooled(bool pooled) { MemoryPool::instance().set_torch_pooled(pooled); }

}  // namespace cnnext::ops
