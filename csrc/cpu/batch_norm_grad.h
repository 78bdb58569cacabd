// The gradients of batch normalisation and of what follows it.
//
// One pass for the sums over each channel of g, the gradient behind the activation, and of g * (x - mean),
// and one that stores the gradient of the input: (g - mean of g - (x - mean) * slope) * scale.
#pragma once

#include "batch_norm_parts.h"

namespace cnnext::cpu::CNNEXT_ISA {

// What passes of a gradient through an activation whose result is y.
template <class V>
CNNEXT_INLINE V through_activation(const Epilogue& epilogue, V y, V gradient) {
  using A = std::remove_reference_t<decltype(y[0])>;
  const V zero = {};
  switch (epilogue.activation) {
    case Activation::kNone:
      return gradient;
    case Activation::kRelu:
      return y <= zero ? zero : gradient;
    case Activation::kRelu6: {
      const V below = y <= zero ? zero : gradient;
      return y >= zero + A(6) ? zero : below;
    }
    case Activation::kLeakyRelu: {
      const V scaled = gradient * A(epilogue.negative_slope);
      return y > zero ? gradient : scaled;
    }
  }
  return gradient;
}

template <class T>
struct BatchNormGrad {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

  BatchNormGrad(const NormProblem& p, const NormBuffers& b, char* workspace)
      : parts(p),
        of_batch(p.batch_statistics),
        streamed(streams<T>(p, parts)),
        input(static_cast<const T*>(b.input)),
        output(static_cast<const T*>(b.output)),
        grad_output(static_cast<const T*>(b.grad_output)),
        grad_input(static_cast<T*>(b.grad_input)),
        grad_residual(static_cast<T*>(b.grad_residual)),
        grad_weight(static_cast<A*>(b.grad_weight)),
        grad_bias(static_cast<A*>(b.grad_bias)),
        epilogue(b.epilogue),
        scratch{workspace},
        norm(p, b, scratch),
        pitch(round_up(p.C, L)),
        mean_of_g(scratch.take<A>(pitch)),
        slope(scratch.take<A>(pitch)),
        partial(scratch.take<A>(parts.of_channel() * 2 * pitch)) {}

  int64_t workspace_bytes() const { return scratch.bytes; }

  void run(const Parallel& parallel) const {
    norm.prepare(0, parts.C);
    with_activation(epilogue.activation, [&](auto activation) {
      constexpr Activation kActivation = decltype(activation)::value;
      streamed || output || grad_residual ? run<kActivation, false>(parallel)
                                          : run<kActivation, true>(parallel);
    });
  }
  // Simple: where there was no residual, and not streamed.
  template <Activation kActivation, bool kSimple>
  void run(const Parallel& parallel) const {
    parts.visit(
        parallel,
        [&](int64_t part, int64_t offset, int64_t rows) {
          sum_rows<kActivation, kSimple>(part, offset, rows);
        },
        [&](int64_t part, int64_t c, int64_t offset, int64_t size) {
          sum_plane<kActivation, kSimple>(part, c, offset, size);
        });
    parts.of_channels(parallel, [&](int64_t first, int64_t count) { merge(first, count); });
    if (!grad_input) return;
    parts.visit(
        parallel,
        [&](int64_t, int64_t offset, int64_t rows) {
          differentiate_rows<kActivation, kSimple>(offset, rows);
        },
        [&](int64_t, int64_t c, int64_t offset, int64_t size) {
          differentiate_plane<kActivation, kSimple>(c, offset, size);
        });
  }

  // A part's sums of g and of g * (x - mean).
  A* sums(int64_t part) const { return partial + part * 2 * pitch; }
  A* products(int64_t part) const { return sums(part) + pitch; }

  // The numbers of a channel, or of a vector of them.
  template <class V>
  struct Numbers {
    V mean, scale, bias;
  };
  // g, of x - mean. The activation's result is computed again where it was not kept, bitwise as it was.
  template <class V>
  __attribute__((always_inline)) Vec<A> gradient(int64_t at, Vec<A> distance, const Numbers<V>& of,
                                                 int64_t count) const {
    const Vec<A> g = load_part(grad_output + at, count);
    if (epilogue.activation == Activation::kNone) return g;
    const Vec<A> y = output ? load_part(output + at, count) : distance * of.scale + of.bias;
    return through_activation(epilogue, y, g);
  }

  // What `gradient` reads, and the input.
  __attribute__((always_inline)) void fetch_sources(int64_t at) const {
    fetch(input + at);
    fetch(grad_output + at);
    if (output) fetch(output + at);
  }

  // A copy, which nothing that is stored can change, and of which the compiler knows what there is to do.
  template <Activation kActivation, bool kSimple>
  __attribute__((always_inline)) BatchNormGrad copied() const {
    BatchNormGrad k = *this;
    k.epilogue.activation = kActivation;
    if constexpr (kSimple) {
      k.output = nullptr;
      k.grad_residual = nullptr;
      k.streamed = false;
    }
    return k;
  }

