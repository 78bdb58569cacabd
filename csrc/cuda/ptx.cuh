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

// Copies 16 bytes from global to shared memory, asynchronously; those beyond the first `valid` become zeros.
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

// A barrier in shared memory, of which a phase ends when `count` threads have arrived and all bytes that they
// expect have come. Phases have parities 0, 1, 0, ...
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
// holds of matrix m the 4 bytes at row lane / 4, column lane % 4; transposed, the two 16-bit elements of rows
// 2 (lane % 4) and the next at column lane / 4.
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
