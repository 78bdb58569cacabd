// The gradient of max pooling, scattered window after window to the inputs that the offsets tell, for windows
// so many or so placed that gathering would read too much.
//
// A task owns planes (channels first) or a block of channels of an image (channels last). Vectors of windows
// find their inputs, one by one they are added there. Neighbouring windows often have the same maximum, and
// each addition waits for the one before it: several planes take turns, and channels add up such neighbours
// in registers.
#pragma once

#include "pool_lookup.h"
#include "pool_vec.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kScatterPlanes = 4;

// The step from a window's origin to the input of one of its taps, vectors of them.
template <class A, class O>
struct TapSteps {
  using V = OffsetVec<A>;
  static constexpr int32_t kFar = 1 << 30;

  explicit TapSteps(const OffsetTable<O>& table)
      : table(table), taps(broadcast_offset<A>(table.shape.taps())) {
    const Window &d = table.shape.axis[0], &h = table.shape.axis[1], &w = table.shape.axis[2];
    deep = d.kernel > 1;
    per_row = reciprocal(w.kernel);
    per_depth = reciprocal(h.kernel * w.kernel);
    step = broadcast_offset<A>(w.dilation);
    row = broadcast_offset<A>(h.dilation * w.input - w.kernel * w.dilation);
    depth = broadcast_offset<A>((d.dilation * h.input - h.kernel * h.dilation) * w.input);
  }

  // Far outside of the plane where the offset is none of the window.
  V operator()(const O* offsets, int64_t count) const {
    V steps = {};
    if constexpr (sizeof(O) == 1) {
      const V tap = load_offsets_part<A>(offsets, count);
      steps = tap * step + ((tap * per_row) >> kShift) * row;
      if (deep) steps += ((tap * per_depth) >> kShift) * depth;
      return tap < taps ? steps : V{} - kFar;
    } else {
      for (int64_t i = 0; i < min_of(count, kLanes<A>); ++i) {
        const int64_t delta = table.offset_delta(offsets[i]);
        steps[i] = static_cast<Offset<A>>(delta == kNowhere ? -kFar : delta);
      }
      return steps;
    }
  }

 private:
  // A tap is below 2^8: multiplied by this and shifted, it is divided.
  static constexpr int kShift = 16;
  static V reciprocal(int64_t divisor) {
    return broadcast_offset<A>(((1 << kShift) + divisor - 1) / divisor);
  }

  const OffsetTable<O>& table;
  bool deep;
  V taps, per_row, per_depth, step, row, depth;
};

template <class T, class O>
struct MaxPoolGradScatter {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>, kChunk = 16 * L;
  static constexpr bool kInPlace = std::is_same_v<T, A>;  // planes are their own sums

  struct Parts {  // of the gradient, and the inputs that they go to
    Offset<A> at[kScatterPlanes][kChunk];
    A value[kScatterPlanes][kChunk];
  };

  MaxPoolGradScatter(const PoolProblem& p, const PoolBuffers& b, char* workspace)
      : problem(p),
        shape(p.shape),
        channels_last(p.layout == Layout::kChannelsLast),
        pixels(shape.input_pixels()),
        width(channels_last ? min_of(round_up(shape.C, L), vectors_of_tile() * L)
                            : min_of(shape.N * shape.C, kScatterPlanes)),
        windows(shape.output_pixels()),
        buffers(b),
        table(shape, workspace) {
    scratch = table.scratch;
    origin = scratch.take<Offset<A>>(windows + L);
    channels = channels_last ? shape.C : shape.N * shape.C;  // channels first, all planes are one image
    blocks = ceil_div(channels, width);
    parts = (channels_last ? shape.N : 1) * blocks;
    per_task = max_of(1, (1 << 14) / max_of(1, (pixels + windows) * width));
    tasks = ceil_div(parts, per_task);
    const int64_t summed = kInPlace && !channels_last ? 0 : pixels * width;
    tiles = scratch.take_layouts(min_of(problem.threads, tasks),
                                 [&](ScratchLayout& own) { own.take<A>(summed); });
  }

  int64_t workspace_bytes() const { return scratch.bytes; }

  void run(const Parallel& parallel) const {
    table.fill(true);
    const int64_t P = shape.axis[1].output, Q = shape.axis[2].output;
    for (int64_t i = 0; i < windows + L; ++i) {
      const int64_t at = i < windows ? table.window(i / Q / P, i / Q % P) + table.origin[2][i % Q] : kNowhere;
      origin[i] = static_cast<Offset<A>>(at > pixels ? -2 * kFar : at);
    }
    parallel(tasks, [&](int64_t task, int thread) {
      A* own = reinterpret_cast<A*>(tiles[tasks < problem.threads ? int(task) : thread]);
      for (int64_t part = task * per_task; part < min_of(parts, (task + 1) * per_task); ++part) {
        const int64_t c = part % blocks * width, count = min_of(width, channels - c);
        channels_last ? channels_of_image(part / blocks, c, count, own) : planes_from(c, count, own);
      }
    });
  }

 private:
  // Pixels are stored by whole cache lines, some side by side, from a tile in the caches.
  int64_t vectors_of_tile() const {
    constexpr int64_t kTileBytes = 1 << 18, kMostVectors = 4;
    return max_of(1, min_of(kMostVectors, kTileBytes / (pixels * L * static_cast<int64_t>(sizeof(A)))));
  }

  static constexpr int32_t kFar = TapSteps<A, O>::kFar;

