// Gradient of a convolution with respect to the weight where groups are as wide as one or two vectors:
//   grad_weight[k, tap, c] = sum over output pixels of grad_output[pixel, k] * input[pixel + tap, c]
// A tile of output channels, whose gradients are broadcast, times the input channels as lanes stays in
// registers over some rows of pixels. Of joined groups (conv_group_rows.h) the gradients of as many are
// broadcast at a time, and for the inputs that several taps read.
//
// A task owns a few bundles. Of each image it copies some rows of both operands into scratch memory (see
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

// The same for some taps of joined groups, each with a source: sums[tap][k][lane], lanes being [input
// channel][group].
template <class A, int Joined, int Taps, int64_t Pixel>
void joined_grad_tile(const A* grad, const A* const* source, int64_t rows, int64_t width,
                      const GroupGradSteps& s, int64_t sums_tap, A* sums) {
  constexpr int kOutputs = int(kLanes<A>) / Joined;
  Vec<A> sum[Taps][kOutputs] = {};
  for (int64_t row = 0; row < rows; ++row) {
    const A *a = grad + row * s.grad_row, *b[Taps];
#pragma GCC unroll 3
    for (int t = 0; t < Taps; ++t) b[t] = source[t] + row * s.source_row;
    for (int64_t n = 0; n < width * Pixel; n += Pixel) {
      Vec<A> y[Taps];
#pragma GCC unroll 3
      for (int t = 0; t < Taps; ++t) y[t] = load(b[t] + n);
#pragma GCC unroll 8
      for (int k = 0; k < kOutputs; ++k) {
        const Vec<A> x = repeat<Joined>(a + n + k * Joined);
#pragma GCC unroll 3
        for (int t = 0; t < Taps; ++t) sum[t][k] += x * y[t];
      }
    }
  }
#pragma GCC unroll 3
  for (int t = 0; t < Taps; ++t) {
#pragma GCC unroll 8
    for (int k = 0; k < kOutputs; ++k) {
      A* to = sums + t * sums_tap + k * Pixel;
      store(to, load(to) + sum[t][k]);
    }
  }
}

// T is the type of the tensors; their products are those of numbers, or of pairs of pixels in bfloat16.
template <class T, Product P = Product::kNumbers>
struct GroupTilesGradWeight {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;
  static constexpr int64_t kBoxElements = (192 << 10) / sizeof(A);  // of scratch memory, where rows are short
  static constexpr int64_t kTaskBundles = 4;  // at most, whose channels share lines or follow them
  static constexpr int64_t kChain = 256;      // pixels summed before they are added to memory
  static constexpr int kTaps = 3;             // of joined groups, at a time

  GroupTilesGradWeight(const ConvProblem& p, const ConvBuffers& b, char* workspace)
      : shape(p.shape),
        channels_last(p.layout == Layout::kChannelsLast),
        y(forward_phase(shape.axis[1])),
        x(forward_phase(shape.axis[2])),
        row(shape, false),
        grad_row(0, x.count),
        joined(P == Product::kPairs ? 1 : joined_groups(p)),
        bundles(shape.groups / joined),
        C(joined * shape.C_per_group()),
        K(joined * shape.K_per_group()),
        outputs(shape.K_per_group()),
        pixel(max_of(C, K) <= 8    ? 8
              : max_of(C, K) <= 16 ? 16
                                   : kMostChannels),
        input(static_cast<const T*>(b.input)),
        grad_output(static_cast<const T*>(b.output)),
        grad_weight(static_cast<T*>(b.weight)),
        w(weight_strides_of(p.weight_layout, shape.C_per_group(), shape.taps())) {
    band = y.count;
    while (band > 1 && box_size() > kBoxElements) band = ceil_div(band, 2);
    task_bundles = clamp(bundles / p.threads, 1, kTaskBundles);
    sums_size = shape.taps() * outputs * pixel;
    memory.base = workspace;
    scratch = memory.take_each<A>(p.threads, task_bundles * sums_size + box_size());
  }

