// The innermost product of every dense kernel: a[rows][depth] * b[depth][kCols].
//
// The strides of packed a and b are compile-time constants, so each address is one register and a
// displacement; where they are read in place, only TileStrides tells them. a is read one element at a time
// and broadcast, b by whole vectors; the rows x kVectors sums stay in registers (14 x 2 of 32 with AVX-512,
// 6 x 2 of 16 otherwise). A block's sum starts from zero and is then added to the sums so far: short chains
// round less.
#pragma once

#include "epilogue.h"
#include "fetch_ahead.h"
#include "range.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int kRows = CNNEXT_VECTOR_BYTES == 64 ? 14 : 6;
constexpr int kVectors = 2;
constexpr int64_t kDepth = 256;  // elements summed before they are added to c
// Of rows of a: off the powers of two, which collide in the cache.
constexpr int64_t kDepthStride = kDepth + 16;
constexpr int64_t kBlockRows = 112 / kRows * kRows;
constexpr int64_t kFetchSteps = 16;  // of the depth, from one request for memory to the next

template <class A>
constexpr int64_t kCols = kVectors * kLanes<A>;

// How elements of a and b are multiplied: as numbers, or as pairs of bfloat16 by AVX512_BF16.
enum class Product { kNumbers, kPairs };

// visit(row, vector) for each vector of a tile's sums, with no loop left.
template <int Rows, int Vectors, class Visit>
CNNEXT_INLINE void for_each_sum(const Visit& visit) {
#pragma GCC unroll 14
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) visit(r, v);
  }
}

// Where a short product goes, one of Winograd's algorithm: c[rows][kCols] = or += the product,
template <class A>
struct TileSums {
  static constexpr bool far = false;
  A* c;
  bool add;

  TileSums from_row(int64_t r) const { return {c + r * kCols<A>, add}; }
  template <int>
  __attribute__((always_inline)) void fetch(int) const {}
  template <int Rows, int Vectors>
  __attribute__((always_inline)) void put(Vec<A> (&sum)[Rows][Vectors]) const {
    const auto at = [&](int r, int v) { return c + r * kCols<A> + v * kLanes<A>; };
    if (add) for_each_sum<Rows, Vectors>([&](int r, int v) { sum[r][v] += load(at(r, v)); });
    for_each_sum<Rows, Vectors>([&](int r, int v) { store(at(r, v), sum[r][v]); });
  }
};

// or to rows `stride` apart, with all that is still to be done; null adds or does nothing.
template <class T, Product P = Product::kNumbers>
struct TileOutput {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

  T* to;
  int64_t stride;
  const A* sums;              // the sums so far
  const A* column = nullptr;  // [kCols], the same for each row
  const T* row = nullptr;     // [rows], the same for each column
  const EpilogueOf<T>* epilogue = nullptr;
  int64_t sums_stride = kCols<A>;
  bool far = true;  // perhaps: what is going to be overwritten is fetched

  TileOutput from_row(int64_t r) const {
    TileOutput from = *this;
    from.to += r * stride;
    if (sums) from.sums += r * sums_stride;
    if (row) from.row += r;
    return from;
  }
  template <int Vectors>
  __attribute__((always_inline)) void fetch(int r) const {
#pragma GCC unroll 4
    for (int64_t i = 0; i < Vectors * L; i += kAlignment / int64_t(sizeof(T)))
      __builtin_prefetch(to + (r + 2 * kRows) * stride + i, 1);
  }
  template <int Rows, int Vectors>
  __attribute__((always_inline)) void put(Vec<A> (&sum)[Rows][Vectors]) const {
    if (sums)
      for_each_sum<Rows, Vectors>([&](int r, int v) { sum[r][v] += load(sums + r * sums_stride + v * L); });
    if (column) for_each_sum<Rows, Vectors>([&](int r, int v) { sum[r][v] += load(column + v * L); });
    if (row) for_each_sum<Rows, Vectors>([&](int r, int v) { sum[r][v] += load_one(row + r); });
    if (epilogue) {
      Vec<A> results[Rows * Vectors];
      for_each_sum<Rows, Vectors>([&](int r, int v) { results[r * Vectors + v] = sum[r][v]; });
      return put_finished(*epilogue, results, Rows, Vectors, to, stride, L);
    }
    for_each_sum<Rows, Vectors>([&](int r, int v) {
      T* out = to + r * stride + v * L;
      if constexpr (P != Product::kNumbers) {
        store_rounded(out, sum[r][v]);
      } else {
        store(out, sum[r][v]);
      }
    });
  }
};

