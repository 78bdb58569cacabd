// Convolutions that are computed as another one, of operands that are copied into scratch memory.
#pragma once

#include "entry.h"
#include "scratch.h"

namespace cnnext::cpu::CNNEXT_ISA {

enum class ConvOp { kForward, kGradInput, kGradWeight };

// A kernel of the other problem, which Other states: its `problem`, `buffers` and `memory`, the copying of
// what it reads and, back, of what it has computed.
template <class Classes, class Other>
struct Restated : Other {
  using Other::Other;

  int64_t workspace_bytes() const { return this->memory.bytes + workspace_of<Classes>(this->problem); }
  int64_t packed_bytes() const { return packed_of<Classes>(this->problem); }
  bool applies_epilogue() const { return this->buffers.epilogue.any(); }  // unless it is for the copy
  void run(const Parallel& parallel) const {
    this->take_operands(parallel);
    run_by<Classes>(this->problem, this->buffers, parallel, this->memory.base + this->memory.bytes);
    this->give_result(parallel);
  }
};

}  // namespace cnnext::cpu::CNNEXT_ISA
