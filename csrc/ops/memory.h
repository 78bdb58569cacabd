// Memory of outputs and workspaces, kept for the next call. Fresh pages cost more than many convolutions: the
// kernel of the system clears each of them on its first touch, and large allocations are given back on every
// free.
#pragma once

#include <ATen/core/Tensor.h>

namespace cnnext::ops {

// An uninitialised tensor, on the CPU from the pool; small ones, and those of other devices, come from
// torch's allocator.
at::Tensor empty(at::IntArrayRef size, const at::TensorOptions& options,
                 at::MemoryFormat format = at::MemoryFormat::Contiguous);

// Scratch memory of a kernel, aligned to kAlignment.
c10::DataPtr workspace(int64_t bytes);
// Whether fresh workspaces are NaN, as new tensors are then in torch: what is read before it is written
// shows.
bool fills_workspaces();

}  // namespace cnnext::ops
