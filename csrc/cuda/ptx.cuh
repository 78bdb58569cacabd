// One small function for each instruction that C++ has no words for. No policy. Under the emulator each has
// the emulator's body.
#pragma once

#include "device.cuh"

namespace cnnext::cuda::ptx {

#if defined(__CUDACC__)

// The same number, of which a compiler knows nothing.
CNNEXT_DEVICE float opaque(float x) {
  asm("" : "+f"(x));
  return x;
}

// All ones in the halves where a pair's element is greater than the other's, or is not a number. Pairs of
// bfloat16 have such instructions since sm_90.
CNNEXT_DEVICE uint32_t greater_or_nan(uint32_t pair, uint32_t other, Float16) {
  uint32_t greater, nan;
  asm("set.gt.u32.f16x2 %0, %1, %2;" : "=r"(greater) : "r"(pair), "r"(other));
  asm("set.nan.u32.f16x2 %0, %1, %1;" : "=r"(nan) : "r"(pair));
  return greater | nan;
}
CNNEXT_DEVICE uint32_t greater_or_nan(uint32_t pair, uint32_t other, BFloat16) {
  uint32_t greater = 0, nan = 0;
#if CNNEXT_SM90
  asm("set.gt.u32.bf16x2 %0, %1, %2;" : "=r"(greater) : "r"(pair), "r"(other));
  asm("set.nan.u32.bf16x2 %0, %1, %1;" : "=r"(nan) : "r"(pair));
#endif
  return greater | nan;
}

// Global memory, or zeros. The words come as words and in the order that is written: compilers take 16-bit
// elements apart, and move loads to where they are used.
CNNEXT_DEVICE Pack<uint32_t, 1> load_or_zero(uint32_t condition, const Pack<uint32_t, 1>* from) {
  Pack<uint32_t, 1> words;
  asm volatile(
      "{.reg .pred inside; setp.ne.b32 inside, %2, 0; mov.b32 %0, 0; @inside ld.global.b32 %0, [%1];}"
      : "=&r"(words.at[0])
      : "l"(from), "r"(condition));
  return words;
}
CNNEXT_DEVICE Pack<uint32_t, 2> load_or_zero(uint32_t condition, const Pack<uint32_t, 2>* from) {
  Pack<uint32_t, 2> words;
  asm volatile(
      "{.reg .pred inside; setp.ne.b32 inside, %3, 0; mov.b32 %0, 0; mov.b32 %1, 0;"
      "@inside ld.global.v2.b32 {%0, %1}, [%2];}"
      : "=&r"(words.at[0]), "=&r"(words.at[1])
      : "l"(from), "r"(condition));
  return words;
}

CNNEXT_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes from global to shared memory, asynchronously; those beyond the first `valid` become
// zeros.
CNNEXT_DEVICE void copy_async(void* to, const void* from, int valid) {
#if CNNEXT_SM80
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid)
               : "memory");
