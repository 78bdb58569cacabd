// Convolution,
//   output[n, k, o] = bias[k] + sum over (c, tap) of input[n, c, i] * weight[k, c, tap],
//   i = o * stride - padding + tap * dilation,
// and its two gradients, each element computed on its own in double precision, in the order of memory.
#include "conv_reference.h"

#define CNNEXT_ISA reference
#define CNNEXT_VECTOR_BYTES 16
#include "epilogue.h"

namespace cnnext::cpu {
namespace {

using reference::load_one;
using reference::store_one;

struct Position {
  int64_t at[kAxes];
};

// Position of pixel (or tap) number `index` in a box of the given extents.
Position unravel(int64_t index, int64_t extent1, int64_t extent2) {
  return {{index / (extent1 * extent2), index / extent2 % extent1, index % extent2}};
}

Position output_position(const ConvShape& s, int64_t pixel) {
  return unravel(pixel, s.axis[1].output, s.axis[2].output);
}
Position tap_position(const ConvShape& s, int64_t tap) {
  return unravel(tap, s.axis[1].kernel, s.axis[2].kernel);
}

// Number of the input pixel that output `o` reads through `tap`, or -1 in the padding.
int64_t input_pixel(const ConvShape& s, const Position& o, const Position& tap) {
  int64_t pixel = 0;
  for (int a = 0; a < kAxes; ++a) {
    const int64_t i = s.axis[a].input_index(o.at[a], tap.at[a]);
    if (!s.axis[a].contains(i)) return -1;
    pixel = pixel * s.axis[a].input + i;
  }
  return pixel;
}

// Number of the output pixel that reads input `i` through `tap`, or -1.
int64_t output_pixel(const ConvShape& s, const Position& i, const Position& tap) {
  int64_t pixel = 0;
  for (int a = 0; a < kAxes; ++a) {
    const Window& w = s.axis[a];
    const int64_t scaled = i.at[a] + w.padding - tap.at[a] * w.dilation;
    if (scaled < 0 || scaled % w.stride != 0 || scaled / w.stride >= w.output) return -1;
    pixel = pixel * w.output + scaled / w.stride;
  }
  return pixel;
}

template <class T>
struct Operands {
  explicit Operands(const ConvProblem& p, const ConvBuffers& b)
      : input(static_cast<T*>(b.input)),
        output(static_cast<T*>(b.output)),
        weight(static_cast<T*>(b.weight)),
        bias(static_cast<T*>(b.bias)),
        epilogue(reference::epilogue_of<T>(b)),
        in(strides_of(p.layout, p.shape.C, p.shape.input_pixels())),
        out(strides_of(p.layout, p.shape.K, p.shape.output_pixels())),
        w(weight_strides_of(p.weight_layout, p.shape.C_per_group(), p.shape.taps())) {}
  T& x(int64_t n, int64_t c, int64_t pixel) const {
    return input[n * in.image + c * in.channel + pixel * in.pixel];
  }
  T& y(int64_t n, int64_t k, int64_t pixel) const {
    return output[n * out.image + k * out.channel + pixel * out.pixel];
  }
  T& f(int64_t k, int64_t c, int64_t tap) const { return weight[k * w.k + c * w.c + tap * w.tap]; }
  void put(int64_t n, int64_t k, int64_t pixel, double sum) const {
    T* to = &y(n, k, pixel);
    if (epilogue.residual) sum += load_one(epilogue.residual + (to - output));
    store_one(to, static_cast<reference::Acc<T>>(reference::activate(epilogue.epilogue, One{sum})[0]));
  }
  double initial(int64_t channel) const { return bias ? static_cast<double>(load_one(bias + channel)) : 0.0; }