// c[rows][stride] = or += a product, in scratch memory.
template <class A>
CNNEXT_INLINE TileOutput<A> tile_sums(A* c, bool add, int64_t stride = kCols<A>) {
  return {c, stride, add ? c : nullptr, nullptr, nullptr, nullptr, stride, false};
}

// In elements, also where the compiler knows them: from a row of a to the next, and from one step of the
// depth to the next.
struct TileStrides {
  int64_t row, a, b;
};

// Rows at any stride: three share a pointer, to which an address adds 0, 1 or 2 strides.
template <class S, int Rows>
struct SharedRows {
  static constexpr int kPointers = (Rows + 2) / 3;
  const S* first[kPointers];
  int64_t stride;
  __attribute__((always_inline)) SharedRows(const S* from, int64_t step) : stride(step) {
#pragma GCC unroll 6
    for (int i = 0; i < kPointers; ++i) first[i] = from + 3 * i * step;
  }
  __attribute__((always_inline)) const S* at(int r) const { return first[r / 3] + r % 3 * stride; }
  __attribute__((always_inline)) void advance(int64_t step) {
#pragma GCC unroll 6
    for (int i = 0; i < kPointers; ++i) first[i] += step;
  }
};

// The rows of a: at a stride that the compiler knows,
template <class S, int Rows, int64_t Stride>
struct TileRows {
  const S* a;
  __attribute__((always_inline)) TileRows(const S* first, int64_t) : a(first) {}
  __attribute__((always_inline)) auto operator[](int r) const { return load_one(a + r * Stride); }
  __attribute__((always_inline)) void advance(int64_t step) { a += step; }
};
// or at any, where they are read in place.
template <class S, int Rows>
struct TileRows<S, Rows, 0> {
  SharedRows<S, Rows> rows;
  __attribute__((always_inline)) TileRows(const S* first, int64_t row_stride) : rows(first, row_stride) {}
  __attribute__((always_inline)) auto operator[](int r) const { return load_one(rows.at(r)); }
  __attribute__((always_inline)) void advance(int64_t step) { rows.advance(step); }
};

template <Product P, class V>
CNNEXT_INLINE V add_product(V sum, V x, V y) {
  if constexpr (P == Product::kPairs) {
    return add_pair_products(sum, x, y);
  } else {
    return sum + x * y;
  }
}

// One step of the depth: the products of an element of each row with whole vectors of columns.
template <Product P, class Source, class B, int Rows, int Vectors>
CNNEXT_INLINE void add_products(Vec<Acc<B>> (&sum)[Rows][Vectors], const Source& a, const B* b) {
  using A = Acc<B>;
  Vec<A> y[Vectors];
#pragma GCC unroll 2
  for (int v = 0; v < Vectors; ++v) y[v] = load(b + v * kLanes<A>);
#pragma GCC unroll 14
  for (int r = 0; r < Rows; ++r) {
    const Vec<A> x = broadcast(a[r]);
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) sum[r][v] = add_product<P>(sum[r][v], x, y[v]);
  }
}

template <Product P, class A, class S, class Out, int Rows, int Vectors, int64_t RowStride,
          int64_t DepthStride, int64_t ColumnStride>
void tile(int64_t depth, const S* a, const A* b, TileStrides strides, const Out& out, Ahead* ahead) {
  Vec<A> sum[Rows][Vectors] = {};
  TileRows<S, Rows, RowStride> source(a, strides.row);
  const int64_t a_step = DepthStride > 0 ? DepthStride : strides.a;
  const int64_t b_step = ColumnStride > 0 ? ColumnStride : strides.b;
  const int each = out.far ? int(ceil_div(Rows * kFetchSteps, max_of(depth, kFetchSteps))) : 0;
  int fetched = 0;  // rows of the output
  for (; depth > 0; depth -= kFetchSteps) {
    if (ahead) ahead->fetch();
    for (int end = min_of(fetched + each, Rows); fetched < end; ++fetched)
      out.template fetch<Vectors>(fetched);
    for (int64_t d = min_of(depth, kFetchSteps); d > 0; --d, source.advance(a_step), b += b_step) {
      add_products<P>(sum, source, b);
    }
  }
  out.put(sum);
}

