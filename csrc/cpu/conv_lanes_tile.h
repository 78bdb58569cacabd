// The innermost sums of depthwise convolution where the taps of a row are neighbours: a tile of destination
// rows and pixels in registers. Each source vector is loaded once and multiplied by every tap that takes it
// to a pixel of the tile; only the taps of the rows at hand are in registers. Columns in the padding are left
// out. The sums of a pixel are those of lanes_run, in the same order. A call takes the same tile of some
// blocks of groups: what they share is computed once.
#pragma once

#include "conv_lanes_run.h"
#include "fetch_ahead.h"
#include "stream.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int kTilePixels = CNNEXT_VECTOR_BYTES == 64 ? 9 : 8;

template <class T>
struct LanesTile {
  const TapRow<T>* rows;
  int64_t row_count;
  Range columns;                 // those inside of the source
  int64_t blocks;                // one or more; and of the first:
  int64_t source_at, weight_at;  // of the first column and tap, from the rows' pointers
  const Acc<T>* bias;
  T* to;
  Ahead* ahead;                   // or null
  const EpilogueOf<T>* epilogue;  // or null
  bool streamed;
};

struct TileSteps {  // in elements, from one to the next
  int64_t column, tap, to_pixel, to_row, weight_block;
};

// Which tap takes column c to pixel j. Forward, a pixel steps over columns.
template <int Step>
struct TapForward {
  static constexpr int columns(int pixels, int taps) { return (pixels - 1) * Step + taps; }
  static constexpr int tap(int c, int j, int) { return c - j * Step; }
};
// In the gradient a column steps over pixels; the last tap takes the first column to pixel -Residue, so that
// with a residue of 1 no pixel of the tile reads it.
template <int Step, int Residue>
struct TapBackward {
  static constexpr int columns(int pixels, int taps) { return (pixels + taps + Residue - 2) / Step + 1; }
  static constexpr int tap(int c, int j, int taps) { return j + taps - 1 + Residue - c * Step; }
};

// One source row, for the tile's rows from First on. Whole: all columns are inside.
template <bool Whole, class T, class Which, int Pixels, int Taps, int First, int Rows>
CNNEXT_INLINE void add_source_row(Vec<Acc<T>> (*sum)[Pixels], const TapRow<T>& row, const LanesTile<T>& tile,
                                  const TileSteps& s) {
  using A = Acc<T>;
  Vec<A> factor[Rows][Taps];
#pragma GCC unroll 2
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 7
    for (int m = 0; m < Taps; ++m) factor[r][m] = load(row.weight[First + r] + tile.weight_at + m * s.tap);
  }
  const T* x = row.source + tile.source_at;
  constexpr int kColumns = Which::columns(Pixels, Taps);
#pragma GCC unroll 24
  for (int c = 0; c < kColumns; ++c, x += s.column) {
    if (!Whole && (c < tile.columns.begin || c >= tile.columns.end)) continue;
    const Vec<A> value = load(x);
#pragma GCC unroll 2
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 9
      for (int j = 0; j < Pixels; ++j) {
        const int m = Which::tap(c, j, Taps);
        if (m >= 0 && m < Taps) sum[First + r][j] += value * factor[r][m];
      }
    }
  }
}

template <bool Whole, class T, class Which, int Taps, int Rows, int Pixels>
CNNEXT_INLINE void add_source_rows(Vec<Acc<T>> (*sum)[Pixels], const LanesTile<T>& tile, const TileSteps& s) {
  for (const TapRow<T>* row = tile.rows; row < tile.rows + tile.row_count; ++row) {
    if (Rows == 1 || (row->weight[0] && row->weight[Rows - 1])) {
      add_source_row<Whole, T, Which, Pixels, Taps, 0, Rows>(sum, *row, tile, s);
    } else if (row->weight[0]) {
      add_source_row<Whole, T, Which, Pixels, Taps, 0, 1>(sum, *row, tile, s);
    } else {
      add_source_row<Whole, T, Which, Pixels, Taps, Rows - 1, 1>(sum, *row, tile, s);
    }
  }
}

