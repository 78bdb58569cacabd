// A block's tile of a matrix product on tensor cores: 128 threads, four warps, each with a quarter of kM x
// kN. A stage of shared memory holds 64 bytes of the summed index (kDepth) for each row and column of the
// tile, in 16-byte chunks.
//
// An operand lies in its stage by rows along the summed index ("along": [kM or kN][64 bytes]) or across it
// ("across": [kDepth][kM or kN]), as it lies in memory. Chunks of a row are permuted so that ldmatrix and the
// loads of TF32 fragments meet no bank twice.
//
// T: Float16, BFloat16, or float, multiplied as TF32. kAccurate splits each float into two TF32 numbers and
// adds the three larger of their four products, a short sum at a time with ordinary additions: tensor cores
// cut off what they add.
#pragma once

#include "ptx.cuh"

namespace cnnext::cuda {

constexpr int kTileThreads = 128, kStages = 4, kRowBytes = 64, kChunkBytes = 16;

template <class T>
constexpr int kDepth = kRowBytes / int(sizeof(T));
template <class T>
constexpr int kChunk = kChunkBytes / int(sizeof(T));  // elements

// Starts the copies of the first kAhead of `steps` steps, each a group: load(step, stage).
template <int kAhead, class Load>
CNNEXT_DEVICE void start_copies(int steps, Load&& load) {
#pragma unroll 1
  for (int step = 0; step < kAhead; ++step) {
    if (step < steps) load(step, step);
    ptx::commit_copies();
  }
}

// Where chunk `chunk` of row `row` is in its stage, in elements.
template <class T, int kExtent, bool kAcross>
struct OperandStage {
  static constexpr int kElements = kExtent * kDepth<T>;
  static constexpr int kRows = kAcross ? kDepth<T> : kExtent;
  static constexpr int kChunksInRow = kElements / kRows / kChunk<T>;
  static constexpr int kRowsAtOnce = kTileThreads / kChunksInRow;  // that all threads fill with a chunk each
  static constexpr int kRowsOfThread = kRows / kRowsAtOnce;
  static constexpr int kNextRow = kRowsAtOnce * kChunksInRow * kChunk<T>;  // elements to a thread's next row

  CNNEXT_DEVICE static int place(int row, int chunk) {
    const int moved = !kAcross         ? chunk ^ (row >> 1 & 3)
                      : sizeof(T) == 2 ? chunk ^ (row & 7)
                                       : chunk ^ (row & 3) << 1;
    return (row * kChunksInRow + moved) * kChunk<T>;
  }
};

template <class T, int kM_, int kN_, bool kAcrossA, bool kAcrossB_, bool kAccurate>
struct TileSm80 {
  static constexpr bool kCompiled = CNNEXT_SM80;
  static constexpr int kM = kM_, kN = kN_, kThreads = kTileThreads, kBlocks = 2, kSummed = kDepth<T>;
  static constexpr bool kAcrossB = kAcrossB_;
  static constexpr int kAhead = kStages - 1;  // steps whose copies are started early
  using StageA = OperandStage<T, kM, kAcrossA>;
  using StageB = OperandStage<T, kN, kAcrossB>;
  static constexpr int kWarpM = kM / 2, kWarpN = kN / 2;
  static constexpr int kTilesM = kWarpM / 16, kTilesN = kWarpN / 8;  // of one mma
  static constexpr int kStageElements = StageA::kElements + StageB::kElements;
  static constexpr int kBytes = kStages * kStageElements * int(sizeof(T));
  static_assert(kBytes <= 96 * 1024);  // a block has 99 KB on every GPU since 8.0

  T* memory;
  int lane, warp_m, warp_n;  // this thread's lane, and where its warp's quarter starts
  float acc[kTilesM][kTilesN][4];

