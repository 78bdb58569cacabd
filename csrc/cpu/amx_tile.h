// The product of a column of tiles by AMX, the tile registers of newer Intel processors: pairs of bfloat16 at
// 16 times the rate at which AVX-512 multiplies float32.
//
// Operands stay where the other products of pairs have them: a register reads 16 rows of 64 bytes, wherever
// they are. The sums of two by two registers go to a buffer in the first-level cache, and from there to the
// output.
#pragma once

#include "fetch_ahead.h"

#if CNNEXT_VECTOR_BYTES == 64

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kAmxRows = 16;             // of a register, at most
constexpr int64_t kAmxPairs = 16;            // pairs of bfloat16, or sums, in a row
constexpr int64_t kAmxCols = 2 * kAmxPairs;  // in a row of the buffer

// Whether the processor has AMX for bfloat16 and the system lets this process use it: Linux wants to be
// asked.
inline bool has_amx() {
  static const bool has = [] {
#if defined(__linux__)
    constexpr unsigned kBFloat16 = 1u << 22, kTiles = 1u << 24;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kBFloat16) == 0 || (d & kTiles) == 0) return false;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
  }();
  return has;
}

// The calling thread's registers, for as long as this lives: 0 to 5 have `rows` rows (sums and rows of a), 6
// and 7 have 16 (of b).
struct TileRegisters {
  __attribute__((always_inline)) explicit TileRegisters(uint8_t n) {
    const struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16];
    } shape = {.rows = {n, n, n, n, n, n, 16, 16}};
    asm volatile("ldtilecfg %0" : : "m"(shape));
  }
  __attribute__((always_inline)) ~TileRegisters() { asm volatile("tilerelease"); }
};

// The instructions, in assembly: older compilers do not know them. Strides are in bytes.
template <int Register>
CNNEXT_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(Register));
}
template <int Register>
CNNEXT_INLINE void tile_load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(Register), "r"(from), "r"(stride) : "memory");
}
template <int Register>
CNNEXT_INLINE void tile_store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(Register), "r"(to), "r"(stride) : "memory");
}
// Sums += A * B: a row of A has 16 pairs, and B has a row for each of them.
template <int Sums, int A, int B>
CNNEXT_INLINE void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(A), "i"(B));
}

// body(0), body(1), ... where the numbers are constants.
template <class Body, int... I>
CNNEXT_INLINE void unroll(std::integer_sequence<int, I...>, Body&& body) {
  (body(std::integral_constant<int, I>()), ...);
}
template <int Count, class Body>
CNNEXT_INLINE void unroll(Body&& body) {
  unroll(std::make_integer_sequence<int, Count>(), body);
}

// 16 pairs of the depth: registers 0 to 3 have the sums, 4 and 5 rows of a, 6 and 7 columns of b. Strips are
// `strip` bytes apart, rows `a_row` and `b_row`.
template <int Strips, int Vectors>
CNNEXT_INLINE void multiply_registers(const char* a, int64_t strip, int64_t a_row, const char* b,
                                      int64_t b_row) {
  unroll<Vectors>([&](auto v) { tile_load<6 + v>(b + v * 64, b_row); });
  unroll<Strips>([&](auto s) {
    tile_load<4 + s % 2>(a + s * strip, a_row);
    unroll<Vectors>([&](auto v) { tile_multiply<s * Vectors + v, 4 + s % 2, 6 + v>(); });
  });
}

// What is left of a depth that is no multiple of 16, filled up with zeros.
struct TileRest {
  alignas(64) float a[4 * kAmxRows][kAmxPairs], b[kAmxPairs][kAmxCols];
};

// sums[strip * 16 + row][kAmxCols] of `Strips` strips of rows.
template <int Strips, int Vectors>
void multiply_strips(int64_t depth, const char* a, int64_t strip, int64_t a_row, const char* b, int64_t b_row,
                     const TileRest& rest, float* sums, Ahead* ahead) {
  unroll<Strips * Vectors>([&](auto i) { tile_zero<i>(); });
  for (; depth >= kAmxPairs; depth -= kAmxPairs, a += 64, b += kAmxPairs * b_row) {
    if (ahead) ahead->fetch();
    multiply_registers<Strips, Vectors>(a, strip, a_row, b, b_row);
  }
  if (depth > 0) {
    multiply_registers<Strips, Vectors>(reinterpret_cast<const char*>(rest.a), kAmxRows * 64, 64,
                                        reinterpret_cast<const char*>(rest.b), sizeof(rest.b[0]));
  }
  unroll<Strips * Vectors>([&](auto i) {
    constexpr int kStrip = i / Vectors, kVector = i % Vectors;
    tile_store<i>(sums + kStrip * kAmxRows * kAmxCols + kVector * kAmxPairs, kAmxCols * sizeof(float));
  });
}

// See tile_column; strides are in elements.
template <class S, class Out>
void amx_column(int64_t rows, int64_t depth, int64_t cols, const S* a, int64_t row_stride, const float* b,
                int64_t column_stride, const Out& out, Ahead* ahead) {
  const int64_t strips = ceil_div(rows, kAmxRows), height = ceil_div(rows, strips);
  const int64_t whole = depth / kAmxPairs * kAmxPairs, vectors = cols <= kAmxPairs ? 1 : 2;
  const TileRegisters registers{uint8_t(height)};
  alignas(64) float sums[4 * kAmxRows * kAmxCols];
  TileRest rest;
  if (whole < depth) {
    __builtin_memset(&rest, 0, sizeof(rest));
    for (int64_t d = whole; d < depth; ++d)
      __builtin_memcpy(rest.b[d - whole], b + d * column_stride, vectors * sizeof(Vec<float>));
  }
  // The last strip may begin inside the one before it, whose rows are not put twice.
  const auto first_of = [&](int64_t strip) { return min_of(strip * height, rows - height); };
  for (int64_t s = 0, taken; s < strips; s += taken) {
    const bool four = vectors == 1 && (s + 4) * height <= rows;
    taken = four ? 4 : min_of(2, strips - s);
    for (int64_t n = 0; whole < depth && n < taken; ++n) {
      for (int64_t r = 0; r < height; ++r)
        __builtin_memcpy(rest.a[n * kAmxRows + r], a + (first_of(s + n) + r) * row_stride + whole,
                         (depth - whole) * sizeof(S));
    }
    const auto run = four         ? &multiply_strips<4, 1>
                     : taken == 1 ? (vectors == 1 ? &multiply_strips<1, 1> : &multiply_strips<1, 2>)
                                  : (vectors == 1 ? &multiply_strips<2, 1> : &multiply_strips<2, 2>);
    const int64_t first = first_of(s), row_bytes = row_stride * sizeof(S);
    run(depth, reinterpret_cast<const char*>(a + first * row_stride), (first_of(s + 1) - first) * row_bytes,
        row_bytes, reinterpret_cast<const char*>(b), column_stride * sizeof(float), rest, sums, ahead);
    for (int64_t n = 0; n < taken; ++n) {
      const float* from = sums + (n * kAmxRows - first_of(s + n)) * kAmxCols;
      for (int64_t r = (s + n) * height; r < first_of(s + n) + height; ++r) {
        for (int v = 0; v < vectors; ++v) {
          out.fetch(int(r), v);
          out.put(int(r), v, load(from + r * kAmxCols + v * kAmxPairs));
        }
      }
    }
  }
}

}  // namespace cnnext::cpu::CNNEXT_ISA

#else

namespace cnnext::cpu::CNNEXT_ISA {
inline bool has_amx() { return false; }
}  // namespace cnnext::cpu::CNNEXT_ISA

#endif  // AVX-512
