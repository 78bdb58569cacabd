// Depthwise convolution in channels first by vectors along a row, and its gradient with respect to the input
// where there is no stride. A lane for each channel would have to be transposed, there and back.
//
// A tile is some rows of the destination times one or two vectors: what it loads is multiplied by the taps of
// all its rows. Lanes that lie in the padding are zero by a mask. The last vector of a row overlaps the one
// before, and writes the same there again.
#pragma once

#include "conv_lanes.h"
#include "conv_phases.h"
#include "entry.h"
#include "tasks.h"

#if CNNEXT_VECTOR_BYTES >= 32
namespace cnnext::cpu::CNNEXT_ISA {

constexpr int kDepthwiseRows = CNNEXT_VECTOR_BYTES == 64 ? 7 : 3;  // of a tile, at most
constexpr int kDepthwiseTaps = CNNEXT_VECTOR_BYTES == 64 ? 5 : 3;  // of a row, at most
// Rows of 16 lanes leave too few of them full: a lane for each channel is up to 2.5 times as fast there.
constexpr bool kDepthwiseDilated = CNNEXT_VECTOR_BYTES < 64;
constexpr int64_t kDepthwiseProducts = 1 << 15;  // of a task, about

// Lanes [begin, end), and a load of these: the others are zero, and are not read.
#if CNNEXT_VECTOR_BYTES == 64
using LaneMask = __mmask16;
inline LaneMask mask_of(Range lanes) {
  return LaneMask(((1u << lanes.end) - 1) & ~((1u << lanes.begin) - 1));
}
CNNEXT_INLINE Vec<float> load_masked(const float* p, LaneMask lanes) {
  return (Vec<float>)_mm512_maskz_loadu_ps(lanes, p);
}
#else
using LaneMask = IntVec;
inline LaneMask mask_of(Range lanes) {
  LaneMask mask = {};
  for (int64_t lane = lanes.begin; lane < lanes.end; ++lane) mask[lane] = -1;
  return mask;
}
CNNEXT_INLINE Vec<float> load_masked(const float* p, LaneMask lanes) {
  typedef float Block __attribute__((vector_size(32), aligned(4)));
  Vec<float> v;
  asm("vmaskmovps %1, %2, %0" : "=x"(v) : "m"(*reinterpret_cast<const Block*>(p)), "x"(lanes));
  return v;
}
#endif

struct DepthwiseTile {
  const float* source;  // of the first row's first vector, where its first tap reads
  int64_t source_row;   // from a row to the next that it reads, in elements
  int64_t tap;          // from a tap to the next, with a stride of one
  Range inside;         // rows that are not padding
  const LaneMask* masks;
  const float* weight;  // [taps][taps]
  float bias;
  float* to;
  int64_t row, vector;  // from a row to the next, from a vector to the next
  int64_t count;        // lanes of a vector that are stored
  const EpilogueOf<float>* epilogue;
};

// Masks of a tile: [tap][vector], with a stride of two [pair of taps][vector][half].
template <int Taps, int Stride, bool Dilated, int Rows, int Vectors>
void depthwise_tile(const DepthwiseTile& given) {
  constexpr int L = kLanes<float>;
  using Lanes = std::make_integer_sequence<int, L>;
  const DepthwiseTile tile = given;  // a copy: nothing that is stored can change it
  Vec<float> sum[Rows][Vectors] = {};
  const float* x = tile.source;
#pragma GCC unroll 17
  for (int y = 0; y < (Rows - 1) * Stride + Taps; ++y, x += tile.source_row) {
    if (y < tile.inside.begin || y >= tile.inside.end) continue;
    Vec<float> odd[Vectors];  // what the second tap of a pair reads
#pragma GCC unroll 5
    for (int n = 0; n < Taps; ++n) {
      Vec<float> value[Vectors];
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) {
        const float* from = x + n * (Dilated ? tile.tap : 1) + v * Stride * tile.vector;
        if constexpr (Stride == 1) {
          value[v] = load_masked(from, tile.masks[n * Vectors + v]);
        } else if (n % 2 == 0) {
          const LaneMask* mask = tile.masks + (n / 2 * Vectors + v) * 2;
          const Vec<float> low = load_masked(from, mask[0]), high = load_masked(from + L, mask[1]);
          value[v] = every_other<float, 0, 2>(low, high, Lanes());
          odd[v] = every_other<float, 1, 2>(low, high, Lanes());
        } else {
          value[v] = odd[v];
        }
      }
#pragma GCC unroll 7
      for (int r = 0; r < Rows; ++r) {
        const int m = y - r * Stride;
        if (m < 0 || m >= Taps) continue;
        const Vec<float> factor = broadcast(tile.weight[m * Taps + n]);
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) sum[r][v] += value[v] * factor;
      }
    }
  }
  const Vec<float> bias = broadcast(tile.bias);
  if (!tile.epilogue->any() && tile.count == L) {
#pragma GCC unroll 7
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) store(tile.to + r * tile.row + v * tile.vector, sum[r][v] + bias);
    }
    return;
  }
  Vec<float> results[Rows][Vectors];
