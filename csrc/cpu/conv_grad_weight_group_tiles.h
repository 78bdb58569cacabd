// Gradient of a convolution with respect to the weight where groups are as wide as one or two vectors:
//   grad_weight[k, tap, c] = sum over output pixels of grad_output[pixel, k] * input[pixel + tap, c]
// A tile of output channels, whose gradients are broadcast, times the input channels as lanes stays in
// registers over some rows of pixels.
//
// A task owns a few groups. Of each image it copies some rows of both operands into scratch memory (see
// conv_group_tiles.h) and adds to their sums in the order of the images: threads do not change them.
#pragma once

#include "conv_grad_weight_gemm.h"
#include "conv_group_tiles.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int kGroupGradSums = CNNEXT_VECTOR_BYTES == 64 ? 16 : 8;  // vectors in registers

struct GroupGradSteps {  // in elements, from one row to the next
  int64_t grad_row, source_row;
};

// sums[k][Vectors] += over rows x width pixels, for Rows output channels. Pixels are Pixel elements apart.
// Pairs are of a pixel and the next: of every other pixel in grad, of each in source.
template <Product P, class A, int Rows, int Vectors, int64_t Pixel>
void group_grad_tile(const A* grad, const A* source, int64_t rows, int64_t width, const GroupGradSteps& s,
                     A* sums) {
  constexpr int64_t L = kLanes<A>;
  Vec<A> sum[Rows][Vectors] = {};
  for (; rows > 0; --rows, grad += s.grad_row, source += s.source_row) {
    const A *a = grad, *b = source;
    const auto add = [&](const Vec<A>* y) __attribute__((always_inline)) {
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        const Vec<A> x = broadcast(a[r]);
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) sum[r][v] = add_product<P>(sum[r][v], x, y[v]);
      }
    };
    constexpr int64_t kStep = P == Product::kPairs ? 2 : 1;
    Vec<A> y[Vectors];
    for (int64_t n = 0; n + kStep <= width; n += kStep, a += Pixel, b += kStep * Pixel) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) y[v] = load(b + v * L);
      add(y);
    }
    if constexpr (P == Product::kPairs) {
      if (width % 2 == 0) continue;
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) y[v] = bit_cast<Vec<A>>(bit_cast<UintVec>(load(b + v * L)) & 0xffffu);
      add(y);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      A* to = sums + r * Pixel + v * L;
      store(to, load(to) + sum[r][v]);
    }
  }
}

constexpr int64_t kMostGroupInputs = 32;  // channels of a group, which a row of sums has room for

// T is the type of the tensors; their products are those of numbers, or of pairs of pixels in bfloat16.
template <class T, Product P = Product::kNumbers>
struct GroupTilesGradWeight {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;
  static constexpr int64_t kPixel = kMostGroupInputs;               // elements of a copied pixel
  static constexpr int64_t kBoxElements = (192 << 10) / sizeof(A);  // of scratch memory, where rows are short
  static constexpr int64_t kTaskGroups = 4;  // whose channels share lines or follow them
  static constexpr int64_t kChain = 256;     // pixels summed before they are added to memory

  GroupTilesGradWeight(const ConvProblem& p, const ConvBuffers& b, char* workspace)
      : shape(p.shape),
        channels_last(p.layout == Layout::kChannelsLast),
        y(forward_phase(shape.axis[1])),
        x(forward_phase(shape.axis[2])),
        row(shape, false),
        grad_row(0, x.count),
        C(shape.C_per_group()),
        K(shape.K_per_group()),
        input(static_cast<const T*>(b.input)),
        grad_output(static_cast<const T*>(b.output)),
        grad_weight(static_cast<T*>(b.weight)),
        w(weight_strides_of(p.weight_layout, C, shape.taps())) {
    band = y.count;
    while (band > 1 && box_size() > kBoxElements) band = ceil_div(band, 2);
    sums_size = shape.taps() * K * kPixel;
    scratch_size = round_up(kTaskGroups * sums_size + box_size(), kAlignment / int64_t(sizeof(A)));
    memory.base = workspace;
    scratch = memory.take<A>(p.threads * scratch_size);
  }

  int64_t workspace_bytes() const { return memory.bytes; }

  int64_t source_size() const {  // of a band, at most
    return source_extent(shape.axis[1], false, band) * row.size() * kPixel;
  }
  int64_t box_size() const { return source_size() + band * x.count * kPixel; }

  void run(const Parallel& parallel) const {
    parallel(ceil_div(shape.groups, kTaskGroups), [&](int64_t task, int thread) {
      const Range groups = block(task, kTaskGroups, shape.groups);
      A* sums = scratch + thread * scratch_size;
      fill_zero(sums, kTaskGroups * sums_size);
      for (int64_t image = 0; image < shape.N; ++image) {
        for (int64_t begin = 0; begin < y.count; begin += band) {
          for (int64_t g = groups.begin; g < groups.end; ++g)
            add_band(image, g, {begin, min_of(begin + band, y.count)}, g + 1 == groups.end,
                     sums + (g - groups.begin) * sums_size, sums + kTaskGroups * sums_size);
        }
      }
      for (int64_t g = groups.begin; g < groups.end; ++g, sums += sums_size) store_weight(g, sums);
    });
  }

  void store_weight(int64_t group, const A* sums) const {
    T* to = grad_weight + group * K * w.k;
    for (int64_t tap = 0; tap < shape.taps(); ++tap) {
      for (int64_t k = 0; k < K; ++k, sums += kPixel) {
        T* out = to + k * w.k + tap * w.tap;
        if (w.c == 1) {
          for (int64_t c = 0; c < C; c += L) store(out + c, load(sums + c));
        } else {
          for (int64_t c = 0; c < C; ++c) store_one(out + c * w.c, sums[c]);
        }
      }
    }
  }

