// One instruction at a time, on fixed numbers, printed. Compiled by nvcc for a GPU and by g++ with the
// emulator: both must print the same. Numbers are such that every sum is exact, whatever its order.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <vector>

#include "cuda/tile_tf32_sm90.cuh"

namespace cnnext::cuda {

constexpr int kWarp = 32;

// A value of each type for element i: small whole numbers, and for TF32 with bits that it does not hold.
template <class T>
CNNEXT_DEVICE T value(int i) {
  T x;
  convert(float(i * 7 % 11 - 5), &x);
  return x;
}
template <>
CNNEXT_DEVICE float value<float>(int i) {
  return float(i * 7 % 11 - 5) * (1 + 5.0f / 8192);
}

// Fragments by ldmatrix from matrices whose 16-bit element number i is i.
template <bool kTransposed>
CNNEXT_LAUNCH(kWarp, 1)
read_matrices(const uint32_t*, uint32_t* to) {
  auto* memory = shared_memory<uint16_t>();
  for (int i = threadIdx.x; i < 256; i += kWarp) memory[i] = static_cast<uint16_t>(i);
  __syncthreads();
  uint32_t fragment[4];
  ptx::ldmatrix<kTransposed>(memory + threadIdx.x * 8, fragment);
  for (int r = 0; r < 4; ++r) to[threadIdx.x * 4 + r] = fragment[r];
}

template <class T>
CNNEXT_LAUNCH(kWarp, 1)
multiply(const uint32_t*, uint32_t* to) {
  constexpr int kElements = 4 / sizeof(T);
  Pack<T, kElements> pack[6];
  for (int r = 0; r < 6; ++r) {
    for (int e = 0; e < kElements; ++e) pack[r].at[e] = value<T>((threadIdx.x * 6 + r) * kElements + e);
  }
  uint32_t a[4], b[2];
  float c[4] = {1, 2, 3, 4};
  for (int r = 0; r < 4; ++r) a[r] = *reinterpret_cast<uint32_t*>(&pack[r]);
  for (int r = 0; r < 2; ++r) b[r] = *reinterpret_cast<uint32_t*>(&pack[4 + r]);
  ptx::mma(T(), c, a, b);
  for (int r = 0; r < 4; ++r) to[threadIdx.x * 4 + r] = ptx::as_bits(c[r]);
}

// A warpgroup's product of 64 rows, 64 columns and 128 bytes of summed numbers: of each thread the sum of its
// elements times their places. Floats are whole numbers, and A's come through registers.
template <class T, bool kAcrossA, bool kAcrossB>
CNNEXT_LAUNCH(4 * kWarp, 1)
multiply_in_shared(const uint32_t*, uint32_t* to) {
  constexpr int kSide = 64, kThreads = 4 * kWarp;
  using A = OperandStageSm90<T, kSide, kAcrossA, kThreads>;
  using B = OperandStageSm90<T, kSide, kAcrossB, kThreads>;
  using Whole = std::conditional_t<std::is_same_v<T, float>, BFloat16, T>;
  T *a = shared_memory<T>(), *b = a + A::kElements;
  for (int i = threadIdx.x; i < A::kElements; i += kThreads) {
    const int row = i / A::kDepth, column = i % A::kDepth, chunk = column / kChunk<T>, e = column % kChunk<T>;
    convert(to_float(value<Whole>(i)), &a[A::place(row, chunk) + e]);
    convert(to_float(value<Whole>(3 * i + 1)), &b[B::place(row, chunk) + e]);
  }
  ptx::fence_for_wgmma();
  __syncthreads();
  float c[kSide / 2];
  for (int i = 0; i < kSide / 2; ++i) c[i] = float(i);
  uint32_t x[4][4];
  if constexpr (std::is_same_v<T, float>) {
    const int row = threadIdx.x / kWarp * 16 + threadIdx.x % 16, half = threadIdx.x % kWarp / 16;
    for (int k = 0; k < 4; ++k) ptx::ldmatrix<false>(a + A::place(row, 2 * k + half), x[k]);
  }
  ptx::settle(c);
  ptx::wgmma_fence();
  for (int k = 0; k < 4; ++k) {
    const uint64_t b_at = ptx::wgmma_advance(B::operand(b, 0), k * B::kStep);
    if constexpr (std::is_same_v<T, float>) {
      ptx::wgmma_tf32(c, x[k], b_at);
    } else {
      ptx::wgmma<T, kAcrossA, kAcrossB>(c, ptx::wgmma_advance(A::operand(a, 0), k * A::kStep), b_at);
    }
  }
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  ptx::settle(c);
  int sum = 0;
  for (int i = 0; i < kSide / 2; ++i) sum += int(c[i]) * (i + 1);
  to[threadIdx.x] = uint32_t(sum);
}

// Rounding to TF32: halves go away from zero; infinity stays.
CNNEXT_LAUNCH(kWarp, 1) round_numbers(const uint32_t*, uint32_t* to) {
  const uint32_t bits = threadIdx.x == 31 ? 0x7f800000u : 0x3f800000u + threadIdx.x * 0x800u;
  for (int r = 0; r < 4; ++r) to[threadIdx.x * 4 + r] = ptx::round_to_tf32(bits | (r % 2 ? 0x80000000u : 0));
}

// What a lane gets from others: 4 bytes and 8, and whether any has it.
CNNEXT_LAUNCH(kWarp, 1) exchange(const uint32_t*, uint32_t* to) {
  const int lane = threadIdx.x;
  to[lane * 4] = ptx::as_bits(ptx::shuffle_xor(float(lane), 5));
  to[lane * 4 + 1] = uint32_t(ptx::shuffle_xor(lane + double(1 << 30), 16));
  to[lane * 4 + 2] = ptx::any(lane == 9);
  to[lane * 4 + 3] = ptx::any(lane > 31);
}

// To 16 bits and back: halfway numbers, one that overflows, a subnormal one, infinity. And a product's high
// half.
CNNEXT_LAUNCH(kWarp, 1) convert_numbers(const uint32_t*, uint32_t* to) {
  const int lane = threadIdx.x;
  const uint32_t bits = lane == 29   ? 0x477ff000u
                        : lane == 30 ? 0x33c00000u
                        : lane == 31 ? 0xff800000u
                                     : 0x3f800000u + lane * 0x1000u;
  Float16 half;
  BFloat16 brain;
  convert(ptx::as_float(bits), &half);
  convert(ptx::as_float(bits), &brain);
  to[lane * 4] = half.bits | uint32_t{brain.bits} << 16;
  to[lane * 4 + 1] = ptx::as_bits(to_float(half));
  to[lane * 4 + 2] = ptx::as_bits(to_float(brain));
  to[lane * 4 + 3] = high_product(bits, 0x9e3779b9u);
}

// Chunks of which some bytes are zeros.
CNNEXT_LAUNCH(kWarp, 1) copy(const uint32_t* from, uint32_t* to) {
  auto* memory = shared_memory<uint32_t>();
  ptx::copy_async(memory + threadIdx.x * 4, from + threadIdx.x * 4, threadIdx.x % 5 * 4);
  ptx::commit_copies();
  ptx::wait_copies<0>();
  __syncthreads();
  for (int r = 0; r < 4; ++r) to[threadIdx.x * 4 + r] = memory[(31 - threadIdx.x) * 4 + r];
}

// Two warps and two stages: one copies four numbers a lane, step by step, the other adds them up. `full` and
// `empty` tell them when. kBulk: one lane copies all of a step.
constexpr int kSteps = 7, kRing = 2;
template <bool kBulk>
CNNEXT_LAUNCH(2 * kWarp, 1)
ring(const uint32_t* from, uint32_t* to) {
  auto* memory = shared_memory<uint32_t>();  // [kRing][kWarp * 4]
  auto* full = reinterpret_cast<uint64_t*>(memory + kRing * kWarp * 4);
  uint64_t* empty = full + kRing;
  const int lane = threadIdx.x % kWarp;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kRing; ++stage) {
      ptx::mbarrier_init(full + stage, kBulk ? 1 : kWarp);
      ptx::mbarrier_init(empty + stage, kWarp);
    }
  }
  __syncthreads();
  uint32_t sum[4] = {};
  for (int step = 0; step < kSteps; ++step) {
    const int stage = step % kRing, parity = step / kRing % 2;
    uint32_t* place = memory + stage * kWarp * 4;
    if (threadIdx.x < kWarp) {
      if (kBulk && lane > 0) continue;                // who waits without arriving can miss a phase
      ptx::mbarrier_wait(empty + stage, 1 - parity);  // the phase before the first counts as ended
      if (!kBulk) {
        ptx::copy_async(place + lane * 4, from + (lane + step) % kWarp * 4, 16);
        ptx::mbarrier_arrive_after_copies(full + stage);
      } else {
        ptx::mbarrier_arrive_expecting(full + stage, (kWarp - step) * 16);
        ptx::copy_bulk(place, from + step * 4, (kWarp - step) * 16, full + stage);
      }
    } else {
      ptx::mbarrier_wait(full + stage, parity);
      const int at = kBulk ? lane % (kWarp - step) : lane;
      for (int r = 0; r < 4; ++r) sum[r] = sum[r] * 3 + place[at * 4 + r];
      ptx::mbarrier_arrive(empty + stage);
    }
  }
  for (int r = 0; r < 4; ++r) {
    if (threadIdx.x >= kWarp) to[lane * 4 + r] = sum[r];
  }
}

}  // namespace cnnext::cuda

