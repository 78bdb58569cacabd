// Pooling in channels first by the kernels of channels last, vectors over planes: some planes are transposed
// into a tile [pixels, planes], pooled there, and transposed back. For any windows, where such a tile fits
// the cache. Each element is shuffled a few times instead of once for each tap, whatever the windows are.
#pragma once

#include "pool_channels_last_grad.h"

namespace cnnext::cpu::CNNEXT_ISA {

// From planes in memory, `count` of them, to a tile of `lanes` planes, in which the last one is repeated.
template <class T>
void planes_to_tile(const T* planes, int64_t pixels, int64_t count, const T* memory_end, Acc<T>* tile,
                    int64_t lanes) {
  using A = Acc<T>;
  constexpr int64_t L = kLanes<A>;
  for (int64_t c = 0; c < lanes; c += L) {
    for (int64_t p = 0; p < pixels; p += L) {
      Vec<A> x[L];
#pragma GCC unroll 16
      for (int64_t i = 0; i < L; ++i) {
        const T* from = planes + min_of(c + i, count - 1) * pixels + p;
        __builtin_prefetch(from + lanes * pixels, 0, 2);  // the next tile's
        x[i] = load_part(from, memory_end - from);
      }
      transpose<A>(x);
      A* to = tile + p * lanes + c;
      for (int64_t i = 0; i < min_of(L, pixels - p); ++i) store(to + i * lanes, x[i]);
    }
  }
}
template <class T>
void tile_to_planes(const Acc<T>* tile, int64_t lanes, T* planes, int64_t pixels, int64_t count) {
  using A = Acc<T>;
  constexpr int64_t L = kLanes<A>;
  for (int64_t c = 0; c < count; c += L) {
    for (int64_t p = 0; p < pixels; p += L) {
      Vec<A> x[L];
      const A* from = tile + p * lanes + c;
#pragma GCC unroll 16
      for (int64_t i = 0; i < L; ++i) x[i] = load(from + min_of(i, pixels - p - 1) * lanes);
      transpose<A>(x);
      T* to = planes + c * pixels + p;
      for (int64_t i = 0; i < min_of(L, count - c); ++i) {
        __builtin_prefetch(to + (lanes + i) * pixels, 1, 2);  // the next tile's
        store_part(to + i * pixels, x[i], pixels - p);
      }
    }
  }
}

CNNEXT_INLINE int64_t largest_plane(const PoolShape& shape) {
  return max_of(shape.input_pixels(), shape.output_pixels());
}
CNNEXT_INLINE int64_t tile_lanes(const PoolShape& shape, int64_t element_size) {
  constexpr int64_t kTileBytes = 1 << 18, kTasks = 4, kMostVectors = 4;
  const int64_t L = CNNEXT_VECTOR_BYTES / element_size;
  const int64_t fit = kTileBytes / (largest_plane(shape) * element_size), share = shape.N * shape.C / kTasks;
  return max_of(1, min_of(kMostVectors, min_of(fit, share) / L)) * L;
}

// Pool is a kernel of channels last for elements of type Acc<T>. It prepares its tables once, and then pools
// all rows of the tile that its buffers are set to.
template <class T, class Pool>
struct PoolLanes {
  using A = Acc<T>;

  PoolLanes(const PoolProblem& p, const PoolBuffers& b, char* workspace)
      : problem(on_tiles(p)),
        buffers(b),
        planes(p.shape.N * p.shape.C),
        input_pixels(p.shape.input_pixels()),
        output_pixels(p.shape.output_pixels()),
        lanes(problem.shape.C),
        offset_bytes(!Pool::kStoresOffsets ? 0
                     : p.wide_offsets()    ? 4
                                           : 1),
        pool(problem, {}, workspace) {
    tiles = pool.scratch.take_layouts(problem.threads, [&](ScratchLayout& own) { local(own); });
  }

  int64_t workspace_bytes() const { return pool.workspace_bytes(); }

