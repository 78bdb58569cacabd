// Lays out scratch memory.
#pragma once

#include "vec.h"

namespace cnnext::cpu::CNNEXT_ISA {

// An array that each thread has its own of, by its number.
template <class T>
struct PerThread {
  T* first = nullptr;
  int64_t bytes = 0;  // from one to the next

  T* operator[](int thread) const {
    return reinterpret_cast<T*>(reinterpret_cast<char*>(first) + thread * bytes);
  }
};

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
  // Threads share no line of the cache, nor two that are fetched together.
  template <class T>
  PerThread<T> take_each(int64_t threads, int64_t count) {
    const int64_t size = round_up(count * static_cast<int64_t>(sizeof(T)), 2 * kAlignment);
    return {reinterpret_cast<T*>(take<char>(threads * size)), size};
  }
  // The same for all that lay_out(layout) takes, in which a thread lays it out again.
  template <class LayOut>
  PerThread<char> take_layouts(int64_t threads, const LayOut& lay_out) {
    ScratchLayout one;
    lay_out(one);
    return {take<char>(threads * one.bytes), one.bytes};
  }
};

}  // namespace cnnext::cpu::CNNEXT_ISA
