// Runs the CUDA kernels' own sources on the CPU: each thread of a block is a fiber. What it checks:
// - the order in which fibers run and in which asynchronous copies arrive is random, by a seed, and in every
// other block warps run ahead of each other;
// - the destination of an asynchronous copy is poisoned until it is waited for, shared memory from the start;
// - vector accesses and asynchronous copies are aligned and stay inside a tensor or the block's shared
// memory;
// - mbarriers count arrivals and bytes; a phase that never ends is an error, not a hang;
// - asynchronous matrix products read their operands and write their sums as late as at the wait, or earlier;
// what threads wrote to shared memory they find only behind a fence and a barrier;
// - all threads reach every barrier, all lanes every instruction of a warp: else the launch fails by name.
// It counts bank conflicts of ldmatrix and of single loads. Of a GPU's limits it knows shared memory and the
// size of a grid; it knows no memory model.
#pragma once

#include <setjmp.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/kernel.h"

namespace cnnext::emulator {

struct Dim {
  unsigned x = 0, y = 0, z = 0;
};

constexpr int kWarp = 32;
constexpr int kMostShared = 113 * 1024;  // bytes of a block, of which two find room on 9.0
constexpr unsigned char kPoison = 0xff;  // NaN in every type

struct Copy {
  void* to;
  const void* from;
  int bytes, valid;  // the rest is zeros
};

struct Warp {
  void* slot[kWarp];
  const void* what = nullptr;  // the instruction that its lanes wait for
  int arrived = 0;
};

enum class State { kReady, kBarrier, kWarp, kMbarrier, kDone };

struct Product {  // c[64, 2 count] += a[64, depth] * b[depth, 2 count], this thread's part
  int number;
  float* c;
  int count;
  uint64_t a, b;
  bool across_a, across_b;
  std::vector<float> rows;  // of a, this thread's two, where registers hold it
};

struct Fiber {
  Dim thread;
  int lane = 0;
  Warp* warp = nullptr;
  State state = State::kReady;
  std::vector<Copy> open;                  // issued, not in a group yet
  std::vector<std::vector<Copy>> pending;  // groups, the oldest first
  std::vector<Product> open_products;
  std::vector<std::vector<Product>> products;  // groups
  bool unfenced = false;                       // copied to shared memory what matrix products may not see yet
};

struct Launch {
  Dim block, grid, block_size;
};

extern Fiber* current;
extern Launch launched;
extern int64_t bank_conflicts;
extern int64_t most_blocks;  // of the first and of the last of a launch that run; 0 for all
extern int most_shared;      // bytes that a block may have
extern unsigned char* shared;

[[noreturn]] void fail(const std::string& message);  // ends the launch
void note(const std::string& message);               // the same, once the scheduler runs
void set_seed(unsigned seed);
unsigned random();
void add_region(const void* begin, int64_t bytes);
void clear_regions();
void check_access(const void* at, int64_t bytes);
void check_inside(const void* at, int64_t bytes);
bool all_is_fenced();       // whether all threads had fenced what they copied when the last barrier ended
void suspend(State state);  // until the state is woken
void wake(State state);     // all threads of the block that wait so
void barrier();
// Waits for all lanes of the warp; the last one to arrive runs what(the lanes' arguments).
void together(void (*what)(void**), void* argument);
void run(Dim grid, int threads, int shared_bytes, const std::function<void()>& body);
void reset_instructions();  // for a new block
bool deliver();             // ends one asynchronous copy that an mbarrier counts; false if there is none

template <class... Parameters>
void launch(void (*kernel)(Parameters...), cuda::Grid grid, int threads, int shared_bytes,
            const cuda::Stream&, const Parameters&... parameters) {
  if (grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
    throw std::runtime_error("the grid is too large");
  const Dim size = {unsigned(grid.x), unsigned(grid.y), unsigned(grid.z)};
  run(size, threads, shared_bytes, [&] { kernel(parameters...); });
}

template <class... Parameters>
int compiled_arch(void (*)(Parameters...)) {
  return 90;
}
template <class... Parameters>
bool has_body(void (*)(Parameters...)) {
  return true;
}

template <class T>
T* shared_memory() {
  return reinterpret_cast<T*>(shared);
}

inline void fail_unless(bool condition) {
  if (!condition) fail("an assertion of the kernel failed");
}
inline uint32_t high_product(uint32_t a, uint32_t b) { return uint64_t{a} * b >> 32; }

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float to_float(Float16 x) {
  _Float16 half;
  std::memcpy(&half, &x, 2);
  return half;
}
inline float to_float(BFloat16 x) { return float_of(uint32_t{x.bits} << 16); }
inline void convert(float x, Float16* to) {
  const _Float16 half = x;
  std::memcpy(to, &half, 2);
}
inline void convert(float x, BFloat16* to) {
  const uint32_t bits = bits_of(x);
  to->bits = x != x ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// The instructions of ptx.cuh.
void copy_async(void* to, const void* from, int bytes, int valid);
void commit_copies();
void wait_copies(int groups_left);
void ldmatrix(const void* row, bool transposed, uint32_t* fragment);
uint32_t load_shared(const uint32_t* from);
void mbarrier_init(void* address, int count);
void mbarrier_arrive(void* address, int expected_bytes);
void mbarrier_arrive_after_copies(void* address);
void mbarrier_wait(void* address, bool parity);
void copy_bulk(void* to, const void* from, int bytes, void* address);
enum class Number { kFloat16, kBFloat16, kTf32 };
void mma(Number number, float* c, const uint32_t* a, const uint32_t* b);
void fence_for_wgmma();
void wgmma_commit();
void wgmma_wait(int groups_left);
uint64_t wgmma_operand(const void* start, int to_next_8, int to_next_columns);
void wgmma(Number number, float* c, int count, uint64_t a, bool across_a, uint64_t b, bool across_b);
void wgmma_tf32(float* c, int count, const uint32_t* a, uint64_t b);
bool any(bool condition);
float shuffle_xor(float x, int mask);
double shuffle_xor(double x, int mask);
inline float round_to_tf32(float x) {  // to nearest, ties away from zero
  return x - x == 0 ? float_of((bits_of(x) + 0x1000) & ~0x1fffu) : x;
}

}  // namespace cnnext::emulator

#define threadIdx cnnext::emulator::current->thread
#define blockIdx cnnext::emulator::launched.block
#define gridDim cnnext::emulator::launched.grid
#define blockDim cnnext::emulator::launched.block_size
#define __restrict__
inline void __syncthreads() { cnnext::emulator::barrier(); }
// Whether the condition holds for any thread of the block.
bool __syncthreads_or(bool condition);