namespace {

using namespace cnnext::cuda;

constexpr int kWords = kWarp * 4;

uint32_t* allocate() {
#if defined(__CUDACC__)
  uint32_t* memory;
  check(cudaMalloc(&memory, kWords * 4));
#else
  auto* memory = static_cast<uint32_t*>(std::aligned_alloc(128, kWords * 4));
  cnnext::emulator::add_region(memory, kWords * 4);
#endif
  return memory;
}

void print(const char* name, void (*kernel)(const uint32_t*, uint32_t*), const uint32_t* from,
           int threads = kWarp) {
  uint32_t* to = allocate();
  launch(kernel, Grid{1}, threads, 16 * 1024, Stream(), from, to);
  std::vector<uint32_t> words(kWords);
#if defined(__CUDACC__)
  check(cudaMemcpy(words.data(), to, kWords * 4, cudaMemcpyDeviceToHost));
#else
  words.assign(to, to + kWords);
#endif
  std::printf("%s", name);
  for (const uint32_t word : words) std::printf(" %08x", word);
  std::printf("\n");
}

// This GPU's compute capability.
int major_capability() {
  int major = 9;
#if defined(__CUDACC__)
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
#endif
  return major;
}

}  // namespace

int main(int count, char** arguments) try {
#if !defined(__CUDACC__)
  if (count > 1) cnnext::emulator::set_seed(std::atoi(arguments[1]));
#endif
  std::vector<uint32_t> numbers(kWords);
  for (int i = 0; i < kWords; ++i) numbers[i] = 1000 + i;
  uint32_t* from = allocate();
#if defined(__CUDACC__)
  check(cudaMemcpy(from, numbers.data(), kWords * 4, cudaMemcpyHostToDevice));
#else
  std::copy(numbers.begin(), numbers.end(), from);
#endif
  print("ldmatrix", read_matrices<false>, from);
  print("ldmatrix.trans", read_matrices<true>, from);
  print("mma.f16", multiply<cnnext::Float16>, from);
  print("mma.bf16", multiply<cnnext::BFloat16>, from);
  print("mma.tf32", multiply<float>, from);
  print("cvt.rna.tf32", round_numbers, from);
  print("shfl", exchange, from);
  print("cvt", convert_numbers, from);
  print("cp.async", copy, from);
  print("mbarrier", ring<false>, from, 2 * kWarp);
  if (major_capability() >= 9) print("cp.async.bulk", ring<true>, from, 2 * kWarp);
  if (major_capability() == 9) {
    print("wgmma.f16", multiply_in_shared<cnnext::Float16, false, false>, from, 4 * kWarp);
    print("wgmma.bf16", multiply_in_shared<cnnext::BFloat16, false, false>, from, 4 * kWarp);
    print("wgmma.bf16.across", multiply_in_shared<cnnext::BFloat16, true, true>, from, 4 * kWarp);
    print("wgmma.f16.across", multiply_in_shared<cnnext::Float16, false, true>, from, 4 * kWarp);
    print("wgmma.tf32", multiply_in_shared<float, false, false>, from, 4 * kWarp);
  }
} catch (const std::exception& error) {
  std::printf("error: %s\n", error.what());
  return 1;
}
