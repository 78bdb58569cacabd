// Gradient of dense convolution with respect to the weight by AMX, as one matrix product summed over pixels:
//   grad_weight[k, (tap, c)] = sum over pixels of grad_output[pixel, k] * gathered input[pixel, (tap, c)]
// in bfloat16, and in float32 in three parts (amx_rows.h).
//
// A task is a block of output channels times a block of columns (tap, c) times a split of the pixels
// (conv_splits.h). It takes some pixels at a time: the gradient's are the depth, and stay for all columns. Of
// channels last the gradient is transposed for that, of channels first the gathered input; there columns may
// be (c, tap). Parts of float32 do not hold infinities: where a sum is not finite, all are computed by
// `gemm`.
#pragma once

#include "amx_rows.h"
#include "conv_grad_weight_gemm.h"
#include "conv_splits.h"
#include "scratch.h"

#if CNNEXT_VECTOR_BYTES == 64

namespace cnnext::cpu::CNNEXT_ISA {

template <class T>
class GradWeightAmx {
 public:
  GradWeightAmx(const ConvProblem& p, const ConvBuffers& b, char* workspace)
      : shape(p.shape),
        input(static_cast<const T*>(b.input)),
        grad_output(static_cast<const T*>(b.output)),
        grad_weight(static_cast<T*>(b.weight)),
        in(strides_of(p.layout, shape.C, shape.input_pixels())),
        out(strides_of(p.layout, shape.K, shape.output_pixels())),
        w(weight_strides_of(p.weight_layout, shape.C_per_group(), shape.taps())),
        rows(shape.K_per_group(), kAmxRows),
        cols(shape.taps() * shape.C_per_group(), kWide),
        g(gathered_factor(shape, false)) {
    planes = p.layout == Layout::kChannelsFirst;
    // Rows a multiple of 1 KiB apart would push each other out of the first-level cache.
    in_place = kP > 1 && shape.taps() == 1 && (planes || in.pixel * sizeof(T) % 1024 != 0);
    for (const PhaseAxis& x : g.axis) in_place &= is_plain(x);
    order = planes && w.tap == 1 ? ColumnOrder{1, g.taps()} : ColumnOrder{g.channels, 1};
    g = joined(g);
    pixels = g.pixels();
    rows.cut(ceil_div(rows.size, kMostRows));
    cols.cut(ceil_div(cols.size, max_of(kGathered, kMostSums / rows.block_size / kGathered * kGathered)));
    const int64_t most_splits = min_of(pixels / (2 * kPixels), kMostPartials / (rows.size * cols.size));
    split.splits = clamp(kTasks / (shape.groups * rows.blocks * cols.blocks), 1, max_of(1, most_splits));
    if (split.divided()) split.splits -= split.splits % 2;  // that two threads get alike
    cut_for_threads(rows, cols, shape.groups * split.splits, p.threads, 2 * kAmxRows, 2);
    split.blocks = shape.groups * rows.blocks * cols.blocks;
    split.size = rows.block_size * cols.block_size;
    ScratchLayout memory{workspace};
    scratch.turned = memory.take_each<char>(p.threads, rows.block_size * kPitch);
    scratch.panels = memory.take_each<float>(p.threads, kGathered / kWide * kPanel);
    scratch.gathered =
        memory.take_each<float>(p.threads, max_of(kPixels * kGatheredStride, kGathered * kPixelsStride));
    scratch.sums = memory.take_each<float>(p.threads, split.divided() ? 0 : split.size);
    split.memory = memory.take<float>(split.elements());
    scratch.bytes = memory.bytes;
  }

  int64_t workspace_bytes() const { return scratch.bytes; }