  int64_t workspace_bytes() const { return memory.bytes; }

  int64_t source_size() const {  // of a band, at most
    return source_extent(shape.axis[1], false, band) * row.size() * pixel;
  }
  int64_t box_size() const { return source_size() + band * x.count * pixel; }

  void run(const Parallel& parallel) const {
    parallel(ceil_div(bundles, task_bundles), [&](int64_t task, int thread) {
      const Range some = block(task, task_bundles, bundles);
      A* sums = scratch[thread];
      fill_zero(sums, task_bundles * sums_size);
      for (int64_t image = 0; image < shape.N; ++image) {
        for (int64_t begin = 0; begin < y.count; begin += band) {
          for (int64_t n = some.begin; n < some.end; ++n)
            add_band(image, n, {begin, min_of(begin + band, y.count)}, n + 1 == some.end,
                     sums + (n - some.begin) * sums_size, sums + task_bundles * sums_size);
        }
      }
      for (int64_t n = some.begin; n < some.end; ++n, sums += sums_size) store_weight(n, sums);
    });
  }

  void store_weight(int64_t bundle, const A* sums) const {
    T* to = grad_weight + bundle * K * w.k;
    for (int64_t tap = 0; tap < shape.taps(); ++tap) {
      for (int64_t k = 0; k < outputs; ++k, sums += pixel) {
        T* out = to + k * w.k + tap * w.tap;
        if (joined > 1) {
          for (int64_t n = 0; n < C; ++n)
            store_one(out + n % joined * outputs * w.k + n / joined * w.c, sums[n]);
        } else if (w.c == 1) {
          for (int64_t c = 0; c < C; c += L) store(out + c, load(sums + c));
        } else {
          for (int64_t c = 0; c < C; ++c) store_one(out + c * w.c, sums[c]);
        }
      }
    }
  }

