// Batch normalisation with what follows it: activation((x - mean) * scale + bias + residual).
//
// One pass over the input for the moments of each channel, unless they are given, and one that stores
// results.
#pragma once

#include "batch_norm_parts.h"

namespace cnnext::cpu::CNNEXT_ISA {

// Of numbers in each lane: their sum, and that of the squares of their distances to their mean. Rows are
// added as in Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
// variances", 1979.
template <class A>
struct Moments {
  LongSum<A> sum;
  Vec<A> squares = {};

  template <int kRows>
  __attribute__((always_inline)) void add(const Vec<A> (&row)[kRows], int64_t before) {
    Vec<A> sum_of_rows = {};
    for (const Vec<A>& each : row) sum_of_rows += each;
    const Vec<A> mean_of_rows = sum_of_rows * (A(1) / kRows);
    const Vec<A> shift = before ? mean_of_rows - sum.sum * (A(1) / A(before)) : mean_of_rows;
    for (const Vec<A>& each : row) squares += (each - mean_of_rows) * (each - mean_of_rows);
    squares += shift * shift * (A(before) * kRows / A(before + kRows));
    sum.add(sum_of_rows);
  }
};

template <class T>
struct BatchNorm {
  using A = Acc<T>;
  static constexpr int64_t L = kLanes<A>;

  BatchNorm(const NormProblem& p, const NormBuffers& b, char* workspace)
      : parts(p),
        of_batch(p.batch_statistics),
        streamed(streams<T>(p, parts)),
        input(static_cast<const T*>(b.input)),
        output(static_cast<T*>(b.output)),
        batch_mean(static_cast<A*>(b.mean)),
        batch_variance(static_cast<A*>(b.variance)),
        epilogue{b.epilogue, static_cast<const T*>(b.epilogue.residual), output},
        scratch{workspace},
        norm(p, b, scratch),
        pitch(round_up(p.C, L)),
        partial(scratch.take<A>(of_batch ? parts.of_channel() * 4 * pitch : 0)) {}

  int64_t workspace_bytes() const { return scratch.bytes; }

  void run(const Parallel& parallel) const {
    if (of_batch) {
      parts.visit(
          parallel,
          [&](int64_t part, int64_t offset, int64_t rows) { measure_rows(part, input + offset, rows); },
          [&](int64_t part, int64_t c, int64_t offset, int64_t size) {
            measure_plane(part, c, input + offset, size);
          });
      parts.of_channels(parallel, [&](int64_t first, int64_t count) {
        merge(first, count);
        norm.prepare(first, count);
      });
    } else {  // sooner done than threads are woken
      norm.prepare(0, parts.C);
    }
    with_activation(epilogue.epilogue.activation, [&](auto activation) {
      constexpr Activation kActivation = decltype(activation)::value;
      streamed || epilogue.residual ? normalise<kActivation, false>(parallel)
                                    : normalise<kActivation, true>(parallel);
    });
  }
  // Simple: with no residual, and not streamed.
  template <Activation kActivation, bool kSimple>
  void normalise(const Parallel& parallel) const {
    parts.visit(
        parallel,
        [&](int64_t, int64_t offset, int64_t rows) { normalise_rows<kActivation, kSimple>(offset, rows); },
        [&](int64_t, int64_t c, int64_t offset, int64_t size) {
          normalise_plane<kActivation, kSimple>(c, offset, size);
        });
  }

  // Of each channel in a part: its first element, and the moments of distances to that, in which no digits
  // are taken by what all elements have in common.
  A* firsts(int64_t part) const { return partial + part * 4 * pitch; }
  A* sums(int64_t part) const { return firsts(part) + pitch; }
  A* lost(int64_t part) const { return sums(part) + pitch; }
  A* squares(int64_t part) const { return lost(part) + pitch; }

  void measure_rows(int64_t part, const T* x, int64_t rows) const {
    A *const first = firsts(part), *const sum = sums(part), *const rest = lost(part),
             *const square = squares(part);
    for (int64_t c = 0; c < parts.C; c += L) {
      store(first + c, load_part(x + c, parts.C - c));
      for (A* zero : {sum, rest, square}) store(zero + c, Vec<A>{});
    }
    const int64_t C = parts.C;
    for_tiles<L>(rows, C, [&](int64_t offset, auto count, int64_t c, int64_t channels, int64_t next) {
      Vec<A> row[count];
      for (int i = 0; i < count; ++i) {
        fetch(x + next + i * L);
        row[i] = load_part(x + offset + i * C + c, channels) - load(first + c);
      }
      Moments<A> moments = {{load(sum + c), load(rest + c)}, load(square + c)};
      moments.add(row, offset / C);
      store(sum + c, moments.sum.sum);
      store(rest + c, moments.sum.lost);
      store(square + c, moments.squares);
    });
  }