  template <Activation kActivation, bool kSimple>
  void sum_rows(int64_t part, int64_t start, int64_t rows) const {
    const BatchNormGrad k = copied<kActivation, kSimple>();
    A *const sum = sums(part), *const product = products(part);
    for (int64_t c = 0; c < pitch; c += L) store(sum + c, Vec<A>{}), store(product + c, Vec<A>{});
    for_tiles<L>(rows, k.parts.C, [&](int64_t offset, auto count, int64_t c, int64_t channels, int64_t next) {
      const Numbers<Vec<A>> of = {load(k.norm.mean + c), load(k.norm.scale + c), load(k.norm.bias + c)};
      Vec<A> total = {}, total_product = {};
      for (int i = 0; i < count; ++i) {
        k.fetch_sources(start + next + i * L);
        k.add(start + offset + i * k.parts.C + c, of, channels, total, total_product);
      }
      store(sum + c, load(sum + c) + total);
      store(product + c, load(product + c) + total_product);
    });
    if (k.streamed && k.grad_residual) end_streams();
  }
  template <Activation kActivation, bool kSimple>
  void sum_plane(int64_t part, int64_t c, int64_t start, int64_t size) const {
    const BatchNormGrad k = copied<kActivation, kSimple>();
    const Numbers<A> of = {norm.mean[c], norm.scale[c], norm.bias[c]};
    LongSum<A> sum, product;
    for (int64_t i = 0; i < size; i += kNormRows * L) {
      Vec<A> total = {}, total_product = {};
      for (int64_t j = i; j < min_of(size, i + kNormRows * L); j += L) {
        k.add(start + j, of, min_of(L, size - j), total, total_product);
      }
      sum.add(total);
      product.add(total_product);
    }
    if (k.streamed && k.grad_residual) end_streams();
    sums(part)[c] = A(sum.of_lanes());
    products(part)[c] = A(product.of_lanes());
  }
  // Beyond `count` the gradient is zero.
  template <class V>
  __attribute__((always_inline)) void add(int64_t at, const Numbers<V>& of, int64_t count, Vec<A>& total,
                                          Vec<A>& total_product) const {
    const Vec<A> distance = load_part(input + at, count) - of.mean;
    const Vec<A> g = gradient(at, distance, of, count);
    if (grad_residual) put(streamed, grad_residual + at, g, count);
    total += g;
    total_product += g * distance;
  }

  // Gradients of scale and bias, and what the batch's own moments add to that of the input.
  void merge(int64_t first, int64_t count) const {
    double sum[NormParts::kMerged] = {}, product[NormParts::kMerged] = {};
    for (int64_t part = 0; part < parts.of_channel(); ++part) {
      for (int64_t i = 0; i < count; ++i) {
        sum[i] += sums(part)[first + i];
        product[i] += products(part)[first + i];
      }
    }
    const double all = of_batch ? double(parts.N * parts.pixels) : 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t c = first + i;
      const double inverse = norm.inverse_deviation(c);
      if (grad_bias) grad_bias[c] = A(sum[i]);
      if (grad_weight) grad_weight[c] = A(product[i] * inverse);
      mean_of_g[c] = of_batch ? A(sum[i] / all) : 0;
      slope[c] = of_batch ? A(product[i] * inverse * inverse / all) : 0;
    }
  }

  template <Activation kActivation, bool kSimple>
  void differentiate_rows(int64_t start, int64_t rows) const {
    const BatchNormGrad k = copied<kActivation, kSimple>();
    for_tiles<L>(rows, k.parts.C, [&](int64_t offset, auto count, int64_t c, int64_t channels, int64_t next) {
      const Numbers<Vec<A>> of = {load(k.norm.mean + c), load(k.norm.scale + c), load(k.norm.bias + c)};
      const Vec<A> mean = load(k.mean_of_g + c), steep = load(k.slope + c);
      for (int i = 0; i < count; ++i) {
        if (k.grad_residual) {
          fetch(k.input + start + next + i * L);
          fetch(k.grad_residual + start + next + i * L);
        } else {
          k.fetch_sources(start + next + i * L);
        }
        k.differentiate(start + offset + i * k.parts.C + c, of, mean, steep, channels);
      }
    });
    if (k.streamed) end_streams();
  }
  template <Activation kActivation, bool kSimple>
  void differentiate_plane(int64_t c, int64_t start, int64_t size) const {
    const BatchNormGrad k = copied<kActivation, kSimple>();
    const Numbers<A> of = {norm.mean[c], norm.scale[c], norm.bias[c]};
    const A mean = mean_of_g[c], steep = slope[c];
    for (int64_t i = 0; i < size; i += L) k.differentiate(start + i, of, mean, steep, min_of(L, size - i));
    if (k.streamed) end_streams();
  }
  template <class V>
  __attribute__((always_inline)) void differentiate(int64_t at, const Numbers<V>& of, V mean, V steep,
                                                    int64_t count) const {
    const Vec<A> distance = load_part(input + at, count) - of.mean;
    const Vec<A> g = grad_residual ? load_part(grad_residual + at, count) : gradient(at, distance, of, count);
    const Vec<A> result = (g - mean - distance * steep) * of.scale;
    put(streamed, grad_input + at, result, count);
  }

  NormParts parts;
  bool of_batch, streamed;
  const T *input, *output, *grad_output;
  T *grad_input, *grad_residual;
  A *grad_weight, *grad_bias;
  Epilogue epilogue;
  ScratchLayout scratch;
  NormOfChannels<A> norm;
  int64_t pitch;
  A *mean_of_g, *slope, *partial;
};

constexpr NormKernel kBatchNormGrad = entry<ByType<BatchNormGrad>, NormProblem>(
    "parts", "sums over parts of the batch, added in order, and a second pass", accepts_all);

}  // namespace cnnext::cpu::CNNEXT_ISA