  // Whether all sums are finite.
  bool run(const Parallel& parallel) const {
    bool finite = true;
    const auto store_block = [&](int64_t b, const float* sums) {
      if (!store_weight(b, sums)) __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
    };
    parallel(split.tasks(), [&](int64_t task, int thread) {
      const int64_t b = split.block_of(task);
      float* sums = split.of_task(task, scratch.sums[thread]);
      const Range all = split.part(task, pixels);
      const TileRegisters registers{kAmxRows};
      for (Range part = {all.begin, 0}; part.begin < all.end; part.begin = part.end) {
        part.end = min_of(part.begin + kPixels, all.end);
        add_pixels(b, part, thread, sums, part.begin > all.begin);
      }
      if (all.size() == 0) fill_zero(sums, split.size);
      if (!split.divided()) store_block(b, sums);
    });
    split.add_up(parallel, store_block);
    return __atomic_load_n(&finite, __ATOMIC_RELAXED);
  }

 private:
  static constexpr int kP = kParts<T>;
  static constexpr int64_t kWide = kAmxCols;
  static constexpr int64_t kMostRows = 512, kMostSums = 256 << 10;  // of a block
  static constexpr int64_t kTasks = 16, kMostPartials = 1 << 20;    // splits are made up to there
  static constexpr int64_t kPixels = kP > 1 ? 128 : 512;            // taken at a time
  static constexpr int64_t kGathered = 4 * kWide;                   // columns gathered at a time
  static constexpr int64_t kGatheredStride = kGathered + 16;        // off the powers of two
  static constexpr int64_t kPixelsStride = kPixels + 16;
  static constexpr int64_t kChunks = kPixels / kAmxDepth;
  static constexpr int64_t kPitch = (kChunks * kP | 1) * 64;           // bytes from a row to the next
  static constexpr int64_t kPanel = kChunks * kP * kAmxPairs * kWide;  // numbers
  static constexpr int64_t kChunk = kP * kAmxPairs * kWide;
  static constexpr int64_t kTurned = 64;  // rows transposed at a time

  Range rows_of(int64_t b) const { return rows.at(b % rows.blocks); }
  Range cols_of(int64_t b) const { return cols.at(b / rows.blocks % cols.blocks); }
  int64_t group_of(int64_t b) const { return b / rows.blocks / cols.blocks; }

  struct Nothing {
    void operator()() const {}
  };

  // sums[panel][row][kWide] = or += over at most kPixels pixels.
  void add_pixels(int64_t b, Range some, int thread, float* sums, bool add) const {
    const Range k = rows_of(b), columns = cols_of(b);
    char* turned = scratch.turned[thread];
    float *panels = scratch.panels[thread], *gathered = scratch.gathered[thread];
    const T* from = grad_output + (group_of(b) * rows.size + k.begin) * out.channel;
    if (planes) {
      pack_rows(from, some, k.size(), reinterpret_cast<T*>(gathered), turned);
    } else {
      turn_rows(from, some, k.size(), gathered, turned);
    }
    const int64_t chunks = ceil_div(some.size(), kAmxDepth), strips = ceil_div(k.size(), kAmxRows);
    const Tap tap = {0, 0};
    const Windows windows = {&tap, 1, chunks, kPitch, chunks};
    for (Range part = {columns.begin, 0}; part.begin < columns.end; part.begin = part.end) {
      part.end = min_of(part.begin + kGathered, columns.end);
      planes ? turn_panels(b, some, part, gathered, panels) : pack_panels(b, some, part, gathered, panels);
      for (int64_t s = 0; s < strips; s += 2) {
        const char* strip[] = {turned + s * kAmxRows * kPitch, turned + (s + 1) * kAmxRows * kPitch};
        for (Range panel = {part.begin, 0}; panel.begin < part.end; panel.begin = panel.end) {
          panel.end = min_of(panel.begin + kWide, part.end);
          const bool narrow = panel.size() <= kAmxPairs, one = s + 1 == strips;
          const auto run =
              one ? (narrow ? &multiply_windows<kP, 1, 1, Nothing> : &multiply_windows<kP, 1, 2, Nothing>)
                  : (narrow ? &multiply_windows<kP, 2, 1, Nothing> : &multiply_windows<kP, 2, 2, Nothing>);
          float* to = sums + (panel.begin - columns.begin) * rows.block_size + s * kAmxRows * kWide;
          Nothing meanwhile;
          run(windows, strip,
              reinterpret_cast<const char*>(panels + (panel.begin - part.begin) / kWide * kPanel), to, add,
              meanwhile);
        }
      }
    }
  }

