// How a class becomes an entry of the table of kernels.
#pragma once

#include "epilogue.h"
#include "scratch.h"

namespace cnnext::cpu::CNNEXT_ISA {

template <class Problem>
struct BuffersOf;
template <>
struct BuffersOf<ConvProblem> {
  using Type = ConvBuffers;
};
template <>
struct BuffersOf<PoolProblem> {
  using Type = PoolBuffers;
};
template <>
struct BuffersOf<NormProblem> {
  using Type = NormBuffers;
};

// Classes of kernels for each element type, made of a problem, its buffers and a workspace; of convolutions
// in both directions with a flag behind the problem. `with` calls visit(an object of the class for a
// problem).
template <template <class> class Class, bool... kGradient>
struct ByType {
  template <class Problem, class Buffers, class Visit>
  static void with(const Problem& p, const Buffers& b, char* workspace, Visit&& visit) {
    with_type(p.dtype,
              [&](auto* tag) { visit(Class<Pointee<decltype(tag)>>(p, kGradient..., b, workspace)); });
  }
};

// The same of classes that refuse float64.
template <template <class> class Class, bool... kGradient>
struct ByFloat32Type {
  template <class Problem, class Buffers, class Visit>
  static void with(const Problem& p, const Buffers& b, char* workspace, Visit&& visit) {
    with_float32_type(
        p.dtype, [&](auto* tag) { visit(Class<Pointee<decltype(tag)>>(p, kGradient..., b, workspace)); });
  }
};

// The same of a single class.
template <class Class, bool... kGradient>
struct Only {
  template <class Problem, class Buffers, class Visit>
  static void with(const Problem& p, const Buffers& b, char* workspace, Visit&& visit) {
    visit(Class(p, kGradient..., b, workspace));
  }
};

// Without buffers and a workspace an object only tells how large its workspace is to be, and its packed
// weight if it keeps one.
template <class Classes, class Problem>
int64_t workspace_of(const Problem& p) {
  int64_t bytes = 0;
  Classes::with(p, typename BuffersOf<Problem>::Type(), nullptr,
                [&](const auto& kernel) { bytes = kernel.workspace_bytes(); });
  return bytes;
}
template <class Classes, class Problem>
int64_t packed_of(const Problem& p) {
  int64_t bytes = 0;
  Classes::with(p, typename BuffersOf<Problem>::Type(), nullptr,
                [&](const auto& kernel) { bytes = kernel.packed_bytes(); });
  return bytes;
}
// Whether a kernel applies a convolution's epilogue itself, as it stores: it says so if it has the function.
template <class Class>
auto applies_epilogue(const Class& kernel, int) -> decltype(kernel.applies_epilogue()) {
  return kernel.applies_epilogue();
}
template <class Class>
bool applies_epilogue(const Class&, long) {
  return false;
}
// Applies an epilogue that the kernel has not applied.
inline void finish(const ConvProblem& p, const ConvBuffers& b, const Parallel& parallel) {
  if (!b.epilogue.any()) return;
  with_type(p.dtype, [&](auto* tag) {
    using T = Pointee<decltype(tag)>;
    apply_epilogue(epilogue_of<T>(b), static_cast<T*>(b.output),
                   p.shape.N * p.shape.K * p.shape.output_pixels(), parallel);
  });
}
inline void finish(const PoolProblem&, const PoolBuffers&, const Parallel&) {}
inline void finish(const NormProblem&, const NormBuffers&, const Parallel&) {}

template <class Classes, class Problem>
void run_by(const Problem& p, const typename BuffersOf<Problem>::Type& b, const Parallel& parallel,
            char* workspace) {
  Classes::with(p, b, workspace, [&](const auto& kernel) {
    kernel.run(parallel);
    allow(workspace, kernel.workspace_bytes());
    if (!applies_epilogue(kernel, 0)) finish(p, b, parallel);
  });
}

// The entry of such classes; `packed` is packed_of<Classes>, if they may keep a packed weight. A template for
// `refuses` (accepts_all) is taken for that of convolutions.
template <class Classes, class Problem = ConvProblem>
constexpr auto entry(const char* name, const char* summary, const char* (*refuses)(const Problem&),
                     int64_t (*packed)(const Problem&) = nullptr) {
  return Kernel<Problem, typename BuffersOf<Problem>::Type, Parallel>{
      name, summary, refuses, workspace_of<Classes, Problem>, run_by<Classes, Problem>, packed};
}

}  // namespace cnnext::cpu::CNNEXT_ISA
