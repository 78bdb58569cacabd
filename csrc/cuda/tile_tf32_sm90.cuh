// A block's tile of a matrix product of floats as TF32 on Hopper's tensor cores, with the interface of
// tile_sm80.cuh. wgmma takes A from registers, rounded on the way, but reads B from shared memory along the
// summed index alone, and rounds nothing. So B must have been rounded before; what lies across (kAcross: both
// operands) is rounded and turned in shared memory first.
#pragma once

#include "tile_sm90.cuh"

namespace cnnext::cuda {

template <int kM, int kN, bool kAcross>
struct TileTf32Sm90 : SumsSm90<kM, kN> {
  using Sums = SumsSm90<kM, kN>;
  using Sums::kThreads, Sums::kProducts, Sums::acc, Sums::lane, Sums::warp_m;
  static constexpr bool kAcrossB = kAcross;
  using StageA = OperandStageSm90<float, kM, kAcross, kThreads>;
  using StageB = OperandStageSm90<float, kN, kAcross, kThreads>;
  using TurnedB = OperandStageSm90<float, kN, false, kThreads>;
  static constexpr int kSummed = StageA::kDepth;
  static constexpr int kStageElements = StageA::kElements + StageB::kElements;
  static constexpr int kStages = (kM + kN > 192 ? 3 : 4) - kAcross;  // two blocks or more on a multiprocessor
  // Steps whose copies are started early: a stage can be filled again once it is turned, or with the next
  // step.
  static constexpr int kAhead = kStages - !kAcross;
  static constexpr int kBytes =
      (kStages * kStageElements + kAcross * TurnedB::kElements) * int(sizeof(float));
  static_assert(kBytes <= 96 * 1024 && kM * kN <= kStages * kStageElements);

  float* memory = shared_memory<float>();

  CNNEXT_DEVICE float* stage_a(int stage) const { return memory + stage * kStageElements; }
  CNNEXT_DEVICE float* stage_b(int stage) const { return stage_a(stage) + StageA::kElements; }
  CNNEXT_DEVICE float* turned_b() const { return memory + kStages * kStageElements; }

  // One float of an operand that lies across, rounded.
  template <class Stage>
  CNNEXT_DEVICE static uint32_t rounded(const float* stage, int k, int column) {
    const float* at = stage + Stage::place(k, column / kChunk<float>) + column % kChunk<float>;
    return ptx::round_to_tf32(ptx::load_shared(reinterpret_cast<const uint32_t*>(at)));
  }

  CNNEXT_DEVICE void load_a(int stage, uint32_t (&x)[kProducts][4]) const {
    const float* a = stage_a(stage);
    const int first = StageA::place(warp_m + lane % 16, lane / 16);
#pragma unroll
    for (int k = 0; k < kProducts; ++k) {
      if constexpr (!kAcross) ptx::ldmatrix<false>(a + (first ^ k * 2 * kChunk<float>), x[k]);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        x[k][r] = kAcross ? rounded<StageA>(a, k * 8 + lane % 4 + r / 2 * 4, warp_m + lane / 4 + r % 2 * 8)
                          : ptx::round_to_tf32(x[k][r]);
      }
    }
  }

  // Each thread turns a column's chunks of four numbers.
  CNNEXT_DEVICE void turn_b(int stage) const {
    const int column = threadIdx.x % kN;
#pragma unroll
    for (int chunk = threadIdx.x / kN; chunk < TurnedB::kChunksInRow; chunk += kThreads / kN) {
      Pack<uint32_t, 4> turned;
#pragma unroll
      for (int e = 0; e < 4; ++e) turned.at[e] = rounded<StageB>(stage_b(stage), chunk * 4 + e, column);
      store_shared(reinterpret_cast<uint32_t*>(turned_b()) + TurnedB::place(column, chunk), turned);
    }
  }

  CNNEXT_DEVICE void multiply(const uint32_t (&x)[kProducts][4], const float* b) {
    const uint64_t operand = TurnedB::operand(b, 0);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kProducts; ++k) {
      ptx::wgmma_tf32(acc, x[k], ptx::wgmma_advance(operand, k * TurnedB::kStep));
    }
    ptx::wgmma_commit();
  }

  // The sum over `steps` stages. load(step, stage) starts the copies of a step into a stage.
  template <class Load>
  CNNEXT_DEVICE void accumulate(int steps, Load&& load) {
    start_copies<kAhead>(steps, load);
    int stage = 0, last = kStages - 1;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      ptx::wait_copies<kAhead - 1>();
      if constexpr (!kAcross) ptx::fence_for_wgmma();
      __syncthreads();  // the copies of all threads have arrived, and no product runs that reads what follows
      uint32_t x[kProducts][4];
      load_a(stage, x);
      if constexpr (kAcross) {
        turn_b(stage);
        ptx::fence_for_wgmma();
        __syncthreads();  // all is turned
      }
      multiply(x, kAcross ? turned_b() : stage_b(stage));
      // Products end in the step that starts them, or nvcc lets each wait for the one before. Where operands
      // lie across, registers are too few for the copies' addresses meanwhile.
      if constexpr (kAcross) ptx::wgmma_wait<0>();
      if (step + kAhead < steps) load(step + kAhead, kAcross ? stage : last);
      ptx::commit_copies();
      if constexpr (!kAcross) ptx::wgmma_wait<0>();
      last = stage;
      stage = stage + 1 < kStages ? stage + 1 : 0;
    }
    ptx::settle(acc);
    ptx::wait_copies<0>();
    __syncthreads();
  }
};

}  // namespace cnnext::cuda