  // The input's pixels as panels, [panel][chunk of pixels][part][pair][kWide].
  void pack_panels(int64_t b, Range some, Range columns, float* gathered, float* to) const {
    const T* from = input + group_of(b) * g.channels * in.channel;
    const float* rows = gathered;
    int64_t stride = kGatheredStride;
    if constexpr (kP > 1) {
      if (in_place && columns.size() % kWide == 0) {
        rows = from + some.begin * in.pixel + columns.begin;
        stride = in.pixel;
      }
    }
    if (rows == gathered) pack_pixels(from, in, g, some, columns, gathered, stride);
    for (int64_t panel = 0; panel < columns.size(); panel += kWide, to += kPanel) {
      for (int64_t at = 0; at < some.size(); at += kAmxDepth)
        put_columns<T>(rows + at * stride + panel, stride, some.size() - at, to + at / kAmxDepth * kChunk);
    }
  }

  // The same of channels that are planes.
  void turn_panels(int64_t b, Range some, Range columns, float* gathered, float* to) const {
    const T* from = input + group_of(b) * g.channels * in.channel;
    const int64_t plane = g.pixels() / g.images, image = some.begin / plane;
    const bool from_input = in_place && some.end <= (image + 1) * plane;
    if (!from_input) pack_columns(from, in, g, some, columns, order, gathered, kPixelsStride);
    const auto turn = [&](auto rows, int64_t stride) {
      for (int64_t panel = 0; panel < columns.size(); panel += kWide, to += kPanel) {
        const int64_t count = min_of(kWide, columns.size() - panel);
        for (int64_t at = 0; at < some.size(); at += kAmxDepth) {
          alignas(64) float turned[kAmxDepth * kWide];
          if (count < kWide) fill_zero(turned, kAmxDepth * kWide);
          transpose_block(rows + panel * stride + at, stride, count, min_of(kAmxDepth, some.size() - at),
                          [&](int64_t i) { return turned + i * kWide; });
          put_columns<T>(turned, kWide, some.size() - at, to + at / kAmxDepth * kChunk);
        }
      }
    };
    if (from_input) {
      turn(from + image * in.image + columns.begin * in.channel + some.begin - image * plane, in.channel);
    } else {
      turn(static_cast<const float*>(gathered), kPixelsStride);
    }
  }

  // The gradient's pixels, which are neighbours: [k][chunk of pixels][part].
  void pack_rows(const T* from, Range some, int64_t count, T* joined_pixels, char* to) const {
    const int64_t plane = shape.output_pixels(), first = some.begin / plane;
    const T* end = grad_output + shape.N * out.image;
    for (int64_t k = 0; k < count; ++k, from += out.channel, to += kPitch) {
      if (some.end <= (first + 1) * plane) {
        put_numbers(from + first * out.image + some.begin - first * plane, some.size(), end, to);
        continue;
      }
      for_each_run(g, some, [&](int64_t at, int64_t image, int64_t pixel, int64_t, int64_t size) {
        __builtin_memcpy(joined_pixels + at, from + image * out.image + pixel, size * sizeof(T));
      });
      put_numbers(joined_pixels, some.size(), joined_pixels + some.size(), to);
    }
  }

