// Runs a kernel on the device that its tensors are on: the one place where CPU and GPU part.
#pragma once

#include <c10/core/DeviceGuard.h>

#include "common.h"
#include "memory.h"

namespace cnnext::ops {

// Selects a list of candidates: from a table, whatever its device.
#define CNNEXT_LIST(op) [](const auto& table) -> const auto& { return table.op; }

// The tensor's memory for a kernel, also to write; null if it is undefined.
inline void* data(const at::Tensor& t) {
  return t.defined() ? const_cast<void*>(t.const_data_ptr()) : nullptr;
}

// What makes a GPU's problem of a problem: its architecture, 10 * major + minor, and torch's setting of TF32.
void set_gpu(ConvProblem& problem, int arch);
void set_gpu(PoolProblem& problem, int arch);
void set_gpu(NormProblem& problem, int arch);

// The tensor's GPU made current, with torch's current stream of it.
class OnGpu {
 public:
  explicit OnGpu(const at::Tensor& tensor);
  int arch() const;  // that the code was compiled for which this GPU runs
  cuda::Stream stream() const;
  at::DataPtr workspace(int64_t bytes) const;

 private:
  c10::DeviceGuard guard_;
};

// Chooses a candidate of the operator for the device of `result` and runs it.
template <class Select, class Problem, class Buffers>
void run_kernel(const char* op, const Select& list_of, Problem problem, const Buffers& buffers,
                const at::Tensor& result) {
  if (result.is_cuda()) {
    const OnGpu gpu(result);
    set_gpu(problem, gpu.arch());
    const auto& kernel = choose_kernel(op, list_of(cuda::kernels()), problem);
    const at::DataPtr scratch = gpu.workspace(kernel.workspace(problem));
    kernel.run(problem, buffers, gpu.stream(), static_cast<char*>(scratch.get()));
    return;
  }
  const auto& kernel = choose_kernel(op, list_of(cpu_kernels()), problem);
  const at::DataPtr scratch = workspace(kernel.workspace(problem));
  kernel.run(problem, buffers, cpu_parallel(problem.threads), static_cast<char*>(scratch.get()));
}

}  // namespace cnnext::ops