  using One = reference::VecOf<double, 1>::type;
  T *input, *output, *weight, *bias;
  reference::EpilogueOf<T> epilogue;
  Strides in, out;
  WeightStrides w;
};

template <class T>
void forward(const ConvProblem& p, const ConvBuffers& buffers, const Parallel& parallel) {
  const ConvShape& s = p.shape;
  const Operands<T> t(p, buffers);
  parallel(s.N * s.K, [&](int64_t task, int) {
    const int64_t n = task / s.K, k = task % s.K, first_c = k / s.K_per_group() * s.C_per_group();
    for (int64_t pixel = 0; pixel < s.output_pixels(); ++pixel) {
      const Position o = output_position(s, pixel);
      double sum = t.initial(k);
      for (int64_t tap = 0; tap < s.taps(); ++tap) {
        const int64_t from = input_pixel(s, o, tap_position(s, tap));
        if (from < 0) continue;
        for (int64_t c = 0; c < s.C_per_group(); ++c) {
          sum += double(load_one(&t.x(n, first_c + c, from))) * load_one(&t.f(k, c, tap));
        }
      }
      t.put(n, k, pixel, sum);
    }
  });
}

template <class T>
void grad_input(const ConvProblem& p, const ConvBuffers& buffers, const Parallel& parallel) {
  const ConvShape& s = p.shape;
  const Operands<T> t(p, buffers);
  parallel(s.N * s.C, [&](int64_t task, int) {
    const int64_t n = task / s.C, c = task % s.C, first_k = c / s.C_per_group() * s.K_per_group();
    for (int64_t pixel = 0; pixel < s.input_pixels(); ++pixel) {
      const Position i = unravel(pixel, s.axis[1].input, s.axis[2].input);
      double sum = t.initial(c);
      for (int64_t tap = 0; tap < s.taps(); ++tap) {
        const int64_t from = output_pixel(s, i, tap_position(s, tap));
        if (from < 0) continue;
        for (int64_t k = first_k; k < first_k + s.K_per_group(); ++k) {
          sum += double(load_one(&t.y(n, k, from))) * load_one(&t.f(k, c % s.C_per_group(), tap));
        }
      }
      store_one(&t.x(n, c, pixel), static_cast<reference::Acc<T>>(sum));
    }
  });
}

template <class T>
void grad_weight(const ConvProblem& p, const ConvBuffers& buffers, const Parallel& parallel) {
  const ConvShape& s = p.shape;
  const Operands<T> t(p, buffers);
  parallel(s.K * s.C_per_group(), [&](int64_t task, int) {
    const int64_t k = task / s.C_per_group(), c = task % s.C_per_group();
    const int64_t first_c = k / s.K_per_group() * s.C_per_group();
    for (int64_t tap = 0; tap < s.taps(); ++tap) {
      const Position at = tap_position(s, tap);
      double sum = 0;
      for (int64_t n = 0; n < s.N; ++n) {
        for (int64_t pixel = 0; pixel < s.output_pixels(); ++pixel) {
          const int64_t from = input_pixel(s, output_position(s, pixel), at);
          if (from >= 0) sum += double(load_one(&t.y(n, k, pixel))) * load_one(&t.x(n, first_c + c, from));
        }
      }
      store_one(&t.f(k, c, tap), static_cast<reference::Acc<T>>(sum));
    }
  });
}

}  // namespace

const ConvKernel kConvReference = {
    "reference", "the definition, one output at a time", accepts_all, no_workspace,
    [](const ConvProblem& p, const ConvBuffers& b, const Parallel& parallel, char*) {
      with_type(p.dtype, [&](auto* tag) { forward<Pointee<decltype(tag)>>(p, b, parallel); });
    }};
const ConvKernel kConvGradInputReference = {
    "reference", "the definition, one input at a time", accepts_all, no_workspace,
    [](const ConvProblem& p, const ConvBuffers& b, const Parallel& parallel, char*) {
      with_type(p.dtype, [&](auto* tag) { grad_input<Pointee<decltype(tag)>>(p, b, parallel); });
    }};
const ConvKernel kConvGradWeightReference = {
    "reference", "the definition, one weight at a time", accepts_all, no_workspace,
    [](const ConvProblem& p, const ConvBuffers& b, const Parallel& parallel, char*) {
      with_type(p.dtype, [&](auto* tag) { grad_weight<Pointee<decltype(tag)>>(p, b, parallel); });
    }};

}  // namespace cnnext::cpu
