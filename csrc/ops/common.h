// What every operator's glue needs: the choice of a kernel, threads, element types, and the record of
// fallbacks.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>
#include <c10/util/SmallVector.h>

#include <initializer_list>
#include <optional>
#include <string>

#include "../cpu/kernels.h"
#include "../cuda/kernel.h"

namespace cnnext::ops {

using OptionalTensor = std::optional<at::Tensor>;
using SymInts = c10::SymIntArrayRef;

// Of numbers (Int = int64_t) or symbols (c10::SymInt).
template <class Int>
using Sizes = c10::SmallVector<Int, kAxes + 2>;  // of a tensor
template <class Int>
using PerAxis = c10::SmallVector<Int, kAxes>;

// A list of one number holds for all axes; any other is returned as it is.
template <class Int>
PerAxis<Int> per_axis(c10::ArrayRef<Int> list, size_t dims) {
  return list.size() == 1 ? PerAxis<Int>(dims, list[0]) : PerAxis<Int>(list.begin(), list.end());
}

// The CPU kernels for the instruction set that torch uses (ATEN_CPU_CAPABILITY overrides it, as it does for
// torch).
const cpu::Kernels& cpu_kernels();

cpu::Parallel cpu_parallel(int threads);

// The kernels' element type, or nothing if they have none for it.
std::optional<DType> element_type(at::ScalarType type);

// Channels last where the tensor is laid out so, and torch's word for a layout in that many dimensions; one
// spatial dimension has no channels last in torch.
Layout layout_of(const at::Tensor& tensor);
at::MemoryFormat memory_format(Layout layout, int64_t dim);
// Channels last where that is asked for, and there is such a layout.
inline Layout last_if(bool channels_last) {
  return channels_last ? Layout::kChannelsLast : Layout::kChannelsFirst;
}
inline Layout last_if(bool channels_last, int64_t dim) { return last_if(channels_last && dim > 3); }

// Kernels can be forced by name, for tests; an empty name chooses again by the problem's shape.
void force_kernel(const std::string& op, const std::string& name, bool cuda);
std::optional<std::string> forced_kernel(const char* op, bool cuda);

// Whether Winograd's algorithm may be chosen.
bool winograd_enabled();
void set_winograd(bool enabled);

// Each candidate and why it refuses, where all of them do.
template <class Kernel, class Problem>
std::string refusals(const KernelList<Kernel>& candidates, const Problem& problem) {
  std::string all;
  for (const Kernel& kernel : candidates) {
    if (!all.empty()) all += "; ";
    all += std::string(kernel.name) + ": " + kernel.refuses(problem);
  }
  return all;
}

// The first candidate that accepts the problem, or the forced one (an error if that one refuses).
template <class Kernel, class Problem>
const Kernel& choose_kernel(const char* op, const KernelList<Kernel>& candidates, const Problem& problem) {
  const std::optional<std::string> forced = forced_kernel(op, problem.arch > 0);
  for (const Kernel& kernel : candidates) {
    if (forced && *forced != kernel.name) continue;
    const char* reason = kernel.refuses(problem);
    if (!reason) return kernel;
    TORCH_CHECK(!forced, op, ": the forced kernel '", kernel.name, "' does not take this problem: ", reason);
  }
  TORCH_CHECK(!forced, op, ": there is no kernel '", *forced, "', which was forced");
  TORCH_CHECK(false, op, ": no kernel takes this problem (", refusals(candidates, problem), ")");
}

// Why an operator must be left to ATen, or null. C++ autograd Functions can not be passed by functorch
// transforms nor by forward-mode dual tensors; and some element types and layouts are not ours.
const char* left_to_aten(std::initializer_list<const at::Tensor*> tensors);

// Every call that is left to ATen is counted under "operator: reason", so that none stays hidden.
void record_fallback(const char* op, const char* reason);

}  // namespace cnnext::ops
