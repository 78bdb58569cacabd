// AMX, the tile registers of newer Intel processors: products of pairs of bfloat16 at 16 times the rate at
// which AVX-512 multiplies float32. A register reads 16 rows of 64 bytes, wherever they are. For the tests
// tests/emulator stands in for the processor.
#pragma once

#include "vec.h"

#if CNNEXT_VECTOR_BYTES == 64

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kAmxRows = 16;             // of a register, at most
constexpr int64_t kAmxPairs = 16;            // pairs of bfloat16, or sums, in a row
constexpr int64_t kAmxCols = 2 * kAmxPairs;  // of a panel: two registers side by side

}  // namespace cnnext::cpu::CNNEXT_ISA

#ifdef CNNEXT_EMULATED_AMX
#include "amx.h"
#else

namespace cnnext::cpu::CNNEXT_ISA {

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

}  // namespace cnnext::cpu::CNNEXT_ISA

#endif  // the processor's

namespace cnnext::cpu::CNNEXT_ISA {

// body(0), body(1), ... where the numbers are constants.
template <class Body, int... I>
CNNEXT_INLINE void unroll(std::integer_sequence<int, I...>, Body&& body) {
  (body(std::integral_constant<int, I>()), ...);
}
template <int Count, class Body>
CNNEXT_INLINE void unroll(Body&& body) {
  unroll(std::make_integer_sequence<int, Count>(), body);
}

}  // namespace cnnext::cpu::CNNEXT_ISA

#else

namespace cnnext::cpu::CNNEXT_ISA {
inline bool has_amx() { return false; }
}  // namespace cnnext::cpu::CNNEXT_ISA

#endif  // AVX-512

namespace cnnext::cpu::CNNEXT_ISA {
inline const char* amx_excludes(const ConvProblem& p) {
  if (p.dtype != DType::kBFloat16 && p.dtype != DType::kFloat32) return "takes bfloat16 and float32";
  return has_amx() ? nullptr : "this processor has no AMX";
}
}  // namespace cnnext::cpu::CNNEXT_ISA
