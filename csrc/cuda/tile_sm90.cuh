// A block's tile of a matrix product on Hopper's tensor cores (wgmma), with the interface of tile_sm80.cuh: a
// warpgroup of 128 threads for each 64 rows of kM x kN, which reads both operands from shared memory. A stage
// holds 128 bytes of the summed index (kDepth numbers) for each row and column of the tile.
//
// An operand lies in its stage by rows along the summed index ("along": [kM or kN][128 bytes]) or across it
// ("across": for each 64 of kM or kN, [kDepth][128 bytes]), as it lies in memory. The 16-byte chunks of a row
// are permuted as wgmma_operand tells.
//
// T: Float16 or BFloat16.
#pragma once

#include "tile_sm80.cuh"

namespace cnnext::cuda {

template <class T, int kExtent, bool kAcross, int kThreads>
struct OperandStageSm90 {
  static constexpr int kRowOf128 = 128 / int(sizeof(T)), kDepth = kRowOf128;
  static constexpr int kElements = kExtent * kDepth;
  static constexpr int kRows = kAcross ? kDepth : kExtent;
  static constexpr int kChunksInRow = kElements / kRows / kChunk<T>;
  static constexpr int kRowsAtOnce = kThreads / kChunksInRow;  // that all threads fill with a chunk each
  static constexpr int kRowsOfThread = kRows / kRowsAtOnce;
  static constexpr int kNextRow = kRowsAtOnce * kRowOf128;  // elements to a thread's next row

  CNNEXT_DEVICE static int place(int row, int chunk) {
    // Floats across are loaded one by one: those of four rows and eight columns from different banks.
    const int moved = chunk % 8 ^ (kAcross && sizeof(T) == 4 ? row % 4 * 2 : row % 8);
    if (kAcross) row += chunk / 8 * kDepth;
    return row * kRowOf128 + moved * kChunk<T>;
  }
  // The operand that starts at row or column `first`, a multiple of 64, of the stage.
  CNNEXT_DEVICE static uint64_t operand(const T* stage, int first) {
    return ptx::wgmma_operand(stage + first * kDepth, 8 * 128, kAcross ? kDepth * 128 : 16);
  }
  // Bytes to the numbers of the summed index that the next product takes: 16, or 8 floats.
  static constexpr int kStep = kAcross ? 16 * 128 : 32;
};

// The sums of a tile, as wgmma spreads them over the threads.
template <int kM_, int kN_>
struct SumsSm90 {
  static constexpr bool kCompiled = CNNEXT_SM90A;
  static constexpr int kM = kM_, kN = kN_, kThreads = kM * 2;
  static constexpr int kProducts = 4;  // of a stage
  static constexpr int kBlocks = 2;

  int lane, warp_m;  // this thread's lane, and where its warp's rows start
  float acc[kN / 2];

  CNNEXT_DEVICE SumsSm90() : lane(threadIdx.x % 32), warp_m(threadIdx.x / 32 * 16) {
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) acc[i] = 0;
  }

  // Adds value(column) to every row.
  template <class Value>
  CNNEXT_DEVICE void add_to_rows(const Value& value) {
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
      const int column = j * 8 + lane % 4 * 2;
      const float pair[2] = {value(column), value(column + 1)};
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[4 * j + e] += pair[e % 2];
    }
  }

  // Calls body(row, column, value) for this thread's elements, in pairs along the columns.
  template <class Body>
  CNNEXT_DEVICE void each_pair(Body&& body) const {
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        body(warp_m + lane / 4 + r * 8, j * 8 + lane % 4 * 2, acc[4 * j + 2 * r], acc[4 * j + 2 * r + 1]);
      }
    }
  }
};

template <class T, int kM, int kN, bool kAcrossA, bool kAcrossB_>
struct TileSm90 : SumsSm90<kM, kN> {
  using SumsSm90<kM, kN>::kThreads, SumsSm90<kM, kN>::kProducts, SumsSm90<kM, kN>::acc;
  static constexpr bool kAcrossB = kAcrossB_;
  using StageA = OperandStageSm90<T, kM, kAcrossA, kThreads>;
  using StageB = OperandStageSm90<T, kN, kAcrossB, kThreads>;
  static constexpr int kSummed = StageA::kDepth;
  static constexpr int kStageElements = StageA::kElements + StageB::kElements;
  static constexpr int kStages = kM + kN > 192 ? 3 : 4;  // two blocks or more on a multiprocessor
  static constexpr int kAhead = kStages - 1;             // steps whose copies are started early
  static constexpr int kBytes = kStages * kStageElements * int(sizeof(T));
  static_assert(kBytes <= 96 * 1024 && kM * kN <= kStages * kStageElements);

  T* memory = shared_memory<T>();

  CNNEXT_DEVICE T* stage_a(int stage) const { return memory + stage * kStageElements; }
  CNNEXT_DEVICE T* stage_b(int stage) const { return stage_a(stage) + StageA::kElements; }

  CNNEXT_DEVICE void multiply(int stage) {
    const uint64_t a = StageA::operand(stage_a(stage), threadIdx.x / 128 * 64);
    const uint64_t b = StageB::operand(stage_b(stage), 0);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kProducts; ++k) {
      ptx::wgmma<T, kAcrossA, kAcrossB>(acc, ptx::wgmma_advance(a, k * StageA::kStep),
                                        ptx::wgmma_advance(b, k * StageB::kStep));
    }
    ptx::wgmma_commit();
  }

  // The sum over `steps` stages. load(step, stage) starts the copies of a step into a stage, as soon as the
  // products that read it before are done: while those of the next step go on.
  template <class Load>
  CNNEXT_DEVICE void accumulate(int steps, Load&& load) {
    start_copies<kAhead>(steps, load);
    int stage = 0, last = kAhead;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      ptx::wait_copies<kAhead - 1>();
      ptx::fence_for_wgmma();
      __syncthreads();  // the copies of all threads have arrived
      multiply(stage);
      ptx::wgmma_wait<1>();
      __syncthreads();  // nobody reads the last step's stage
      if (step + kAhead < steps) load(step + kAhead, last);
      ptx::commit_copies();
      last = stage;
      stage = stage + 1 < kStages ? stage + 1 : 0;
    }
    ptx::wgmma_wait<0>();
    ptx::settle(acc);
    ptx::wait_copies<0>();
    __syncthreads();
  }
};

}  // namespace cnnext::cuda