  CNNEXT_DEVICE TileSm80() : memory(shared_memory<T>()), lane(threadIdx.x % 32) {
    const int warp = threadIdx.x / 32;
    warp_m = warp / 2 * kWarpM;
    warp_n = warp % 2 * kWarpN;
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
      for (int j = 0; j < kTilesN; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[i][j][e] = 0;
      }
    }
  }
  CNNEXT_DEVICE T* stage_a(int stage) const { return memory + stage * kStageElements; }
  CNNEXT_DEVICE T* stage_b(int stage) const { return stage_a(stage) + StageA::kElements; }

  // The two (of four registers) or four fragments of 16 rows by one half of the stage's depth. `half` is 0
  // or 1.
  CNNEXT_DEVICE void load_a(const T* a, int i, int half, uint32_t (&fragment)[4]) const {
    const int m = warp_m + i * 16;
    if constexpr (!kAcrossA) {
      ptx::ldmatrix<false>(a + StageA::place(m + lane % 16, half * 2 + lane / 16), fragment);
    } else if constexpr (sizeof(T) == 2) {
      const int k = half * 16 + lane / 16 * 8 + lane % 8;
      ptx::ldmatrix<true>(a + StageA::place(k, m / 8 + lane / 8 % 2), fragment);
    } else {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        fragment[r] = word<StageA>(a, half * 8 + lane % 4 + r / 2 * 4, m + lane / 4 + r % 2 * 8);
      }
    }
  }
  CNNEXT_DEVICE void load_b(const T* b, int j, int half, uint32_t (&first)[2], uint32_t (&second)[2]) const {
    const int n = warp_n + j * 8;
    uint32_t both[4];
    if constexpr (!kAcrossB) {
      ptx::ldmatrix<false>(b + StageB::place(n + lane / 16 * 8 + lane % 8, half * 2 + lane / 8 % 2), both);
    } else if constexpr (sizeof(T) == 2) {
      ptx::ldmatrix<true>(b + StageB::place(half * 16 + lane % 16, n / 8 + lane / 16), both);
    } else {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        both[r] = word<StageB>(b, half * 8 + lane % 4 + r % 2 * 4, n + lane / 4 + r / 2 * 8);
      }
    }
    first[0] = both[0], first[1] = both[1], second[0] = both[2], second[1] = both[3];
  }
  // One float of an operand that lies across.
  template <class Stage>
  CNNEXT_DEVICE static uint32_t word(const T* stage, int k, int column) {
    return ptx::load_shared(reinterpret_cast<const uint32_t*>(stage) + Stage::place(k, column / 4) +
                            column % 4);
  }

  CNNEXT_DEVICE void multiply(int stage) {
    const T *a = stage_a(stage), *b = stage_b(stage);
    constexpr int kHalves = kAccurate ? 1 : 2;  // unrolled: where each takes long, registers are dearer
#pragma unroll kHalves
    for (int half = 0; half < 2; ++half) {
      uint32_t x[kTilesM][4], y[kTilesN][2];
#pragma unroll
      for (int i = 0; i < kTilesM; ++i) load_a(a, i, half, x[i]);
#pragma unroll
      for (int j = 0; j < kTilesN; j += 2) load_b(b, j, half, y[j], y[j + 1]);
      if constexpr (kAccurate) {
        add_accurate(x, y);
      } else {
        if constexpr (std::is_same_v<T, float>) {
          const auto round = [](uint32_t& number) { number = ptx::round_to_tf32(number); };
          each_number(x, round);
          each_number(y, round);
        }
#pragma unroll
        for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
          for (int j = 0; j < kTilesN; ++j) ptx::mma(T(), acc[i][j], x[i], y[j]);
        }
      }
    }
  }

  // x becomes its larger part, which TF32 holds; returns the smaller one, to be read as TF32: of its bits
  // only the first are, so that half of the last of them is added.
  CNNEXT_DEVICE static uint32_t take_apart(uint32_t& x) {
    const float all = ptx::as_float(x);
    x &= ~0x1fffu;
    return ptx::as_bits(all - ptx::as_float(x)) + 0x1000u;
  }
  CNNEXT_DEVICE static bool is_finite(uint32_t x) { return (x & 0x7f800000u) != 0x7f800000u; }

  CNNEXT_DEVICE void add_accurate(uint32_t (&x)[kTilesM][4], uint32_t (&y)[kTilesN][2]) {
    float zero = 0, zero_too = 0;  // or NaN, if a number is not finite
    each_number(x, [&](uint32_t& number) { zero += ptx::as_float(number) * 0; });
    each_number(y, [&](uint32_t& number) { zero_too += ptx::as_float(number) * 0; });
    if (ptx::any(zero + zero_too != 0)) add_infinities(x, y);
    uint32_t small_y[kTilesN][2];
#pragma unroll
    for (int j = 0; j < kTilesN; ++j) {
#pragma unroll
      for (int r = 0; r < 2; ++r) small_y[j][r] = take_apart(y[j][r]);
    }
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
      uint32_t small_x[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) small_x[r] = take_apart(x[i][r]);
#pragma unroll
      for (int j = 0; j < kTilesN; ++j) {
        float sum[4] = {};
        ptx::mma(T(), sum, small_x, y[j]);
        ptx::mma(T(), sum, x[i], small_y[j]);
        ptx::mma(T(), sum, x[i], y[j]);
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[i][j][e] += sum[e];
      }
    }
  }
  // Adds the sums that are infinite or NaN, by one product, and puts zeros for what makes them so. In three
  // products zeros would meet infinities that were not there.
  CNNEXT_DEVICE void add_infinities(uint32_t (&x)[kTilesM][4], uint32_t (&y)[kTilesN][2]) {
    const auto quiet = [](uint32_t& number) {  // a NaN of the bits that TF32 has
      if ((number & 0x7fffffffu) > 0x7f800000u) number |= 0x7fc00000u;
    };
    each_number(x, quiet);
    each_number(y, quiet);
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
      for (int j = 0; j < kTilesN; ++j) {
        float sum[4] = {};
        ptx::mma(T(), sum, x[i], y[j]);
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[i][j][e] += is_finite(ptx::as_bits(sum[e])) ? 0 : sum[e];
      }
    }
    const auto clear = [](uint32_t& number) { number = is_finite(number) ? number : 0; };
    each_number(x, clear);
    each_number(y, clear);
  }
  template <int kCount, int kEach, class Body>
  CNNEXT_DEVICE static void each_number(uint32_t (&fragments)[kCount][kEach], const Body& body) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
      for (int r = 0; r < kEach; ++r) body(fragments[i][r]);
    }
  }

  // The sum over `steps` stages. load(step, stage) starts the copies of a step into a stage.
  template <class Load>
  CNNEXT_DEVICE void accumulate(int steps, Load&& load) {
    start_copies<kAhead>(steps, load);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      ptx::wait_copies<kAhead - 1>();
      __syncthreads();  // the copies of all threads have arrived, and none reads the stage that is filled
                        // next
      if (step + kAhead < steps) load(step + kAhead, (step + kAhead) % kStages);
      ptx::commit_copies();
      multiply(step % kStages);
    }
    ptx::wait_copies<0>();
    __syncthreads();
  }

  // Adds value(column) to every row.
  template <class Value>
  CNNEXT_DEVICE void add_to_rows(const Value& value) {
#pragma unroll
    for (int j = 0; j < kTilesN; ++j) {
      const int column = warp_n + j * 8 + lane % 4 * 2;
      const float pair[2] = {value(column), value(column + 1)};
#pragma unroll
      for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[i][j][e] += pair[e % 2];
      }
    }
  }

  // Calls body(row, column, value) for this thread's elements, in pairs along the columns.
  template <class Body>
  CNNEXT_DEVICE void each_pair(Body&& body) const {
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
      for (int j = 0; j < kTilesN; ++j) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          body(warp_m + i * 16 + lane / 4 + r * 8, warp_n + j * 8 + lane % 4 * 2, acc[i][j][2 * r],
               acc[i][j][2 * r + 1]);
        }
      }
    }
  }
};

}  // namespace cnnext::cuda
