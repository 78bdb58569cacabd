#include "weight_cache.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "fork.h"
#include "memory.h"
#include "python.h"

namespace cnnext::ops {
namespace {

constexpr int64_t kMostBytes = int64_t{1} << 30;  // of all; the longest unused make way

// The addresses of both are no others' while they are held. `.data` makes another tensor of the same memory,
// whose version tells nothing; and `.data = ...` gives a tensor other memory without another version.
struct Weight {
  explicit Weight(const at::Tensor& t)
      : tensor(t.getIntrusivePtr()),
        storage(t.storage().getWeakStorageImpl()),
        data(t.const_data_ptr()),
        version(t._version()) {}
  bool is(const at::Tensor& t) const {
    return storage._unsafe_get_target() == t.storage().unsafeGetStorageImpl() && data == t.const_data_ptr() &&
           version == t._version();
  }
  bool gone() const { return tensor.expired() || storage.expired(); }

  c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl> tensor;
  c10::weak_intrusive_ptr<c10::StorageImpl> storage;
  const void* data;
  uint32_t version;
};

struct Packed {
  Weight weight;
  decltype(cpu::ConvKernel::run) run;  // a name and a problem are those of the gradient as well
  ConvProblem problem;
  at::Tensor memory;
  uint64_t used;  // when, in calls
};

class WeightCache {
 public:
  // What the kernel has made of the weight for this problem, or an undefined tensor.
  at::Tensor find(const at::Tensor& weight, const cpu::ConvKernel& kernel, const ConvProblem& problem) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto [begin, end] = all_.equal_range(weight.unsafeGetTensorImpl());
    for (auto each = begin; each != end; ++each) {
      Packed& packed = each->second;
      if (packed.run != kernel.run || !packed.weight.is(weight) || !(packed.problem == problem)) continue;
      packed.used = ++calls_;
      return packed.memory;
    }
    return {};
  }
  void add(const at::Tensor& weight, const cpu::ConvKernel& kernel, const ConvProblem& problem,
           const at::Tensor& memory) {
    const c10::TensorImpl* key = weight.unsafeGetTensorImpl();
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto each = all_.begin(); each != all_.end();) {
      const Weight& other = each->second.weight;
      const bool stale = other.gone() || (each->first == key && !other.is(weight));
      each = stale ? drop(each) : std::next(each);
    }
    all_.emplace(key, Packed{Weight(weight), kernel.run, problem, memory, ++calls_});
    bytes_ += memory.numel();
    while (bytes_ > kMostBytes) {
      drop(std::min_element(all_.begin(), all_.end(),
                            [](const auto& a, const auto& b) { return a.second.used < b.second.used; }));
    }
  }
  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    all_.clear();
    bytes_ = 0;
  }
  int64_t bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return bytes_;
  }
  std::mutex& mutex() { return mutex_; }

 private:
  using All = std::unordered_multimap<const c10::TensorImpl*, Packed>;
  All::iterator drop(All::iterator each) {
    bytes_ -= each->second.memory.numel();
    return all_.erase(each);
  }

  std::mutex mutex_;
  All all_;
  int64_t bytes_ = 0;
  uint64_t calls_ = 0;
};

std::atomic<bool> enabled{false};
thread_local bool differentiating = false;

std::mutex& cache_mutex();
WeightCache& cache() {
  static WeightCache* all = [] {
    memory_pool_enabled();  // registers the pool's lock, which is taken while this one is held
    hold_in_forks<&cache_mutex>();
    return new WeightCache;  // outlives every tensor
  }();
  return *all;
}
std::mutex& cache_mutex() { return cache().mutex(); }

}  // namespace

Differentiating::Differentiating() : before_(differentiating) { differentiating = true; }
Differentiating::~Differentiating() { differentiating = before_; }

bool caches_weight(const at::Tensor& weight) {
  // Inference tensors have no version.
  if (!enabled || !weight.is_cpu() || weight.is_inference()) return false;
  return !(differentiating && weight.requires_grad());
}

void run_with_cached_weight(const cpu::ConvKernel& kernel, ConvProblem problem, ConvBuffers buffers,
                            const at::Tensor& weight) {
  const int64_t bytes = kernel.packed ? kernel.packed(problem) : 0;
  problem.keeps_weight = bytes > 0;
  at::Tensor packed;
  if (problem.keeps_weight) {
    packed = cache().find(weight, kernel, problem);
    buffers.is_packed = packed.defined();
    if (!buffers.is_packed) packed = empty({bytes}, at::kByte);
    buffers.packed = packed.mutable_data_ptr();
  }
  const at::DataPtr scratch = workspace(kernel.workspace(problem));
  kernel.run(problem, buffers, cpu_parallel(problem.threads), static_cast<char*>(scratch.get()));
  if (problem.keeps_weight && !buffers.is_packed) cache().add(weight, kernel, problem, packed);
}

bool packed_weights_enabled() { return enabled; }
void set_packed_weights(bool value) {
  enabled = value;
  if (!value) cache().clear();
}
int64_t packed_weight_bytes() { return cache().bytes(); }
void drop_packed_weights() { cache().clear(); }

}  // namespace cnnext::ops
