// Rows of a plane in channels first, as kernels with vectors along them (pool_rows.h) use them.
//
// A row is copied into scratch memory in the accumulation type, with its padding, and split into `stride`
// phases: position i of phase f is the padded row's element i * stride + f. Every tap of a window is then a
// run of consecutive elements, whatever the stride and the dilation, and inner loops need no bounds.
#pragma once

#include "pool_vec.h"

namespace cnnext::cpu::CNNEXT_ISA {

template <class T>
struct PhasedRow {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

  int64_t phases, padding, width;  // stride, padding before the row, and extent of the row in memory
  int64_t reach;                   // how many elements of each phase are read
  int64_t pitch;                   // elements from phase to phase, with room for whole vectors
  // Elements up to the end of the row in each phase; the first `longer` have one more.
  int64_t shortest, longer;
  A* data = nullptr;

  PhasedRow() = default;
  PhasedRow(int64_t phases, int64_t padding, int64_t width, int64_t reach)
      : phases(phases),
        padding(padding),
        width(width),
        reach(reach),
        pitch(round_up(max_of(reach, (width + padding) / phases + 1) + 3 * L, kAlignment / sizeof(A))),
        shortest((width + padding) / phases),
        longer((width + padding) % phases) {}

  int64_t elements() const { return phases * pitch; }

  // Where tap t of the first window is, relative to `data`.
  int64_t tap(int64_t t) const { return t % phases * pitch + t / phases; }

  void fill(A value) const {
    for (int64_t i = 0; i < phases * pitch; i += L) store(data + i, broadcast<A>(value));
  }

  // Copies a row in; `available` elements may be read at `row`, no less than its width. The padding before
  // the row is as `fill` left it, the padding after it is written here.
  void load_row(const T* row, int64_t available, A value) const {
    if (phases == 1) {
      int64_t x = 0;
      for (; x < width && x + L <= available; x += L) store(data + padding + x, load(row + x));
      if (x < width) store(data + padding + x, load_part(row + x, width - x));
    } else if (phases == 2) {
      A* even = data + (padding & 1) * pitch + (padding >> 1);
      A* odd = data + (~padding & 1) * pitch + ((padding + 1) >> 1);
      int64_t x = 0;
      for (; x < width; x += 2 * L) {
        Vec<A> a, b;
        if (x + 2 * L <= available) {
          a = load(row + x);
          b = load(row + x + L);
        } else {
          a = load_part(row + x, available - x);
          b = load_part(row + x + L, max_of(0, available - x - L));
        }
        deinterleave<A>(a, b, a, b);
        store(even + x / 2, a);
        store(odd + x / 2, b);
      }
    } else {
      for (int64_t f = 0; f < min_of(phases, width); ++f) {
        A* to = data + tap(padding + f);
        for (int64_t x = f; x < width; x += phases) *to++ = load_one(row + x);
      }
    }
    for (int64_t f = 0; f < phases; ++f) {
      const int64_t end = shortest + (f < longer ? 1 : 0);
      for (int64_t i = end; i < reach; i += L) store(data + f * pitch + i, broadcast<A>(value));
    }
  }

  // Copies the phases out to a row without padding; whole vectors may be written up to `room` elements.
  void store_row(T* row, int64_t room) const {
    if (phases == 1) {
      for (int64_t x = 0; x < width; x += L) store_part(row + x, load(data + x), room - x);
    } else if (phases == 2) {
      for (int64_t x = 0; x < width; x += 2 * L) {
        Vec<A> a, b;
        interleave<A>(load(data + x / 2), load(data + pitch + x / 2), a, b);
        store_part(row + x, a, room - x);
        if (x + L < width) store_part(row + x + L, b, room - x - L);
      }
    } else {
      for (int64_t f = 0; f < min_of(phases, width); ++f) {
        const A* from = data + f * pitch;
        for (int64_t x = f; x < width; x += phases) store_one(row + x, *from++);
      }
    }
  }
};

// Rows kept while windows still share them. A row (depth, height) of a plane has its slot; `key` tells what
// is in it.
struct RowRing {
  int64_t depth_slots = 1, height_slots = 1;  // powers of two
  int64_t* key = nullptr;

  RowRing() = default;
  RowRing(int64_t depths, int64_t heights) {
    while (depth_slots < depths) depth_slots *= 2;
    while (height_slots < heights) height_slots *= 2;
  }
  int64_t slots() const { return depth_slots * height_slots; }
  int64_t slot(int64_t depth, int64_t height) const {
    return (depth & (depth_slots - 1)) * height_slots + (height & (height_slots - 1));
  }
  void clear() const {
    for (int64_t i = 0; i < slots(); ++i) key[i] = -1;
  }
};

// A row of a tensor [planes, depth, height, width]; `number` counts all rows.
struct RowPosition {
  int64_t number, plane, depth, height;

  RowPosition(int64_t number, int64_t depths, int64_t heights)
      : number(number),
        plane(number / heights / depths),
        depth(number / heights % depths),
        height(number % heights) {}
  void next(int64_t depths, int64_t heights) {
    ++number;
    if (++height < heights) return;
    height = 0;
    if (++depth < depths) return;
    depth = 0;
    ++plane;
  }
};

}  // namespace cnnext::cpu::CNNEXT_ISA
