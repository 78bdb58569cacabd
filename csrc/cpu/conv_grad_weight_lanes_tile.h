// The innermost sums of the gradient with respect to a 3x3 weight with a lane for each group, where taps are
// neighbours: the gradients of a tile of pixels are in registers beside the sums of all taps, and each vector
// of the input is loaded once for all products that it is part of. The padding is left out.
#pragma once

#include "conv_lanes_tile.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int kGradTilePixels = CNNEXT_VECTOR_BYTES == 64 ? 7 : 4;
constexpr int64_t kTilesOfChain = 4;  // are summed before they are added to memory: chains are short
constexpr int kSharedTaps = 3;
constexpr int kMostSourceRows = (kTileRows - 1) * 2 + kSharedTaps;

template <class T>
struct GradTile {
  const T* grad;                     // the first pixel
  const T* source[kMostSourceRows];  // that pixel's first tap in each source row; null in the padding
  Range columns;                     // inside of the input, counted from there
};

struct GradTileSteps {  // in elements, from one to the next
  int64_t grad_pixel, grad_row, column, sum_tap;
};

// One tile. Whole: all columns are inside.
template <bool Whole, class T, int Step, int Rows, int Pixels>
CNNEXT_INLINE void add_grad_tile(Vec<Acc<T>> (*sum)[kSharedTaps], const GradTile<T>& tile,
                                 int64_t source_offset, int64_t grad_offset, const GradTileSteps& s) {
  using A = Acc<T>;
  constexpr int kSourceRows = (Rows - 1) * Step + kSharedTaps, kColumns = (Pixels - 1) * Step + kSharedTaps;
  Vec<A> g[Rows][Pixels];
#pragma GCC unroll 2
  for (int r = 0; r < Rows; ++r) {
    const T* grad = tile.grad + grad_offset + r * s.grad_row;
#pragma GCC unroll 7
    for (int j = 0; j < Pixels; ++j, grad += s.grad_pixel) g[r][j] = load(grad);
  }
#pragma GCC unroll 5
  for (int i = 0; i < kSourceRows; ++i) {
    if (!tile.source[i]) continue;
    const T* x = tile.source[i] + source_offset;
#pragma GCC unroll 15
    for (int c = 0; c < kColumns; ++c, x += s.column) {
      if (!Whole && (c < tile.columns.begin || c >= tile.columns.end)) continue;
      const Vec<A> value = load(x);
#pragma GCC unroll 2
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 7
        for (int j = 0; j < Pixels; ++j) {
          const int row = i - r * Step, tap = c - j * Step;
          if (row < 0 || row >= kSharedTaps || tap < 0 || tap >= kSharedTaps) continue;
          sum[row][tap] += g[r][j] * value;
        }
      }
    }
  }
}

// Adds the sums of some tiles; the offsets are those of a block of groups.
template <class T, int Step, int Rows, int Pixels>
void lanes_grad_tiles(const GradTile<T>* tile, int64_t count, int64_t source_offset, int64_t grad_offset,
                      Acc<T>* sums, const GradTileSteps& steps) {
  const GradTileSteps s = steps;  // a copy: nothing that is stored can change it
  Vec<Acc<T>> sum[kSharedTaps][kSharedTaps] = {};
  for (; count > 0; --count, ++tile) {
    if (tile->columns.begin <= 0 && tile->columns.end >= (Pixels - 1) * Step + kSharedTaps) {
      add_grad_tile<true, T, Step, Rows, Pixels>(sum, *tile, source_offset, grad_offset, s);
    } else {
      add_grad_tile<false, T, Step, Rows, Pixels>(sum, *tile, source_offset, grad_offset, s);
    }
  }
#pragma GCC unroll 3
  for (int row = 0; row < kSharedTaps; ++row) {
#pragma GCC unroll 3
    for (int tap = 0; tap < kSharedTaps; ++tap) {
      Acc<T>* to = sums + (row * kSharedTaps + tap) * s.sum_tap;
      store(to, load(to) + sum[row][tap]);
    }
  }
}

template <class T>
using RunGradTiles = void (*)(const GradTile<T>*, int64_t count, int64_t source_offset, int64_t grad_offset,
                              Acc<T>* sums, const GradTileSteps&);

template <class T>
struct GradTilesOf {  // run[rows - 1][pixels - 1]
  RunGradTiles<T> run[kTileRows][kGradTilePixels];
};
template <class T, int Step, int Rows, int... Number>
constexpr void list_grad_tiles(RunGradTiles<T>* run, std::integer_sequence<int, Number...>) {
  ((run[Number] = &lanes_grad_tiles<T, Step, Rows, Number + 1>), ...);
}
template <class T, int Step>
const GradTilesOf<T>* grad_tiles_of() {
  static constexpr GradTilesOf<T> all = [] {
    using Pixels = std::make_integer_sequence<int, kGradTilePixels>;
    GradTilesOf<T> t = {};
    list_grad_tiles<T, Step, 1>(t.run[0], Pixels());
    if constexpr (kTileRows == 2) list_grad_tiles<T, Step, 2>(t.run[1], Pixels());
    return t;
  }();
  return &all;
}

// Null where the weight's last two axes are no 3x3 of neighbours, and for float64.
template <class T>
const GradTilesOf<T>* grad_tiles(const Window& y, const Window& x) {
  const bool fits = y.kernel == kSharedTaps && x.kernel == kSharedTaps && y.dilation == 1 && x.dilation == 1;
  if constexpr (std::is_same_v<T, double>) return nullptr;
  if (!fits || y.stride != x.stride) return nullptr;
  return x.stride == 1 ? grad_tiles_of<T, 1>() : x.stride == 2 ? grad_tiles_of<T, 2>() : nullptr;
}

}  // namespace cnnext::cpu::CNNEXT_ISA