  // Some rows of one image's pixels.
  void add_band(int64_t image, int64_t bundle, Range rows, bool last_of_task, A* sums, A* box) const {
    const Range read = source_range(shape.axis[1], false, rows.begin, rows.end);
    A* grads = box + source_size();
    const int64_t in_image = shape.C * y.source * x.source, out_image = shape.K * y.count * x.count;
    if (channels_last) {
      with_joined<A>(joined, [&](auto j) {
        copy_group_rows<j>(input + image * in_image + bundle * C, shape.C, x.source, read, row, C, pixel,
                           last_of_task ? in_image - (task_bundles - 1) * C : C, box);
        copy_group_rows<j>(grad_output + image * out_image + bundle * K, shape.K, x.count, rows, grad_row, K,
                           pixel, last_of_task ? out_image - (task_bundles - 1) * K : K, grads);
      });
    } else {
      const int64_t in_plane = y.source * x.source, out_plane = y.count * x.count;
      turn_group_rows(input + image * in_image + bundle * C * in_plane, in_plane, x.source, read, row, C,
                      pixel, box, joined);
      turn_group_rows(grad_output + image * out_image + bundle * K * out_plane, out_plane, x.count, rows,
                      grad_row, K, pixel, grads, joined);
    }
    if constexpr (P == Product::kPairs) {
      pair_rows<1>(box, pixel, read.size() * row.size(), C);
      for (int64_t i = 0; i < rows.size(); ++i) pair_rows(grads + i * x.count * pixel, pixel, x.count, K);
    }
    const GroupGradSteps steps = {x.count * pixel, y.source_step * row.size() * pixel};
    const int64_t chain = max_of(1, kChain / x.count);
    for (int64_t m1 = 0; m1 < y.taps; ++m1) {
      const Range all = positions_inside_of(y, m1, rows);
      for (int64_t j = all.begin; j < all.end; j += chain) {
        const int64_t some = min_of(chain, all.end - j);
        const A* grad = grads + (j - rows.begin) * x.count * pixel;
        const A* source = box + (y.source_index(j, m1) - read.begin) * row.size() * pixel;
        add_row_of_taps(grad, source, some, steps, sums + m1 * x.taps * outputs * pixel);
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

  // To the sums of the taps of one row of the kernel.
  void add_row_of_taps(const A* grad, const A* source, int64_t rows, const GroupGradSteps& steps,
                       A* sums) const {
    const int64_t tap_sums = outputs * pixel;
    const auto source_of = [&](int64_t m) { return source + row.at(x.source_index(0, m)) * pixel; };
    if (joined == 1) {
      for (int64_t m = 0; m < x.taps; ++m) add_tiles(grad, source_of(m), rows, steps, sums + m * tap_sums);
      return;
    }
    for (int64_t m = 0; m < x.taps; m += kTaps) {
      const int64_t taps = min_of(kTaps, x.taps - m);
      const A* sources[kTaps];
      for (int64_t t = 0; t < taps; ++t) sources[t] = source_of(m + t);
      with_joined<A>(joined, [&](auto j) {
        constexpr int64_t kPixel = max_of(L, 8);
        with_count<kTaps>(taps, [&](auto t) {
          joined_grad_tile<A, j, t, kPixel>(grad, sources, rows, x.count, steps, tap_sums,
                                            sums + m * tap_sums);
        });
      });
    }
  }

  void add_tiles(const A* grad, const A* source, int64_t rows, const GroupGradSteps& steps, A* sums) const {
    const int64_t at_once = C > L ? kGroupGradSums / 2 : kGroupGradSums;
    for (int64_t c = 0; c < C; c += kCols<A>) {
      for (int64_t k = 0; k < K; k += at_once)
        tile()(grad + k, source + c, rows, x.count, steps, sums + k * pixel + c);
    }
  }
  auto tile() const {
    constexpr int kAll = kGroupGradSums, kHalf = kGroupGradSums / 2;
    if (pixel == kMostChannels)
      return C > L ? &group_grad_tile<P, A, kHalf, 2, kMostChannels>
                   : &group_grad_tile<P, A, kAll, 1, kMostChannels>;
    return C > L ? &group_grad_tile<P, A, kHalf, 2, 16> : &group_grad_tile<P, A, kAll, 1, 16>;
  }

  ConvShape shape;
  bool channels_last;
  PhaseAxis y, x;
  GroupRows row, grad_row;
  int64_t joined, bundles;  // groups in a bundle, one if they are not joined
  int64_t C, K;             // channels of a bundle
  int64_t outputs, pixel;   // output channels of a group; elements of a copied pixel
  const T *input, *grad_output;
  T* grad_weight;
  WeightStrides w;
  int64_t band, task_bundles, sums_size;
  ScratchLayout memory;
  PerThread<A> scratch;  // the sums of a task's bundles, then a copy of both operands
};

inline const char* wide_grad_weight_groups_exclude(const ConvProblem& p) {
  if (const char* reason = wide_groups_exclude<true>(p, false)) return reason;
  if (p.shape.K_per_group() % 16 != 0) return "takes a multiple of 16 output channels in a group";
  return p.shape.C_per_group() > kMostChannels ? "takes up to 32 input channels in a group" : nullptr;
}
inline const char* grad_weight_groups_exclude(const ConvProblem& p) {
  if (const char* reason = group_axes_exclude(p)) return reason;
  return p.shape.groups < 16 ? "takes 16 groups or more" : nullptr;
}
inline const char* group_tiles_grad_weight_excludes(const ConvProblem& p) {
  const char* reason = joined_groups(p) > 1 ? nullptr : wide_grad_weight_groups_exclude(p);
  return reason ? reason : grad_weight_groups_exclude(p);
}

using PairsGroupTilesGradWeight = GroupTilesGradWeight<BFloat16, Product::kPairs>;

inline const char* group_tiles_bf16_grad_weight_refuses(const ConvProblem& p) {
  if (const char* reason = gemm_bf16_grad_weight_refuses(p)) return reason;
  if (const char* reason = wide_grad_weight_groups_exclude(p)) return reason;
  return grad_weight_groups_exclude(p);
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