  // Vectors along the plane are rows of as many numbers as there are lanes, which are merged in the end.
  void measure_plane(int64_t part, int64_t c, const T* x, int64_t size) const {
    const A first = load_one(x);
    const int64_t rows = size / L;
    Moments<A> of_lanes;
    for_tiles<L>(rows, L, [&](int64_t offset, auto count, int64_t, int64_t, int64_t) {
      Vec<A> row[count];
      for (int i = 0; i < count; ++i) row[i] = load(x + offset + i * L) - first;
      of_lanes.add(row, offset / L);
    });
    double sum = of_lanes.sum.of_lanes();
    for (int64_t i = rows * L; i < size; ++i) sum += load_one(x + i) - first;
    const double mean = sum / double(size);
    double square = 0;
    for (int64_t lane = 0; rows && lane < L; ++lane) {
      const double shift = of_lanes.sum.sum[lane] / double(rows) - mean;
      square += of_lanes.squares[lane] + double(rows) * shift * shift;
    }
    for (int64_t i = rows * L; i < size; ++i) {
      const double shift = load_one(x + i) - first - mean;
      square += shift * shift;
    }
    firsts(part)[c] = first;
    sums(part)[c] = A(sum);
    lost(part)[c] = A(sum - sums(part)[c]);
    squares(part)[c] = A(square);
  }

  // Of the whole batch, in double.
  void merge(int64_t begin, int64_t count) const {
    double mean[NormParts::kMerged] = {}, square[NormParts::kMerged] = {};
    const double all = double(parts.N * parts.pixels);
    const auto sum_of = [&](int64_t part, int64_t c) { return double(sums(part)[c]) + lost(part)[c]; };
    for (int64_t part = 0; part < parts.of_channel(); ++part) {
      const double elements = double(parts.elements(part));
      for (int64_t i = 0; i < count; ++i) {
        mean[i] += elements * firsts(part)[begin + i] + sum_of(part, begin + i);
      }
    }
    for (int64_t i = 0; i < count; ++i) mean[i] /= all;
    for (int64_t part = 0; part < parts.of_channel(); ++part) {
      const double elements = double(parts.elements(part));
      for (int64_t i = 0; i < count; ++i) {
        const double shift = firsts(part)[begin + i] + sum_of(part, begin + i) / elements - mean[i];
        square[i] += squares(part)[begin + i] + elements * shift * shift;
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      batch_mean[begin + i] = A(mean[i]);
      batch_variance[begin + i] = A(square[i] / all);
    }
  }

  // A copy, which nothing that is stored can change, and of which the compiler knows what there is to do.
  template <Activation kActivation, bool kSimple>
  __attribute__((always_inline)) BatchNorm copied() const {
    BatchNorm k = *this;
    k.epilogue.epilogue.activation = kActivation;
    if constexpr (kSimple) {
      k.epilogue.residual = nullptr;
      k.epilogue.epilogue.residual = nullptr;
      k.streamed = false;
    }
    return k;
  }
  template <Activation kActivation, bool kSimple>
  void normalise_rows(int64_t start, int64_t rows) const {
    const BatchNorm k = copied<kActivation, kSimple>();
    for_tiles<L>(rows, k.parts.C, [&](int64_t offset, auto count, int64_t c, int64_t channels, int64_t next) {
      const Vec<A> mean = load(k.norm.mean + c), scale = load(k.norm.scale + c), bias = load(k.norm.bias + c);
      for (int i = 0; i < count; ++i) {
        fetch(k.input + start + next + i * L);
        if (k.epilogue.residual) fetch(k.epilogue.residual + start + next + i * L);
        k.normalise_one(start + offset + i * k.parts.C + c, mean, scale, bias, channels);
      }
    });
    if (k.streamed) end_streams();
  }
  template <Activation kActivation, bool kSimple>
  void normalise_plane(int64_t c, int64_t start, int64_t size) const {
    const BatchNorm k = copied<kActivation, kSimple>();
    const A mean = norm.mean[c], scale = norm.scale[c], bias = norm.bias[c];
    int64_t i = 0;
    for (; i + L <= size; i += L) k.normalise_one(start + i, mean, scale, bias, L);
    if (i < size) {  // the last vector overlaps the one before, if there is one, and writes the same again
      const int64_t last = max_of(0, size - L);
      k.normalise_one(start + last, mean, scale, bias, size - last);
    }
    if (k.streamed) end_streams();
  }
  template <class V>
  __attribute__((always_inline)) void normalise_one(int64_t at, V mean, V scale, V bias,
                                                    int64_t count) const {
    const Vec<A> y = (load_part(input + at, count) - mean) * scale + bias;
    put(streamed, output + at, epilogue(output + at, y, count), count);
  }

  NormParts parts;
  bool of_batch, streamed;
  const T* input;
  T* output;
  A *batch_mean, *batch_variance;
  EpilogueOf<T> epilogue;
  ScratchLayout scratch;
  NormOfChannels<A> norm;
  int64_t pitch;
  A* partial;
};

constexpr NormKernel kBatchNorm = entry<ByType<BatchNorm>, NormProblem>(
    "parts", "moments of parts of the batch, merged in order, and a second pass", accepts_all);

}  // namespace cnnext::cpu::CNNEXT_ISA
