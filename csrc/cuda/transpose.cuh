// to[n][column][row] = from[n][row][column], for any type of the elements' size: between channels first and
// channels last. A block moves a tile of 32 x 32 through shared memory.
#pragma once

#include "device.cuh"

namespace cnnext::cuda {

constexpr int kTransposeTile = 32, kTransposeThreads = 256;

template <class T>
CNNEXT_LAUNCH(kTransposeThreads, 1)
transpose(const T* from, T* to, int64_t first, int rows, int columns) {
  T* tile = shared_memory<T>();  // [32][33]
  constexpr int kWidth = kTransposeTile + 1;
  const int lane = threadIdx.x % kTransposeTile, start = threadIdx.x / kTransposeTile;
  const int row = blockIdx.y * kTransposeTile, column = blockIdx.x * kTransposeTile;
  const int64_t matrix = (first + blockIdx.z) * rows * columns;
  for (int i = start; i < kTransposeTile; i += kTransposeThreads / kTransposeTile) {
    if (row + i < rows && column + lane < columns) {
      tile[i * kWidth + lane] = from[matrix + int64_t(row + i) * columns + column + lane];
    }
  }
  __syncthreads();
  for (int i = start; i < kTransposeTile; i += kTransposeThreads / kTransposeTile) {
    if (row + lane < rows && column + i < columns) {
      to[matrix + int64_t(column + i) * rows + row + lane] = tile[lane * kWidth + i];
    }
  }
}

template <class T>
void start_transpose(const void* from, void* to, int64_t matrices, int64_t rows, int64_t columns,
                     const Stream& stream) {
  const int64_t tiles = ceil_div(columns, kTransposeTile), across = ceil_div(rows, kTransposeTile);
  for (int64_t first = 0; first < matrices; first += kMostGridYZ) {
    launch(transpose<T>, {tiles, across, min_of(kMostGridYZ, matrices - first)}, kTransposeThreads,
           kTransposeTile * (kTransposeTile + 1) * int(sizeof(T)), stream, static_cast<const T*>(from),
           static_cast<T*>(to), first, int(rows), int(columns));
  }
}

}  // namespace cnnext::cuda