  // Inputs of L windows, of which `count` exist; the gradient of one that leads nowhere is zero.
  __attribute__((always_inline)) void find(const TapSteps<A, O>& steps, OffsetVec<A> origins, int64_t from,
                                           int64_t count, Offset<A>* at, A* value) const {
    const OffsetVec<A> to = origins + steps(offsets() + from, count);
    const auto inside = (to >= 0) & (to < static_cast<Offset<A>>(pixels));
    const Vec<A> grad = load_part(static_cast<const T*>(buffers.output) + from, count);
    store_unaligned(at, inside ? to : OffsetVec<A>{});
    store(value, inside ? grad : Vec<A>{});
  }
  const O* offsets() const { return static_cast<const O*>(buffers.offsets); }

  void planes_from(int64_t plane, int64_t count, A* own) const {
    T* grad_input = static_cast<T*>(buffers.input) + plane * pixels;
    A* sums = kInPlace ? reinterpret_cast<A*>(grad_input) : own;
    __builtin_memset(sums, 0, pixels * count * sizeof(A));
    const TapSteps<A, O> steps(table);
    alignas(kAlignment) Parts parts;
    for (int64_t begin = 0; begin < windows; begin += kChunk) {
      const int64_t end = min_of(windows, begin + kChunk);
      for (int64_t c = 0; c < count; ++c) {
        for (int64_t i = begin; i < end; i += L) {
          const int64_t from = (plane + c) * windows + i;
          find(steps, load_unaligned<OffsetVec<A>>(origin + i), from, shape.N * shape.C * windows - from,
               parts.at[c] + i - begin, parts.value[c] + i - begin);
        }
      }
      if (count == kScatterPlanes) {
        for (int64_t i = 0; i < end - begin; ++i) {
#pragma GCC unroll 8
          for (int64_t c = 0; c < kScatterPlanes; ++c) sums[c * pixels + parts.at[c][i]] += parts.value[c][i];
        }
      } else {
        for (int64_t i = 0; i < end - begin; ++i) {
          for (int64_t c = 0; c < count; ++c) sums[c * pixels + parts.at[c][i]] += parts.value[c][i];
        }
      }
    }
    if (kInPlace) return;
    for (int64_t i = 0; i < pixels * count; i += L)
      store_part(grad_input + i, load(sums + i), pixels * count - i);
  }

  void channels_of_image(int64_t n, int64_t c, int64_t count, A* sums) const {
    __builtin_memset(sums, 0, pixels * width * sizeof(A));
    const TapSteps<A, O> steps(table);
    for (int64_t k = 0; k < count; k += L) {
      add_windows(steps, n * windows * shape.C + c + k, min_of(L, count - k), sums + k);
    }
    T* to = static_cast<T*>(buffers.input) + n * pixels * shape.C + c;
    for (int64_t i = 0; i < pixels; ++i, to += shape.C) {
      for (int64_t k = 0; k < count; k += L) store_part(to + k, load(sums + i * width + k), count - k);
    }
  }

  // All windows of a vector of channels, `count` of which exist, from output `from` on. Neighbours mostly
  // have the same maximum: in each lane they are added up as long as it stays.
  void add_windows(const TapSteps<A, O>& steps, int64_t from, int64_t count, A* sums) const {
    constexpr int64_t kMost = 16 * L;
    Offset<A> part_at[kMost];
    A part[kMost];
    int64_t parts = 0;  // that wait to be added
    const OffsetVec<A> lane = lane_numbers<A>(1), pitch = broadcast_offset<A>(width);
    OffsetVec<A> at = lane;
    Vec<A> sum = {};
    for (int64_t i = 0; i <= windows; ++i, from += shape.C) {
      OffsetVec<A> next = at;
      Vec<A> value = {};
      if (i < windows) {
        const OffsetVec<A> to = origin[i] + steps(offsets() + from, count);
        const auto inside = (to >= 0) & (to < static_cast<Offset<A>>(pixels));
        next = inside ? to * pitch + lane : at;
        value = inside ? load_part(static_cast<const T*>(buffers.output) + from, count) : Vec<A>{};
      }
      const auto ended = i < windows ? next != at : at == at;
      parts += pack_lanes(ended, at, sum, part_at + parts, part + parts);
      sum = kPacksLanes ? (ended ? value : sum + value) : value;
      at = next;
      if (parts <= kMost - L && i < windows) continue;
      for (int64_t k = 0; k < parts; ++k) sums[part_at[k]] += part[k];
      parts = 0;
    }
  }

  const PoolProblem& problem;
  const PoolShape& shape;
  bool channels_last;
  int64_t pixels;
  int64_t width;  // planes, or channels of a tile
  int64_t windows;
  int64_t channels, blocks, parts;  // of an image; of its channels or planes; of all images
  int64_t per_task, tasks;
  const PoolBuffers& buffers;
  OffsetTable<O> table;
  ScratchLayout scratch;
  PerThread<char> tiles;  // sums of a thread, where planes are not their own
  Offset<A>* origin;      // [windows + L], input of tap 0
};

// The inputs of windows are numbered in 32 bits, also those beyond the plane, where dilation and padding
// lead.
inline const char* scatter_refuses(const PoolProblem& p) {
  double reach = 0, unit = 1;  // pixels; they may exceed 64 bits
  for (int a = kAxes - 1; a >= 0; --a) {
    const Window& w = p.shape.axis[a];
    reach += unit * max_of((w.kernel - 1) * w.dilation, w.padding);
    unit *= w.input;
  }
  if (reach >= 1 << 30) return "takes windows that reach over fewer than 2^30 pixels";
  return unit < 1 << 27 ? nullptr : "takes planes of fewer than 2^27 pixels";
}

constexpr PoolKernel kMaxPoolGradScatter =
    entry<ByTypeAndOffset<MaxPoolGradScatter>>("scatter", "window after window", scatter_refuses);

}  // namespace cnnext::cpu::CNNEXT_ISA