#pragma GCC unroll 7
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) results[r][v] = sum[r][v] + bias;
  }
  put_finished(*tile.epilogue, results[0], Rows, Vectors, tile.to, tile.row, tile.vector, tile.count);
}

struct DepthwiseRows {
  using RunTile = void (*)(const DepthwiseTile&);
  static constexpr int64_t L = kLanes<float>;

  DepthwiseRows(const ConvProblem& p, bool gradient, const ConvBuffers& b, char* workspace)
      : phases(p, gradient),
        g(phases.at(0)),
        operands(operands_of<float>(b, gradient)),
        planes(g.images * phases.shape.groups * g.axis[0].count),
        taps(g.axis[1].taps),
        stride(g.axis[1].source_step),
        row_step(g.axis[1].offset_step),
        columns(ceil_div(g.axis[2].count, 2 * L)) {
    // A task is a block of a plane's rows, or some planes.
    const int64_t height = g.axis[1].count, products = max_of(1, height * g.axis[2].count * taps * taps);
    row_blocks = clamp(products / kDepthwiseProducts, 1, ceil_div(height, 4 * kDepthwiseRows));
    planes_each = clamp(kDepthwiseProducts / products, 1, max_of(planes / (4 * p.threads), 1));
    for (int64_t m = 0; m < taps * taps; ++m) weight_at[m] = int32_t(phases.weight_offset(g, m));
    memory.base = workspace;
    masks = memory.take<LaneMask>(columns * kMostMasks);
  }

  int64_t workspace_bytes() const { return memory.bytes; }
  bool applies_epilogue() const { return true; }

  void run(const Parallel& parallel) const {
    make_masks();
    parallel(ceil_div(planes, planes_each) * row_blocks, [&](int64_t task, int) {
      CutAxis cut(g.axis[1].count, 1);
      cut.cut(row_blocks);
      const Range rows = cut.at(task % row_blocks);
      const Range some = block(task / row_blocks, planes_each, planes);
      for (int64_t plane = some.begin; plane < some.end; ++plane) fill_rows(plane, rows);
    });
  }

 private:
  // A column of tiles: its first pixel, its vectors, and the distance between them.
  struct Column {
    int64_t first, vectors, vector;
  };
  Column column_at(int64_t index) const {
    const int64_t width = g.axis[2].count, first = min_of(2 * index * L, max_of(0, width - L));
    const int64_t vectors = width - 2 * index * L > L ? 2 : 1;
    return {first, vectors, min_of(L, width - L - first)};
  }

  void make_masks() const {
    const PhaseAxis& w = g.axis[2];
    for (int64_t index = 0; index < columns; ++index) {
      const Column column = column_at(index);
      LaneMask* mask = masks + index * kMostMasks;
      for (int64_t n = 0; n < taps; n += stride) {
        for (int64_t v = 0; v < column.vectors; ++v) {
          const int64_t position = w.source_index(column.first + v * column.vector, n);
          for (int64_t half = 0; half < stride; ++half) {
            const int64_t first = position + half * L;  // that lane 0 reads
            *mask++ = mask_of({clamp(-first, 0, L), clamp(w.source - first, 0, L)});
          }
        }
      }
    }
  }