// Small products of several planes one after the other, with no call between them. Sums go on from where the
// last ones of their chain ended, [plane][rows][kCols], and the last of a chain are added to c.
template <class A>
struct PlaneTiles {
  const A *a, *b;
  A *chain, *c;
  int64_t a_plane, b_plane, c_plane;  // from one to the next, in elements; of chain as of c
  bool first, last, add;              // of the chain; to what is in c
};
template <class A, int Rows, int Vectors, int64_t RowStride>
void tile_planes(int planes, int64_t depth, PlaneTiles<A> p, Ahead* ahead) {
  for (; planes > 0; --planes, p.a += p.a_plane, p.b += p.b_plane, p.chain += p.c_plane, p.c += p.c_plane) {
    ahead->fetch();
    Vec<A> sum[Rows][Vectors] = {};
    if (!p.first) {
      for_each_sum<Rows, Vectors>(
          [&](int r, int v) { sum[r][v] = load(p.chain + r * kCols<A> + v * kLanes<A>); });
    }
    TileRows<A, Rows, RowStride> source(p.a, 0);
    const A* b = p.b;
    for (int64_t d = depth; d > 0; --d, source.advance(1), b += kCols<A>)
      add_products<Product::kNumbers>(sum, source, b);
    TileSums<A>{p.last ? p.c : p.chain, p.last && p.add}.put(sum);
  }
}
template <class A, int64_t RowStride>
auto tile_planes_of(int64_t rows, bool narrow) {
  return with_count<kRows>(rows, [=](auto n) {
    return narrow ? &tile_planes<A, n, 1, RowStride> : &tile_planes<A, n, kVectors, RowStride>;
  });
}

// The tile for a number of rows in [1, kRows], one vector wide where `narrow`.
template <Product P, class A, class S, class Out, int64_t RowStride, int64_t DepthStride,
          int64_t ColumnStride>
auto tile_of(int64_t rows, bool narrow) {
  return with_count<kRows>(rows, [=](auto n) {
    return narrow ? &tile<P, A, S, Out, n, 1, RowStride, DepthStride, ColumnStride>
                  : &tile<P, A, S, Out, n, kVectors, RowStride, DepthStride, ColumnStride>;
  });
}

// The product a[rows][depth] * b[depth][cols]: a column of tiles of almost equal height, whole vectors wide.
// Element (row, d) of a is at row * RowStride + d * DepthStride, row d of b at d * ColumnStride. Those are 0
// which only `strides` tells. Meanwhile `ahead` is fetched, if there is one, fetch_calls(rows, depth)
// times.
template <int64_t RowStride, int64_t DepthStride, int64_t ColumnStride, Product P = Product::kNumbers,
          class A, class S, class Out>
void tile_column(int64_t rows, int64_t depth, int64_t cols, const S* a, const A* b, Out out,
                 Ahead* ahead = nullptr, TileStrides strides = {RowStride, DepthStride, ColumnStride}) {
  const bool narrow = cols <= kLanes<A>;
  for (int64_t tiles = ceil_div(rows, kRows), row = 0; tiles > 0; --tiles) {
    const int64_t height = ceil_div(rows - row, tiles);
    const auto run = tile_of<P, A, S, Out, RowStride, DepthStride, ColumnStride>(height, narrow);
    run(depth, a + row * strides.row, b, strides, out.from_row(row), ahead);
    row += height;
  }
}

CNNEXT_INLINE int64_t fetch_calls(int64_t rows, int64_t depth) {
  return ceil_div(rows, kRows) * ceil_div(depth, kFetchSteps);
}

// Whether a column of tiles of this width may go to where only `cols` elements are to be written.
template <class A>
CNNEXT_INLINE bool fills_tiles(int64_t cols) {
  return cols == kCols<A> || cols == kLanes<A>;
}

}  // namespace cnnext::cpu::CNNEXT_ISA