  // Some rows of one image's pixels.
  void add_band(int64_t image, int64_t group, Range rows, bool last_group, A* sums, A* box) const {
    const Range read = source_range(shape.axis[1], false, rows.begin, rows.end);
    A* grads = box + source_size();
    const int64_t in_image = shape.C * y.source * x.source, out_image = shape.K * y.count * x.count;
    if (channels_last) {
      copy_group_rows(input + image * in_image + group * C, shape.C, x.source, read, row, C, kPixel,
                      last_group ? in_image - (kTaskGroups - 1) * C : C, box);
      copy_group_rows(grad_output + image * out_image + group * K, shape.K, x.count, rows, grad_row, K,
                      kPixel, last_group ? out_image - (kTaskGroups - 1) * K : K, grads);
    } else {
      const int64_t in_plane = y.source * x.source, out_plane = y.count * x.count;
      turn_group_rows(input + image * in_image + group * C * in_plane, in_plane, x.source, read, row, C,
                      kPixel, box);
      turn_group_rows(grad_output + image * out_image + group * K * out_plane, out_plane, x.count, rows,
                      grad_row, K, kPixel, grads);
    }
    if constexpr (P == Product::kPairs) {
      pair_rows<1>(box, kPixel, read.size() * row.size(), C);
      for (int64_t i = 0; i < rows.size(); ++i) pair_rows(grads + i * x.count * kPixel, kPixel, x.count, K);
    }
    const GroupGradSteps steps = {x.count * kPixel, y.source_step * row.size() * kPixel};
    const int64_t chain = max_of(1, kChain / x.count);
    for (int64_t m1 = 0; m1 < y.taps; ++m1) {
      const Range all = positions_inside_of(y, m1, rows);
      for (int64_t m2 = 0; m2 < x.taps; ++m2) {
        const int64_t column = row.at(x.source_index(0, m2));
        A* to = sums + (m1 * x.taps + m2) * K * kPixel;
        for (int64_t j = all.begin; j < all.end; j += chain) {
          const int64_t from = (y.source_index(j, m1) - read.begin) * row.size() + column;
          add_tiles(grads + (j - rows.begin) * x.count * kPixel, box + from * kPixel,
                    min_of(chain, all.end - j), steps, to);
        }
      }
    }
  }

  // Those of some positions for which the tap lies inside the source.
  static Range positions_inside_of(const PhaseAxis& y, int64_t m, Range rows) {
    Range inside = rows;
    while (inside.begin < inside.end && y.source_index(inside.begin, m) < 0) ++inside.begin;
    while (inside.end > inside.begin && y.source_index(inside.end - 1, m) >= y.source) --inside.end;
    return inside;
  }

  void add_tiles(const A* grad, const A* source, int64_t rows, const GroupGradSteps& steps, A* sums) const {
    const bool wide = C > L;
    for (int64_t c = 0; c < C; c += kCols<A>) {
      for (int64_t k = 0; k < K; k += kGroupGradSums / (wide ? 2 : 1)) {
        A* to = sums + k * kPixel + c;
        if (wide) {
          group_grad_tile<P, A, kGroupGradSums / 2, 2, kPixel>(grad + k, source + c, rows, x.count, steps,
                                                               to);
        } else {
          group_grad_tile<P, A, kGroupGradSums, 1, kPixel>(grad + k, source + c, rows, x.count, steps, to);
        }
      }
    }
  }

  ConvShape shape;
  bool channels_last;
  PhaseAxis y, x;
  GroupRows row, grad_row;
  int64_t C, K;  // channels of a group
  const T *input, *grad_output;
  T* grad_weight;
  WeightStrides w;
  int64_t band, sums_size, scratch_size;
  ScratchLayout memory;
  A* scratch;
};

inline const char* group_tiles_grad_weight_excludes(const ConvProblem& p) {
  const int64_t K = p.shape.K_per_group();
  if (const char* reason = group_tiles_excludes<true>(p)) return reason;
  if (K % 16 != 0) return "takes a multiple of 16 output channels in a group";
  if (p.shape.C_per_group() > kMostGroupInputs) return "takes up to 32 input channels in a group";
  return p.shape.groups < 16 ? "takes 16 groups or more" : nullptr;
}

using PairsGroupTilesGradWeight = GroupTilesGradWeight<BFloat16, Product::kPairs>;

inline const char* group_tiles_bf16_grad_weight_refuses(const ConvProblem& p) {
  const char* reason = gemm_bf16_grad_weight_refuses(p);
  return reason ? reason : group_tiles_grad_weight_excludes(p);
}

constexpr ConvKernel kConvGradWeightGroupTilesBf16 = entry<Only<PairsGroupTilesGradWeight>>(
    "group_tiles_bf16", "a tile of channels for each group, by products of pairs of pixels in bfloat16",
    group_tiles_bf16_grad_weight_refuses);

template <class T>
using GroupTilesGradWeightOf = GroupTilesGradWeight<T>;
inline const char* group_tiles_grad_weight_refuses(const ConvProblem& p);  // conv_grad_weight_choice.h
constexpr ConvKernel kConvGradWeightGroupTiles = entry<ByType<GroupTilesGradWeightOf>>(
    "group_tiles", "a tile of channels for each group", group_tiles_grad_weight_refuses);

}  // namespace cnnext::cpu::CNNEXT_ISA
