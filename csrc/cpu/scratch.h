// Lays out scratch memory.
#pragma once

#include "vec.h"

namespace cnnext::cpu::CNNEXT_ISA {

// Lays out arrays in scratch memory, each aligned to kAlignment. With a null base it only counts the bytes.
struct ScratchLayout {
  char* base = nullptr;
  int64_t bytes = 0;

  template <class T>
  T* take(int64_t count) {
    T* at = base ? reinterpret_cast<T*>(base + bytes) : nullptr;
    bytes += round_up(count * static_cast<int64_t>(sizeof(T)), kAlignment);
    return at;
  }
};

// A thread's own of what the first one has, where threads' memory is `bytes` apart.
template <class Element>
CNNEXT_INLINE Element* of_thread(int thread, Element* of_first, int64_t bytes) {
  return reinterpret_cast<Element*>(reinterpret_cast<char*>(of_first) + thread * bytes);
}

}  // namespace cnnext::cpu::CNNEXT_ISA
