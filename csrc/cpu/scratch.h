// Lays out scratch memory. AddressSanitizer finds what is read or written beyond an array there too.
#pragma once

#include "vec.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace cnnext::cpu::CNNEXT_ISA {

#if defined(__SANITIZE_ADDRESS__)
constexpr int64_t kGap = 2 * kAlignment;  // bytes behind an array that are nobody's
CNNEXT_INLINE void forbid(const char* p, int64_t bytes) { ASAN_POISON_MEMORY_REGION(p, bytes); }
CNNEXT_INLINE void allow(const char* p, int64_t bytes) { ASAN_UNPOISON_MEMORY_REGION(p, bytes); }
#else
constexpr int64_t kGap = 0;
CNNEXT_INLINE void forbid(const char*, int64_t) {}
CNNEXT_INLINE void allow(const char*, int64_t) {}
#endif

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
    const int64_t size = round_up(count * static_cast<int64_t>(sizeof(T)), kAlignment);
    char* at = base ? base + bytes : nullptr;
    if (at) allow(at, size), forbid(at + size, kGap);
    bytes += size + kGap;
    return reinterpret_cast<T*>(at);
  }
  // Threads share no line of the cache, nor two that are fetched together.
  template <class T>
  PerThread<T> take_each(int64_t threads, int64_t count) {
    const int64_t size = round_up(count * static_cast<int64_t>(sizeof(T)), 2 * kAlignment) + kGap;
    char* first = take<char>(threads * size);
    for (int64_t thread = 1; first && thread <= threads; ++thread) forbid(first + thread * size - kGap, kGap);
    return {reinterpret_cast<T*>(first), size};
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
