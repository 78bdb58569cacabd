#include "kernels.h"

#include <algorithm>
#include <initializer_list>

namespace cnnext::cpu {
namespace {

using Families = std::initializer_list<const Kernels*>;

// The lists of several families, one behind the other, for as long as the process lives.
template <class Kernel>
KernelList<Kernel> joined(Families families, KernelList<Kernel> Kernels::* list) {
  int64_t count = 0;
  for (const Kernels* family : families) count += (family->*list).count;
  Kernel* const all = new Kernel[count];
  Kernel* end = all;
  for (const Kernels* family : families) end = std::copy((family->*list).begin(), (family->*list).end(), end);
  return {all, count};
}

Kernels joined(const char* capability, Families families) {
  Kernels table = {};
  table.capability = capability;
  Kernels::for_each_list([&](const char*, auto list) { table.*list = joined(families, list); });
  return table;
}

}  // namespace

namespace baseline {
const Kernels& kernels() {
  static const Kernels all = joined("baseline", {&grouped(), &dense(), &grad_weight(), &pool(), &norm()});
  return all;
}
}  // namespace baseline
#if defined(__x86_64__)
namespace avx2 {
const Kernels& kernels() {
  static const Kernels all = joined("avx2", {&grouped(), &dense(), &grad_weight(), &pool(), &norm()});
  return all;
}
}  // namespace avx2
namespace avx512 {
const Kernels& kernels() {
  static const Kernels all = joined("avx512", {&grouped(), &dense(), &grad_weight(), &pool(), &norm()});
  return all;
}
}  // namespace avx512
#endif

}  // namespace cnnext::cpu