  // The gradient's pixels, [pixel][K], as [k][chunk of pixels][part]. Pixels of all images are one matrix.
  void turn_rows(const T* from, Range some, int64_t count, float* turned, char* to) const {
    from += some.begin * out.pixel;
    for (int64_t at = 0; at < some.size(); at += kAmxDepth, from += kAmxDepth * out.pixel, to += kP * 64) {
      const int64_t depth = min_of(kAmxDepth, some.size() - at);
      if constexpr (kP == 1) {
        const auto row = [&](int64_t k) { return reinterpret_cast<float*>(to + k * kPitch); };
        transpose_block(BFloat16Pairs{from, out.pixel}, 2 * out.pixel, depth / 2, count, row);
        if (depth == kAmxDepth) continue;
        for (int64_t k = 0; k < count; ++k) {
          float* left = row(k) + depth / 2;
          fill_zero(left, kAmxPairs - depth / 2);
          if (depth % 2 != 0) *left = bit_cast<float>(uint32_t(from[(depth - 1) * out.pixel + k].bits));
        }
      } else {
        for (Range k = {0, 0}; k.begin < count; k.begin = k.end) {
          k.end = min_of(k.begin + kTurned, count);
          transpose_block(from + k.begin, out.pixel, depth, k.size(),
                          [&](int64_t i) { return turned + i * kAmxDepth; });
          for (int64_t i = 0; i < k.size(); ++i) {
            const float* row = turned + i * kAmxDepth;
            char* parts = to + (k.begin + i) * kPitch;
            depth == kAmxDepth ? put_chunk(row, parts) : put_chunk(row, depth, parts);
          }
        }
      }
    }
  }

  // Whether all are finite.
  bool store_weight(int64_t b, const float* sums) const {
    const Range k = rows_of(b), columns = cols_of(b);
    T* weight = grad_weight + (group_of(b) * rows.size + k.begin) * w.k;
    const bool as_weights = order.tap == 1;  // columns are in the order of the weight
    const WeightStrides strides = as_weights ? WeightStrides{w.k, 1, 0} : w;
    bool finite = true;
    for (Range panel = {columns.begin, 0}; panel.begin < columns.end; panel.begin = panel.end) {
      panel.end = min_of(panel.begin + kWide, columns.end);
      const float* from = sums + (panel.begin - columns.begin) * rows.block_size;
      for (int64_t i = 0; i < k.size(); ++i)
        store_columns_of(from + i * kWide, panel, as_weights ? cols.size : g.channels, strides,
                         weight + i * w.k);
      if (kP > 1) finite &= all_finite(from, k.size(), panel.size());
    }
    return finite;
  }
  static bool all_finite(const float* from, int64_t count, int64_t width) {
    Vec<float> not_finite = {};
    for (int64_t i = 0; i < count; ++i, from += kWide) {
      for (int64_t n = 0; n < width; n += kAmxPairs)
        not_finite += bit_cast<Vec<float>>(first_lanes(bit_cast<UintVec>(load(from + n)), width - n)) * 0.0f;
    }
    return !any_nan(not_finite);
  }

  ConvShape shape;
  const T *input, *grad_output;
  T* grad_weight;
  Strides in, out;
  WeightStrides w;
  CutAxis rows, cols;
  Gather g;
  bool planes;        // channels first
  bool in_place;      // the input's pixels are the gathered ones
  ColumnOrder order;  // of the gathered ones of planes
  int64_t pixels;
  SplitSums<float> split;
  struct {
    PerThread<char> turned;
    PerThread<float> panels, gathered, sums;
    int64_t bytes;
  } scratch;
};

inline int64_t grad_weight_amx_workspace(const ConvProblem& p) {
  if (p.dtype == DType::kBFloat16) return workspace_of<Only<GradWeightAmx<BFloat16>>>(p);
  return max_of(workspace_of<Only<GradWeightAmx<float>>>(p), workspace_of<GradWeightGemmClasses>(p));
}
inline void grad_weight_amx(const ConvProblem& p, const ConvBuffers& b, const Parallel& parallel,
                            char* workspace) {
  if (p.dtype == DType::kBFloat16) {
    GradWeightAmx<BFloat16>(p, b, workspace).run(parallel);
  } else if (!GradWeightAmx<float>(p, b, workspace).run(parallel)) {
    run_by<GradWeightGemmClasses>(p, b, parallel, workspace);
  }
}

inline const char* gemm_amx_grad_weight_refuses(const ConvProblem& p);  // conv_grad_weight_choice.h
constexpr ConvKernel kConvGradWeightAmx = {"gemm_amx", "matrix product over pixels by AMX",
                                           gemm_amx_grad_weight_refuses, grad_weight_amx_workspace,
                                           grad_weight_amx};

}  // namespace cnnext::cpu::CNNEXT_ISA

#endif  // AVX-512
