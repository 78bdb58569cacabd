// Stands in for csrc/cpu/amx_tile.h's instructions: the same names, in plain C++. A register that is used
// outside of its configuration ends the program, as the processor would.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace cnnext::cpu::CNNEXT_ISA {

inline bool has_amx() { return true; }

struct EmulatedTiles {
  bool configured = false;
  uint8_t rows[8] = {};
  unsigned char data[8][16][64];

  void configure(uint8_t n) {
    require(!configured, "registers are configured a second time");
    require(n >= 1 && n <= 16, "a register has 1 to 16 rows");
    configured = true;
    for (int r = 0; r < 8; ++r) rows[r] = r < 6 ? n : 16;
    std::memset(data, 0, sizeof(data));
  }
  void release() { configured = false; }
  static void require(bool holds, const char* otherwise) {
    if (holds) return;
    std::fprintf(stderr, "AMX: %s\n", otherwise);
    std::abort();
  }
};
inline EmulatedTiles& emulated_tiles() {
  thread_local EmulatedTiles tiles;
  return tiles;
}

struct TileRegisters {
  explicit TileRegisters(uint8_t n) { emulated_tiles().configure(n); }
  ~TileRegisters() { emulated_tiles().release(); }
};

template <int Register>
void tile_zero() {
  EmulatedTiles& t = emulated_tiles();
  t.require(t.configured, "tilezero without a configuration");
  std::memset(t.data[Register], 0, sizeof(t.data[Register]));
}
template <int Register>
void tile_load(const void* from, int64_t stride) {
  EmulatedTiles& t = emulated_tiles();
  t.require(t.configured, "tileloadd without a configuration");
  std::memset(t.data[Register], 0, sizeof(t.data[Register]));
  for (int i = 0; i < t.rows[Register]; ++i)
    std::memcpy(t.data[Register][i], static_cast<const char*>(from) + i * stride, 64);
}
template <int Register>
void tile_store(void* to, int64_t stride) {
  EmulatedTiles& t = emulated_tiles();
  t.require(t.configured, "tilestored without a configuration");
  for (int i = 0; i < t.rows[Register]; ++i)
    std::memcpy(static_cast<char*>(to) + i * stride, t.data[Register][i], 64);
}

// Products of the number with these bits and sixteen others, each rounded once with its sum.
inline void add_products(uint32_t number, const uint32_t* others, Vec<float>& sums) {
  const Vec<float> factor = broadcast(bit_cast<float>(number));
  Vec<float> factors;
  std::memcpy(&factors, others, sizeof(factors));
  asm("vfmadd231ps %1, %2, %0" : "+v"(sums) : "v"(factor), "v"(factors));
}

// Sums += A * B as Intel's manual defines tdpbf16ps: the even and the odd elements of the pairs are summed
// apart with one rounding for each product, then added; subnormal numbers count as zero.
template <int Sums, int A, int B>
void tile_multiply() {
  EmulatedTiles& t = emulated_tiles();
  t.require(t.configured, "tdpbf16ps without a configuration");
  t.require(t.rows[Sums] == t.rows[A], "tdpbf16ps of registers of different heights");
  const unsigned before = __builtin_ia32_stmxcsr();
  constexpr unsigned kSubnormalsAreZero = 0x8040;
  __builtin_ia32_ldmxcsr(before | kSubnormalsAreZero);
  asm volatile("" : : : "memory");
  for (int i = 0; i < t.rows[Sums]; ++i) {
    Vec<float> even = {}, odd = {}, sums;
    for (int pair = 0; pair < 16; ++pair) {
      uint32_t a, b[16], low[16], high[16];
      std::memcpy(&a, t.data[A][i] + 4 * pair, 4);
      std::memcpy(b, t.data[B][pair], 64);
      for (int n = 0; n < 16; ++n) low[n] = b[n] << 16, high[n] = b[n] & 0xffff0000;
      add_products(a << 16, low, even);
      add_products(a & 0xffff0000, high, odd);
    }
    std::memcpy(&sums, t.data[Sums][i], 64);
    sums += even + odd;
    std::memcpy(t.data[Sums][i], &sums, 64);
  }
  asm volatile("" : : : "memory");
  __builtin_ia32_ldmxcsr(before);
}

}  // namespace cnnext::cpu::CNNEXT_ISA
