// What every CUDA kernel is written against: element types, launches, division, shared memory. No torch.
//
// The same sources are compiled by g++ for the tests' emulator (tests/emulator), which stands in for the CUDA
// runtime: nothing here or in the kernels may use a feature of CUDA that ptx.cuh or the emulator does not
// wrap.
#pragma once

#include "kernel.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#undef NDEBUG  // an index that the user gives is checked in every build
#include <cassert>
#include <stdexcept>
#include <string>
#define CNNEXT_DEVICE __device__ __forceinline__
#define CNNEXT_LAUNCH(kThreads, kBlocks) __global__ void __launch_bounds__(kThreads, kBlocks)
#else
#include "emulator.h"
#define CNNEXT_DEVICE inline
#define CNNEXT_LAUNCH(kThreads, kBlocks) void
#endif

// Bodies that need a newer GPU are left out of the code for older ones.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define CNNEXT_SM80 1
#else
#define CNNEXT_SM80 0
#endif
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define CNNEXT_SM90 1
#else
#define CNNEXT_SM90 0
#endif
// Hopper's matrix products are in no code for newer GPUs.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CNNEXT_SM90A 1
#else
#define CNNEXT_SM90A 0
#endif

namespace cnnext::cuda {

#if defined(__CUDACC__)

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA error: ") + cudaGetErrorString(error));
}

template <class... Parameters>
cudaFuncAttributes attributes_of(void (*kernel)(Parameters...)) {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel));
  return attributes;
}
// The architecture that this GPU's code of a kernel was compiled for, 10 * major + minor: an older one than
// its own where the driver compiles PTX.
template <class... Parameters>
int compiled_arch(void (*kernel)(Parameters...)) {
  return attributes_of(kernel).ptxVersion;
}
// Whether this GPU's code of a kernel of matrix products is more than an empty body, which takes few
// registers.
template <class... Parameters>
bool has_body(void (*kernel)(Parameters...)) {
  return attributes_of(kernel).numRegs > 32;
}

// Starts one kernel on the stream. `shared` is in bytes.
template <class... Parameters>
void launch(void (*kernel)(Parameters...), Grid grid, int threads, int shared, const Stream& stream,
            const Parameters&... parameters) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (grid.x > kMostGridX) throw std::runtime_error("cnnext: more blocks than a grid has");
  if (shared > 48 * 1024) {  // more than every GPU has must be asked for
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  }
  kernel<<<dim3(grid.x, grid.y, grid.z), threads, shared, static_cast<cudaStream_t>(stream.handle)>>>(
      parameters...);
  check(cudaGetLastError());
}

template <class T>
CNNEXT_DEVICE T* shared_memory() {
  extern __shared__ __align__(1024) unsigned char cnnext_shared[];  // as wgmma's operands must lie
  return reinterpret_cast<T*>(cnnext_shared);
}

CNNEXT_DEVICE float to_float(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }
CNNEXT_DEVICE float to_float(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
CNNEXT_DEVICE void convert(float x, Float16* to) { to->bits = __half_as_ushort(__float2half_rn(x)); }
CNNEXT_DEVICE void convert(float x, BFloat16* to) { to->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
CNNEXT_DEVICE uint32_t high_product(uint32_t a, uint32_t b) { return __umulhi(a, b); }
CNNEXT_DEVICE void fail_unless(bool condition) { assert(condition); }

#else

using emulator::compiled_arch;
using emulator::convert;
using emulator::fail_unless;
using emulator::has_body;
using emulator::high_product;
using emulator::launch;
using emulator::shared_memory;
using emulator::to_float;

#endif

CNNEXT_DEVICE float to_float(float x) { return x; }
CNNEXT_DEVICE double to_float(double x) { return x; }
CNNEXT_DEVICE void convert(float x, float* to) { *to = x; }
CNNEXT_DEVICE void convert(double x, double* to) { *to = x; }

// Arithmetic is done in Acc<T>: 16-bit types compute and accumulate in float.
template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

// kCount elements that are read and written at once, aligned to all of them.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T at[kCount];
};
template <class T>
constexpr int kPerVector = 16 / int(sizeof(T));  // elements in the widest access

template <class T, int kCount>
CNNEXT_DEVICE Pack<T, kCount> load_pack(const T* from) {
#if !defined(__CUDACC__)
  emulator::check_access(from, sizeof(T) * kCount);
#endif
  return *reinterpret_cast<const Pack<T, kCount>*>(from);
}
// Many of these one after the other are on their way at once, where loads within branches wait for each
// other.
template <class T, int kCount>
CNNEXT_DEVICE Pack<T, kCount> load_if(bool condition, const T* from, const Pack<T, kCount>& otherwise) {
  if constexpr (sizeof(otherwise) % 4 == 0) {  // or compilers choose each 16-bit element by itself
    constexpr int kWords = sizeof(otherwise) / 4;
    Pack<uint32_t, kWords> words;
    memcpy(&words, &otherwise, sizeof(words));
    if (condition) words = load_pack<uint32_t, kWords>(reinterpret_cast<const uint32_t*>(from));
    Pack<T, kCount> result;
    memcpy(&result, &words, sizeof(words));
    return result;
  } else {
    return condition ? load_pack<T, kCount>(from) : otherwise;
  }
}
template <class T, int kCount>
CNNEXT_DEVICE void store_shared(T* to, const Pack<T, kCount>& values) {
#if !defined(__CUDACC__)
  emulator::check_access(to, sizeof(T) * kCount);
#endif
  *reinterpret_cast<Pack<T, kCount>*>(to) = values;
}
// To global memory. nvcc splits the store of a struct into words, but not this one.
template <class T, int kCount>
CNNEXT_DEVICE void store_pack(T* to, const Pack<T, kCount>& values) {
#if defined(__CUDACC__)
  if constexpr (sizeof(values) == 16) {
    uint4 words;
    memcpy(&words, &values, 16);
    return __stwb(reinterpret_cast<uint4*>(to), words);
  } else if constexpr (sizeof(values) == 8) {
    uint2 words;
    memcpy(&words, &values, 8);
    return __stwb(reinterpret_cast<uint2*>(to), words);
  } else if constexpr (sizeof(values) == 4) {
    uint32_t words;
    memcpy(&words, &values, 4);
    *reinterpret_cast<uint32_t*>(to) = words;
    return;
  }
#endif
  store_shared(to, values);
}

// Division by a number that the host knows, of dividends below 2^31: a multiplication.
struct Divisor {
  uint32_t by = 1, magic = 1, shift = 0;

  Divisor() = default;
  explicit Divisor(int64_t divisor) : by(static_cast<uint32_t>(divisor)) {
    while ((uint64_t{1} << shift) < by) ++shift;
    magic = static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift) - by)) / by + 1);
  }
#if defined(__CUDACC__)
  __device__ __forceinline__
#endif
      uint32_t quotient(uint32_t x) const {
    return (high_product(x, magic) + x) >> shift;
  }
};

// Takes the remainder by `divisor` off x, which becomes the quotient.
CNNEXT_DEVICE int split(uint32_t& x, const Divisor& divisor) {
  const uint32_t quotient = divisor.quotient(x), remainder = x - quotient * divisor.by;
  x = quotient;
  return static_cast<int>(remainder);
}

CNNEXT_DEVICE int split(int64_t& x, const Divisor& divisor) {
  const int64_t quotient = x / divisor.by;
  const int remainder = static_cast<int>(x - quotient * divisor.by);
  x = quotient;
  return remainder;
}

// Whether all pointers allow the widest access; null does.
template <class... Pointers>
bool are_aligned(const Pointers*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

}  // namespace cnnext::cuda