#endif
}
CNNEXT_DEVICE void commit_copies() {
#if CNNEXT_SM80
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most that many of this thread's groups of copies are on their way.
template <int kGroupsLeft>
CNNEXT_DEVICE void wait_copies() {
#if CNNEXT_SM80
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
#endif
}

// A barrier in shared memory, of which a phase ends when `count` threads have arrived and all bytes that
// they expect have come. Phases have parities 0, 1, 0, ... Barriers and bulk copies serve no kernel yet: they
// are for a thread block that copies by warps of its own, and tests hold the emulator's to the GPU's.
CNNEXT_DEVICE void mbarrier_init(uint64_t* barrier, int count) {
#if CNNEXT_SM80
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
#endif
#if CNNEXT_SM90
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");  // for bulk copies
#endif
}
CNNEXT_DEVICE void mbarrier_arrive(uint64_t* barrier) {
#if CNNEXT_SM80
  asm volatile("{.reg .b64 state; mbarrier.arrive.shared.b64 state, [%0];}" ::"r"(shared_address(barrier))
               : "memory");
#endif
}
// An arrival that waits for this thread's asynchronous copies so far, though the thread does not.
CNNEXT_DEVICE void mbarrier_arrive_after_copies(uint64_t* barrier) {
#if CNNEXT_SM80
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}
// Waits for the end of the phase of that parity which runs or was the last.
CNNEXT_DEVICE void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
#if CNNEXT_SM80
  uint32_t done = 0;
  while (!done) {
    asm volatile(
        "{\n"
        ".reg .pred ended;\n"
#if CNNEXT_SM90
        "mbarrier.try_wait.parity.shared.b64 ended, [%1], %2;\n"
#else
        "mbarrier.test_wait.parity.shared.b64 ended, [%1], %2;\n"
#endif
        "selp.u32 %0, 1, 0, ended;\n"
        "}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  }
#endif
}
// Arrives, and lets the phase wait for that many bytes of bulk copies.
CNNEXT_DEVICE void mbarrier_arrive_expecting(uint64_t* barrier, int bytes) {
#if CNNEXT_SM90
  asm volatile("{.reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1;}" ::"r"(
                   shared_address(barrier)),
               "r"(bytes)
               : "memory");
#endif
}
// Copies aligned chunks of 16 bytes from global to shared memory by one thread; the barrier counts them.
CNNEXT_DEVICE void copy_bulk(void* to, const void* from, int bytes, uint64_t* barrier) {
#if CNNEXT_SM90
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
#endif
}

// Four matrices of 8 rows of 16 bytes; lane i gives the address of row i % 8 of matrix i / 8. Register m
// holds of matrix m the 4 bytes at row lane / 4, column lane % 4; transposed, the two 16-bit elements of
// rows 2 (lane % 4) and the next at column lane / 4.
template <bool kTransposed>
CNNEXT_DEVICE void ldmatrix(const void* row, uint32_t (&fragment)[4]) {
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(shared_address(row))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(shared_address(row))
                 : "memory");
  }
}

CNNEXT_DEVICE uint32_t load_shared(const uint32_t* from) { return *from; }

// c[16, 8] += a[16, 16] * b[16, 8] for 16-bit types, a[16, 8] * b[8, 8] for TF32.
#define CNNEXT_MMA(shape_and_types)                                       \
  asm volatile("mma.sync.aligned." shape_and_types                        \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, " \
               "%2, %3};"                                                 \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
CNNEXT_DEVICE void mma(Float16, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if CNNEXT_SM80
  CNNEXT_MMA("m16n8k16.row.col.f32.f16.f16.f32");
#endif
}
CNNEXT_DEVICE void mma(BFloat16, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if CNNEXT_SM80
  CNNEXT_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
#endif
}
CNNEXT_DEVICE void mma(float, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if CNNEXT_SM80
  CNNEXT_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
#endif
}
#undef CNNEXT_MMA