  void run(const Parallel& parallel) const {
    pool.prepare();
    parallel(ceil_div(planes, lanes), [&](int64_t task, int thread) {
      ScratchLayout own{tiles[thread]};
      const Tile tile = local(own);
      const int64_t first = task * lanes, count = min_of(lanes, planes - first);
      T *input = static_cast<T*>(buffers.input), *output = static_cast<T*>(buffers.output);
      Pool on_tile = pool;
      on_tile.set_buffers({tile.input, tile.output, tile.offsets});
      if constexpr (Pool::kGradient) {
        planes_to_tile<T>(output + first * output_pixels, output_pixels, count,
                          output + planes * output_pixels, tile.output, lanes);
      } else {
        planes_to_tile<T>(input + first * input_pixels, input_pixels, count, input + planes * input_pixels,
                          tile.input, lanes);
      }
      on_tile.all_rows(thread);
      if constexpr (Pool::kGradient) {
        tile_to_planes<T>(tile.input, lanes, input + first * input_pixels, input_pixels, count);
      } else {
        tile_to_planes<T>(tile.output, lanes, output + first * output_pixels, output_pixels, count);
        if constexpr (Pool::kStoresOffsets) {
          with_offset_type(problem, [&](auto* tag) {
            offsets_to_planes(static_cast<decltype(tag)>(tile.offsets), first, count);
          });
        }
      }
    });
  }

 private:
  struct Tile {
    A *input, *output;
    void* offsets;
  };
  Tile local(ScratchLayout& own) const {
    return {own.take<A>(input_pixels * lanes), own.take<A>(output_pixels * lanes),
            own.take<char>(output_pixels * lanes * offset_bytes)};
  }

  static PoolProblem on_tiles(PoolProblem p) {
    p.shape.C = tile_lanes(p.shape, sizeof(A));
    p.shape.N = 1;
    p.dtype = sizeof(A) == sizeof(double) ? DType::kFloat64 : DType::kFloat32;
    p.layout = Layout::kChannelsLast;
    return p;
  }

  template <class O>
  void offsets_to_planes(const O* tile, int64_t first, int64_t count) const {
    O* to = static_cast<O*>(buffers.offsets) + first * output_pixels;
    for (int64_t c = 0; c < count; ++c) {
      for (int64_t p = 0; p < output_pixels; ++p) *to++ = tile[p * lanes + c];
    }
  }

  const PoolProblem problem;
  const PoolBuffers& buffers;
  int64_t planes, input_pixels, output_pixels, lanes, offset_bytes;
  Pool pool;
  PerThread<char> tiles;
};

inline const char* lanes_refuses(const PoolProblem& p) {
  const int64_t most_bytes = p.shape.axis[0].input > 1 ? 1 << 20 : 1 << 19;
  if (const char* reason = layout_refuses<Layout::kChannelsFirst>(p)) return reason;
  const bool one_row = p.shape.axis[0].input * p.shape.axis[1].input == 1 && !p.shape.adaptive[2];
  if (one_row && p.shape.axis[2].output >= 4 * kLanes<float> && p.shape.axis[2].stride <= 2)
    return "takes planes of several rows, or of a short one";
  return largest_plane(p.shape) * CNNEXT_VECTOR_BYTES > most_bytes ? "takes planes that fit the cache"
                                                                   : nullptr;
}

// Pool<A> is such a kernel for elements of type A.
template <template <class> class Pool>
struct InLanes {
  template <class Visit>
  static void with(const PoolProblem& p, const PoolBuffers& b, char* workspace, Visit&& visit) {
    with_type(p.dtype, [&](auto* tag) {
      using T = Pointee<decltype(tag)>;
      visit(PoolLanes<T, Pool<Acc<T>>>(p, b, workspace));
    });
  }
};

constexpr const char* kLanesSummary = "vectors over planes";
constexpr PoolKernel kMaxPoolLanes =
    entry<InLanes<InMode<PoolChannelsLast, PoolMode::kMax>::Of>>("lanes", kLanesSummary, lanes_refuses);
constexpr PoolKernel kMaxPoolOffsetsLanes =
    entry<InLanes<InMode<PoolChannelsLast, PoolMode::kMaxOffsets>::Of>>("lanes", kLanesSummary,
                                                                        lanes_refuses);
constexpr PoolKernel kAvgPoolLanes =
    entry<InLanes<InMode<PoolChannelsLast, PoolMode::kAverage>::Of>>("lanes", kLanesSummary, lanes_refuses);
constexpr PoolKernel kAvgPoolGradLanes = entry<InLanes<AvgPoolGradChannelsLast>>(
    "lanes", kLanesSummary, first_refusal<lanes_refuses, readers_refuse>);

}  // namespace cnnext::cpu::CNNEXT_ISA
