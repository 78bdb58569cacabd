#include "kernels.h"

#include <deque>
#include <initializer_list>
#include <vector>

namespace cnnext::cpu {
namespace {

// The lists of several families, one behind the other.
class Joined {
 public:
  Joined(const char* capability, std::initializer_list<const Kernels*> families) {
    table.capability = capability;
    for (const auto list :
         {&Kernels::conv, &Kernels::conv_grad_input, &Kernels::conv_grad_weight, &Kernels::conv_grad_bias})
      join(families, list, conv);
    for (const auto list :
         {&Kernels::max_pool, &Kernels::max_pool_with_offsets, &Kernels::max_pool_indices,
          &Kernels::max_pool_grad_input, &Kernels::max_pool_select, &Kernels::avg_pool,
          &Kernels::avg_pool_grad_input, &Kernels::max_unpool, &Kernels::max_unpool_grad_input})
      join(families, list, pool);
  }

  Kernels table;

 private:
  template <class Kernel>
  void join(std::initializer_list<const Kernels*> families, KernelList<Kernel> Kernels::* list,
            std::deque<std::vector<Kernel>>& kept) {
    std::vector<Kernel>& all = kept.emplace_back();
    for (const Kernels* family : families)
      all.insert(all.end(), (family->*list).begin(), (family->*list).end());
    table.*list = {all.data(), int64_t(all.size())};
  }

  std::deque<std::vector<ConvKernel>> conv;
  std::deque<std::vector<PoolKernel>> pool;
};

}  // namespace

namespace baseline {
const Kernels& kernels() {
  static const Joined all("baseline", {&grouped(), &dense(), &grad_weight(), &pool()});
  return all.table;
}
}  // namespace baseline
#if defined(__x86_64__)
namespace avx2 {
const Kernels& kernels() {
  static const Joined all("avx2", {&grouped(), &dense(), &grad_weight(), &pool()});
  return all.table;
}
}  // namespace avx2
namespace avx512 {
const Kernels& kernels() {
  static const Joined all("avx512", {&grouped(), &dense(), &grad_weight(), &pool()});
  return all.table;
}
}  // namespace avx512
#endif

}  // namespace cnnext::cpu