// Hopper's matrix products, of operands in shared memory: four warps of a warpgroup issue them together,
// they go on by themselves. Before the first of a group the registers of the sum must be fenced, and what
// threads wrote to shared memory.
CNNEXT_DEVICE void fence_for_wgmma() {
#if CNNEXT_SM90
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
CNNEXT_DEVICE void wgmma_fence() {
#if CNNEXT_SM90A
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
CNNEXT_DEVICE void wgmma_commit() {
#if CNNEXT_SM90A
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Waits until at most that many groups of this warpgroup are going on.
template <int kGroupsLeft>
CNNEXT_DEVICE void wgmma_wait() {
#if CNNEXT_SM90A
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroupsLeft) : "memory");
#endif
}

// Sums are not read before this, which follows the last wait, nor written after it, before the fence: what is
// waited for, or fenced, the compiler does not know.
template <int kCount>
CNNEXT_DEVICE void settle(float (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// Where an operand starts in shared memory: rows of 128 bytes, in eights that are aligned to 1024 bytes, in
// which row i has its 16-byte chunk c at place c ^ i. `to_next_8`: bytes to the next eight rows. Along the
// summed index rows are rows of the matrix. Across it they are numbers of the summed index, and
// `to_next_columns` is what lies between its next 64 columns.
CNNEXT_DEVICE uint64_t wgmma_operand(const void* start, int to_next_8, int to_next_columns) {
  return (uint64_t{1} << 62) | uint64_t(uint32_t(to_next_8) >> 4) << 32 |
         uint64_t(uint32_t(to_next_columns) >> 4) << 16 | (shared_address(start) & 0x3ffff) >> 4;
}
CNNEXT_DEVICE uint64_t wgmma_advance(uint64_t operand, int bytes) { return operand + (bytes >> 4); }

// c[64, 2 kCount] += a[64, 16] * b[16, 2 kCount]. Of the 16 rows of a warp lane i holds row i / 4 and row 8
// more, and of each eight columns numbers 2 (i % 4) and the next: as m16n8 of mma does.
#define CNNEXT_R16(f, i)                                                                                     \
  f(i), f(i + 1), f(i + 2), f(i + 3), f(i + 4), f(i + 5), f(i + 6), f(i + 7), f(i + 8), f(i + 9), f(i + 10), \
      f(i + 11), f(i + 12), f(i + 13), f(i + 14), f(i + 15)
#define CNNEXT_R32(f, i) CNNEXT_R16(f, i), CNNEXT_R16(f, i + 16)
#define CNNEXT_R64(f, i) CNNEXT_R32(f, i), CNNEXT_R32(f, i + 32)
#define CNNEXT_N16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define CNNEXT_N32 \
  CNNEXT_N16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define CNNEXT_N64                                                                                         \
  CNNEXT_N32                                                                                               \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, " \
  "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define CNNEXT_SUM(i) "+f"(c[i])
#define CNNEXT_WGMMA(n, type, registers, names, a_at, b_at, ta_at, tb_at)                                    \
  asm volatile("{.reg .pred add; setp.eq.u32 add, 0, 0; wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type \
               "." type " {" names "}, " a_at ", " b_at ", add, 1, 1, " ta_at ", " tb_at ";}"                \
               : registers(CNNEXT_SUM, 0)                                                                    \
               : "l"(a), "l"(b), "n"(int(kAcrossA)), "n"(int(kAcrossB)))
template <class T, bool kAcrossA, bool kAcrossB, int kCount>
CNNEXT_DEVICE void wgmma(float (&c)[kCount], uint64_t a, uint64_t b) {
  constexpr bool kHalf = std::is_same_v<T, Float16>;
  static_assert(kHalf || std::is_same_v<T, BFloat16>);
  static_assert(kCount == 32 || kCount == 64);
#if CNNEXT_SM90A
  if constexpr (kCount == 32 && kHalf) {
    CNNEXT_WGMMA("64", "f16", CNNEXT_R32, CNNEXT_N32, "%32", "%33", "%34", "%35");
  } else if constexpr (kCount == 32) {
    CNNEXT_WGMMA("64", "bf16", CNNEXT_R32, CNNEXT_N32, "%32", "%33", "%34", "%35");
  } else if constexpr (kHalf) {
    CNNEXT_WGMMA("128", "f16", CNNEXT_R64, CNNEXT_N64, "%64", "%65", "%66", "%67");
  } else {
    CNNEXT_WGMMA("128", "bf16", CNNEXT_R64, CNNEXT_N64, "%64", "%65", "%66", "%67");
  }
#endif
}
#undef CNNEXT_WGMMA

// The same for TF32, c[64, 2 kCount] += a[64, 8] * b[8, 2 kCount], with a in registers: of each warp's 16
// rows as mma has it. Both operands are rounded already; b lies along the summed index.
#define CNNEXT_WGMMA(n, registers, names, a_at, b_at)                                        \
  asm volatile("{.reg .pred add; setp.eq.u32 add, 0, 0; wgmma.mma_async.sync.aligned.m64n" n \
               "k8.f32.tf32.tf32 {" names "}, {" a_at "}, " b_at ", add, 1, 1;}"             \
               : registers(CNNEXT_SUM, 0)                                                    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
template <int kCount>
CNNEXT_DEVICE void wgmma_tf32(float (&c)[kCount], const uint32_t (&a)[4], uint64_t b) {
  static_assert(kCount == 32 || kCount == 64);
#if CNNEXT_SM90A
  if constexpr (kCount == 32) {
    CNNEXT_WGMMA("64", CNNEXT_R32, CNNEXT_N32, "%32, %33, %34, %35", "%36");
  } else {
    CNNEXT_WGMMA("128", CNNEXT_R64, CNNEXT_N64, "%64, %65, %66, %67", "%68");
  }
#endif
}
#undef CNNEXT_WGMMA
#undef CNNEXT_SUM

// Whether the condition holds for any lane of the warp.
CNNEXT_DEVICE bool any(bool condition) { return __any_sync(0xffffffffu, condition); }

// The other lane's x, where lanes differ by the bits of `mask`; for all lanes of a warp.
template <class T>
CNNEXT_DEVICE T shuffle_xor(T x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}

// To the nearest number with a mantissa of 10 bits.
CNNEXT_DEVICE uint32_t round_to_tf32(uint32_t x) {
  uint32_t rounded = x;
#if CNNEXT_SM80
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(x)));
#endif
  return rounded;
}
CNNEXT_DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
CNNEXT_DEVICE uint32_t as_bits(float x) { return __float_as_uint(x); }

#else

inline float opaque(float x) { return x; }
template <class T>
uint32_t greater_or_nan(uint32_t pair, uint32_t other, T) {
  T values[2], others[2];
  memcpy(values, &pair, 4), memcpy(others, &other, 4);
  uint32_t mask = 0;
  for (int i = 0; i < 2; ++i) {
    const float value = to_float(values[i]);
    if (value > to_float(others[i]) || value != value) mask |= 0xffffu << 16 * i;
  }
  return mask;
}
template <int kCount>
Pack<uint32_t, kCount> load_or_zero(uint32_t condition, const Pack<uint32_t, kCount>* from) {
  return load_if<uint32_t, kCount>(condition, from->at, {});
}
inline void copy_async(void* to, const void* from, int valid) { emulator::copy_async(to, from, 16, valid); }
inline void commit_copies() { emulator::commit_copies(); }
template <int kGroupsLeft>
void wait_copies() {
  emulator::wait_copies(kGroupsLeft);
}
inline void mbarrier_init(uint64_t* barrier, int count) { emulator::mbarrier_init(barrier, count); }
inline void mbarrier_arrive(uint64_t* barrier) { emulator::mbarrier_arrive(barrier, 0); }
inline void mbarrier_arrive_after_copies(uint64_t* barrier) {
  emulator::mbarrier_arrive_after_copies(barrier);
}
inline void mbarrier_wait(uint64_t* barrier, uint32_t parity) { emulator::mbarrier_wait(barrier, parity); }
inline void mbarrier_arrive_expecting(uint64_t* barrier, int bytes) {
  emulator::mbarrier_arrive(barrier, bytes);
}
inline void copy_bulk(void* to, const void* from, int bytes, uint64_t* barrier) {
  emulator::copy_bulk(to, from, bytes, barrier);
}
template <bool kTransposed>
void ldmatrix(const void* row, uint32_t (&fragment)[4]) {
  emulator::ldmatrix(row, kTransposed, fragment);
}
inline uint32_t load_shared(const uint32_t* from) { return emulator::load_shared(from); }
template <class T>
void mma(T, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  using emulator::Number;
  emulator::mma(std::is_same_v<T, Float16>    ? Number::kFloat16
                : std::is_same_v<T, BFloat16> ? Number::kBFloat16
                                              : Number::kTf32,
                c, a, b);
}
inline void fence_for_wgmma() { emulator::fence_for_wgmma(); }
inline void wgmma_fence() {}
inline void wgmma_commit() { emulator::wgmma_commit(); }
template <int kGroupsLeft>
void wgmma_wait() {
  emulator::wgmma_wait(kGroupsLeft);
}
template <int kCount>
void settle(float (&)[kCount]) {}
inline uint64_t wgmma_operand(const void* start, int to_next_8, int to_next_columns) {
  return emulator::wgmma_operand(start, to_next_8, to_next_columns);
}
inline uint64_t wgmma_advance(uint64_t operand, int bytes) { return operand + (bytes >> 4); }
template <class T, bool kAcrossA, bool kAcrossB, int kCount>
void wgmma(float (&c)[kCount], uint64_t a, uint64_t b) {
  constexpr bool kHalf = std::is_same_v<T, Float16>;
  emulator::wgmma(kHalf ? emulator::Number::kFloat16 : emulator::Number::kBFloat16, c, kCount, a, kAcrossA, b,
                  kAcrossB);
}
template <int kCount>
void wgmma_tf32(float (&c)[kCount], const uint32_t (&a)[4], uint64_t b) {
  emulator::wgmma_tf32(c, kCount, a, b);
}
inline bool any(bool condition) { return emulator::any(condition); }
template <class T>
T shuffle_xor(T x, int mask) {
  return emulator::shuffle_xor(x, mask);
}
inline uint32_t round_to_tf32(uint32_t x) {
  return emulator::bits_of(emulator::round_to_tf32(emulator::float_of(x)));
}
inline float as_float(uint32_t bits) { return emulator::float_of(bits); }
inline uint32_t as_bits(float x) { return emulator::bits_of(x); }

#endif

}  // namespace cnnext::cuda::ptx