template <class T, class Which, int Taps, int Rows, int Pixels>
void lanes_tile(const LanesTile<T>& first, const TileSteps& steps) {
  LanesTile<T> tile = first;  // copies: nothing that is stored can change them
  const TileSteps s = steps;
  const bool streamed = kLanes<Acc<T>> * sizeof(T) == kAlignment && tile.streamed;  // whole lines
  const bool whole = tile.columns.begin <= 0 && tile.columns.end >= Which::columns(Pixels, Taps);
  do {
    Vec<Acc<T>> sum[Rows][Pixels];
#pragma GCC unroll 2
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 9
      for (int j = 0; j < Pixels; ++j) sum[r][j] = load(tile.bias);
    }
    if (whole) {
      add_source_rows<true, T, Which, Taps, Rows>(sum, tile, s);
    } else {
      add_source_rows<false, T, Which, Taps, Rows>(sum, tile, s);
    }
    if (tile.epilogue) {
      Vec<Acc<T>> results[Rows][Pixels];  // a copy: the sums stay in registers
#pragma GCC unroll 2
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 9
        for (int j = 0; j < Pixels; ++j) results[r][j] = sum[r][j];
      }
      put_finished(*tile.epilogue, results[0], Rows, Pixels, tile.to, s.to_row, s.to_pixel, kLanes<Acc<T>>,
                   streamed);
    } else {
#pragma GCC unroll 2
      for (int r = 0; r < Rows; ++r) {
        T* out = tile.to + r * s.to_row;
#pragma GCC unroll 9
        for (int j = 0; j < Pixels; ++j, out += s.to_pixel)
          streamed ? stream(out, sum[r][j]) : store(out, sum[r][j]);
      }
    }
    if (tile.ahead) tile.ahead->fetch();
    tile.source_at += kLanes<Acc<T>>;
    tile.weight_at += s.weight_block;
    tile.bias += kLanes<Acc<T>>;
    tile.to += kLanes<Acc<T>>;
  } while (--tile.blocks > 0);
}

template <class T>
using RunTile = void (*)(const LanesTile<T>&, const TileSteps&);

template <class T>
struct TilesOf {  // run[rows - 1][pixels - 1]
  RunTile<T> run[kTileRows][kTilePixels];
};
template <class T, class Which, int Taps, int Rows, int... Number>
constexpr void list_tiles(RunTile<T>* run, std::integer_sequence<int, Number...>) {
  ((run[Number] = &lanes_tile<T, Which, Taps, Rows, Number + 1>), ...);
}
template <class T, class Which, int Taps>
const TilesOf<T>* tiles_of() {
  static constexpr TilesOf<T> all = [] {
    using Pixels = std::make_integer_sequence<int, kTilePixels>;
    TilesOf<T> t = {};
    list_tiles<T, Which, Taps, 1>(t.run[0], Pixels());
    if constexpr (kTileRows == 2) list_tiles<T, Which, Taps, 2>(t.run[1], Pixels());
    return t;
  }();
  return &all;
}
template <class T, class Which>
const TilesOf<T>* tiles_of(int64_t taps) {
  return taps == 3 ? tiles_of<T, Which, 3>() : taps == 5 ? tiles_of<T, Which, 5>() : nullptr;
}

// Tiles of the last axis, null where there are none, as for float64. In a gradient with a stride they depend
// on the residue of the first pixel.
template <class T>
const TilesOf<T>* forward_tiles(int64_t taps, int64_t step) {
  if constexpr (std::is_same_v<T, double>) return nullptr;
  if (step == 1 && taps == 7) return tiles_of<T, TapForward<1>, 7>();
  return step == 1   ? tiles_of<T, TapForward<1>>(taps)
         : step == 2 ? tiles_of<T, TapForward<2>>(taps)
                     : nullptr;
}
template <class T>
const TilesOf<T>* backward_tiles(int64_t taps, int64_t step, int64_t residue) {
  if constexpr (std::is_same_v<T, double>) return nullptr;
  if (step != 2) return nullptr;
  return residue == 0 ? tiles_of<T, TapBackward<2, 0>>(taps) : tiles_of<T, TapBackward<2, 1>>(taps);
}

}  // namespace cnnext::cpu::CNNEXT_ISA