  // Planes are numbered as in memory: of images, channels, and the first axis.
  void fill_rows(int64_t plane, Range rows) const {
    const PhaseAxis &h = g.axis[1], &w = g.axis[2];
    const int64_t channel = plane / g.axis[0].count % phases.shape.groups;
    const float* weight = operands.weight + channel * phases.weight_group;
    float weights[kDepthwiseTaps * kDepthwiseTaps];
    for (int64_t m = 0; m < taps * taps; ++m) weights[m] = weight[weight_at[m]];
    DepthwiseTile tile;
    tile.source_row = h.offset_step * w.source;
    tile.tap = w.offset_step;
    tile.weight = weights;
    tile.bias = operands.bias ? operands.bias[channel] : 0;
    tile.row = row_step * w.count;
    tile.count = min_of(w.count, L);
    tile.epilogue = &operands.epilogue;
    // Rows of a tile are a dilation apart: they read the same ones.
    for (int64_t first = rows.begin; first < min_of(rows.begin + row_step, rows.end); ++first) {
      const int64_t count = ceil_div(rows.end - first, row_step);
      int64_t done = 0;
      for (int64_t tiles = ceil_div(count, kDepthwiseRows); tiles > 0; --tiles) {
        const int64_t height = ceil_div(count - done, tiles), row = first + done * row_step;
        fill_tiles(plane, row, height, tile);
        done += height;
      }
    }
  }
  void fill_tiles(int64_t plane, int64_t row, int64_t height, DepthwiseTile& tile) const {
    const PhaseAxis &h = g.axis[1], &w = g.axis[2];
    const RunTile runs[] = {tile_of<1>(height), tile_of<2>(height)};
    const int64_t from = h.source_index(row, 0);
    const float* source = operands.source + (plane * h.source + from) * w.source;
    float* to = operands.destination + (plane * h.count + row) * w.count;
    tile.inside = {ceil_div(max_of(-from, 0), h.offset_step),
                   ceil_div(max_of(h.source - from, 0), h.offset_step)};
    for (int64_t index = 0; index < columns; ++index) {
      const Column column = column_at(index);
      tile.masks = masks + index * kMostMasks;
      tile.source = source + w.source_index(column.first, 0);
      tile.to = to + column.first;
      tile.vector = column.vector;
      runs[column.vectors - 1](tile);
    }
  }

  template <int Vectors>
  RunTile tile_of(int64_t height) const {
    if constexpr (kDepthwiseTaps > 3) {
      if (taps == 5) return tile_of<Vectors, 5>(height);
    }
    return tile_of<Vectors, 3>(height);
  }
  template <int Vectors, int Taps>
  RunTile tile_of(int64_t height) const {
    return with_count<kDepthwiseRows>(height, [this](auto rows) -> RunTile {
      if (stride == 2) return depthwise_tile<Taps, 2, false, rows, Vectors>;
      if constexpr (kDepthwiseDilated) {
        if (g.axis[2].offset_step > 1) return depthwise_tile<Taps, 1, true, rows, Vectors>;
      }
      return depthwise_tile<Taps, 1, false, rows, Vectors>;
    });
  }

  static constexpr int64_t kMostMasks = 2 * (kDepthwiseTaps + 1);

  Phases phases;
  Gather g;
  Operands<float> operands;
  int64_t planes, taps, stride, row_step;
  int64_t columns;  // of tiles
  int64_t row_blocks, planes_each;
  int32_t weight_at[kDepthwiseTaps * kDepthwiseTaps];
  ScratchLayout memory;
  LaneMask* masks;  // [column of tiles][kMostMasks]
};

template <bool Gradient>
const char* depthwise_rows_refuses(const ConvProblem& p) {
  const ConvShape& s = p.shape;
  const Window &d = s.axis[0], &h = s.axis[1], &w = s.axis[2];
  if (p.dtype != DType::kFloat32) return "takes float32";
  if (s.C_per_group() > 1 || s.K_per_group() > 1) return "takes one channel in a group, to one channel";
  if (p.layout != Layout::kChannelsFirst) return "takes channels first";
  if (h.kernel != w.kernel || w.kernel < 3 || w.kernel > kDepthwiseTaps || w.kernel % 2 == 0)
    return "takes kernels of 3x3 and, with AVX-512, 5x5";
  if (d.kernel != 1 || d.stride != 1 || d.padding != 0) return "takes planes";
  const bool dilated = h.dilation > 1 || w.dilation > 1;
  if (dilated && !kDepthwiseDilated) return "takes no dilation";
  if (h.dilation > h.input || w.dilation > w.input) return "takes dilations that stay within the plane";
  if (h.stride != w.stride || h.stride > (Gradient || dilated ? 1 : 2))
    return "takes strides of one and, forward without dilation, of two";
  const int64_t width = Gradient ? w.input : w.output, lanes = round_up(width, kLanes<float>);
  return 3 * width >= 2 * lanes ? nullptr : "takes rows that fill vectors to two thirds";
}

template <bool Gradient>
constexpr ConvKernel kConvDepthwiseRows = entry<Only<DepthwiseRows, Gradient>>(
    "depthwise_rows", "vectors along the rows of each channel's plane", depthwise_rows_refuses<Gradient>);

}  // namespace cnnext::cpu::CNNEXT_ISA
#endif
