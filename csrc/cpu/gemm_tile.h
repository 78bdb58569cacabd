// The innermost product of every dense kernel: c[rows][kCols] (+)= a[rows][depth] * b[depth][kCols].
//
// All strides are compile-time constants, so each address is one register and a displacement. a is read one
// element at a time and broadcast, b by whole vectors; the rows x kVectors sums stay in registers (14 x 2 of
// 32 with AVX-512, 6 x 2 of 16 otherwise). A block's sum starts from zero and is then added to c: short
// chains round less.
#pragma once

#include "vec.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int kRows = CNNEXT_VECTOR_BYTES == 64 ? 14 : 6;
constexpr int kVectors = 2;
constexpr int64_t kDepth = 256;  // elements summed before they are added to c
constexpr int64_t kDepthStride =
    kDepth + 16;  // of rows of a: off the powers of two, which collide in the cache
constexpr int64_t kBlockRows = 112 / kRows * kRows;

template <class A>
constexpr int64_t kCols = kVectors * kLanes<A>;

template <class A, int Rows, int Vectors, int64_t RowStride, int64_t DepthStride, int64_t ColumnStride>
void tile(int64_t depth, const A* a, const A* b, A* c, bool add) {
  Vec<A> sum[Rows][Vectors] = {};
  for (int64_t d = 0; d < depth; ++d, a += DepthStride, b += ColumnStride) {
    Vec<A> y[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) y[v] = load(b + v * kLanes<A>);
#pragma GCC unroll 14
    for (int r = 0; r < Rows; ++r) {
      const Vec<A> x = broadcast(a[r * RowStride]);
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sum[r][v] += x * y[v];
    }
  }
#pragma GCC unroll 14
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      A* out = c + r * kCols<A> + v * kLanes<A>;
      store(out, add ? load(out) + sum[r][v] : sum[r][v]);
    }
  }
}

template <class A>
using Tile = void (*)(int64_t depth, const A* a, const A* b, A* c, bool add);

// The tile for a number of rows in [1, kRows], one vector wide where `narrow`.
template <class A, int64_t RowStride, int64_t DepthStride, int64_t ColumnStride, int Rows = kRows>
Tile<A> tile_of(int64_t rows, bool narrow) {
  if (rows == Rows) {
    return narrow ? &tile<A, Rows, 1, RowStride, DepthStride, ColumnStride>
                  : &tile<A, Rows, kVectors, RowStride, DepthStride, ColumnStride>;
  }
  if constexpr (Rows > 1) return tile_of<A, RowStride, DepthStride, ColumnStride, Rows - 1>(rows, narrow);
  return nullptr;
}

// c[rows][kCols] (+)= a[rows][depth] * b[depth][cols]: a column of tiles of almost equal height. Element
// (row, d) of a is at row * RowStride + d * DepthStride, row d of b at d * ColumnStride.
template <class A, int64_t RowStride, int64_t DepthStride, int64_t ColumnStride = kCols<A>>
void tile_column(int64_t rows, int64_t depth, int64_t cols, const A* a, const A* b, A* c, bool add) {
  const bool narrow = cols <= kLanes<A>;
  for (int64_t tiles = ceil_div(rows, kRows), row = 0; tiles > 0; --tiles) {
    const int64_t height = ceil_div(rows - row, tiles);
    const Tile<A> run = tile_of<A, RowStride, DepthStride, ColumnStride>(height, narrow);
    run(depth, a + row * RowStride, b, c + row * kCols<A>, add);
    row += height;
  }
}

}  // namespace cnnext::cpu::CNNEXT_ISA
