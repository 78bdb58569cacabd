// The phases of a convolution in one direction, with the strides of its operands, and the packing of its
// weights.
#pragma once

#include "conv_gather.h"
#include "gemm_tile.h"
#include "tasks.h"

namespace cnnext::cpu::CNNEXT_ISA {

// All phases of a forward convolution (one) or of a gradient with respect to the input (a phase for each
// residue).
struct Phases {
  Phases(const ConvProblem& p, bool is_gradient) : shape(p.shape), gradient(is_gradient) {
    const ConvShape& s = shape;
    source_channels = gradient ? s.K_per_group() : s.C_per_group();
    channels = gradient ? s.C_per_group() : s.K_per_group();
    const Strides in = strides_of(p.layout, s.C, s.input_pixels()),
                  out = strides_of(p.layout, s.K, s.output_pixels());
    source = gradient ? out : in;
    destination = gradient ? in : out;
    const WeightStrides w = weight_strides_of(p.weight_layout, s.C_per_group(), s.taps());
    weight_group = s.K_per_group() * w.k;
    weight_channel = gradient ? w.c : w.k;
    weight_source = gradient ? w.k : w.c;
    weight_tap = w.tap;
    for (int a = 0; a < kAxes; ++a) {
      const Window& axis = s.axis[a];
      const int64_t residues = gradient ? axis.stride / gcd_of(axis.stride, axis.dilation) : 1;
      count[a] = gradient ? min_of(axis.stride, axis.input) : 1;
      slots[a] = min_of(axis.kernel, residues);
      max_taps *= ceil_div(axis.kernel, residues);
    }
  }

  // Two neighbouring source channels become one element. A gradient's weights have them apart: see
  // pack_weight_panel.
  void pair_channels() {
    numbers = 2;
    source_channels /= 2;
    source.image /= 2;
    source.pixel /= 2;
    if (gradient) {
      weight_source *= 2;
    } else {
      weight_group /= 2;
      weight_channel /= 2;
      weight_tap /= 2;
    }
  }

  // Each n neighbouring groups become one: of n times as many channels, in products with as many as before.
  void join_groups(int64_t n) {
    joined_groups *= n;
    source_channels *= n;
    channels *= n;
    weight_group *= n;
  }

  int64_t size() const { return count[0] * count[1] * count[2]; }
  int64_t summed_channels() const { return source_channels / joined_groups; }  // of a group
  int64_t max_depth() const { return max_taps * source_channels; }
  int64_t total_slots() const { return slots[0] * slots[1] * slots[2]; }

  PhaseAxis axis(int a, int64_t residue) const {
    return gradient ? grad_input_phase(shape.axis[a], residue) : forward_phase(shape.axis[a]);
  }
  Gather at(int64_t phase) const {
    Gather g;
    for (int a = kAxes - 1; a >= 0; --a) {
      g.axis[a] = axis(a, phase % count[a]);
      g.extent[a] = gradient ? shape.axis[a].input : shape.axis[a].output;
      phase /= count[a];
    }
    g.images = shape.N;
    g.channels = source_channels;
    return joined(g);
  }

  // Number of the phase's packed weights; phases without taps have none. Per axis the smallest tap tells the
  // residue.
  int64_t slot(const Gather& g) const {
    int64_t index = 0;
    for (int a = 0; a < kAxes; ++a) {
      const PhaseAxis& x = g.axis[a];
      index = index * slots[a] + (gradient ? x.tap % -x.tap_step : 0);
    }
    return index;
  }

  // The gather of a phase whose packed weights are there; without taps if there is none.
  Gather of_slot(int64_t number) const {
    int64_t phase = 0, unit = 1;
    bool found = true;
    for (int a = kAxes - 1; a >= 0; number /= slots[a], unit *= count[a], --a) {
      const Window& w = shape.axis[a];
      // Of the position that the smallest tap takes from output 0.
      const int64_t position = number % slots[a] * w.dilation - w.padding;
      const int64_t residue = gradient ? (position % w.stride + w.stride) % w.stride : 0;
      found &= residue < count[a];
      phase += residue % count[a] * unit;
    }
    Gather g = at(phase);
    if (!found) g.axis[0].taps = 0;
    return g;
  }

  // Where the weight's tap is that is the gather's m-th, in elements.
  int64_t weight_offset(const Gather& g, int64_t m) const {
    int64_t tap = 0, unit = 1;
    for (int a = kAxes - 1; a >= 0; --a) {
      tap += (g.axis[a].tap + m % g.axis[a].taps * g.axis[a].tap_step) * unit;
      m /= g.axis[a].taps;
      unit *= shape.axis[a].kernel;
    }
    return tap * weight_tap;
  }

  ConvShape shape;
  bool gradient;
  int64_t source_channels, channels;  // in one group
  int64_t numbers = 1;                // in an element of the source
  Strides source, destination;
  int64_t weight_group, weight_channel, weight_source, weight_tap;  // strides, in elements
  int64_t count[kAxes], slots[kAxes], max_taps = 1, joined_groups = 1;
};

// The same, where pairs of source channels are multiplied.
inline Phases phases_of(const ConvProblem& p, bool gradient, Product product) {
  Phases all(p, gradient);
  if (product == Product::kPairs) all.pair_channels();
  return all;
}

// What a convolution in one direction reads and writes. S is the type of the elements which are multiplied.
template <class T, class S = T>
struct Operands {
  const S *source, *weight;
  const T* bias;  // or null
  T* destination;
  EpilogueOf<T> epilogue;

  const EpilogueOf<T>* any_epilogue() const { return epilogue.any() ? &epilogue : nullptr; }
};
template <class T, class S = T>
CNNEXT_INLINE Operands<T, S> operands_of(const ConvBuffers& b, bool gradient) {
  return {static_cast<const S*>(gradient ? b.output : b.input), static_cast<const S*>(b.weight),
          static_cast<const T*>(b.bias), static_cast<T*>(gradient ? b.input : b.output), epilogue_of<T>(b)};
}

// The sums of a phase run over its taps, and for each tap over the source channels.
CNNEXT_INLINE ColumnOrder taps_outside(const Gather& g) { return {g.channels, 1}; }

// Which of a gather's taps each tap of the kernel is, -1 for those that it does not have. weight_offset is
// slow: they are listed, unless the kernel is huge.
struct TapNumbers {
  static constexpr int64_t kMost = 1024;
  TapNumbers(const Phases& phases, const Gather& g) : all(phases.shape.taps()), listed(all <= kMost) {
    for (int64_t tap = 0; listed && tap < all; ++tap) number[tap] = -1;
    for (int64_t m = 0; listed && m < g.taps(); ++m)
      number[phases.weight_offset(g, m) / phases.weight_tap] = int32_t(m);
  }
  int64_t all;
  bool listed;
  int32_t number[kMost];
};

// row(m)[i] = tap m of filter i: all taps of a filter are neighbours, and so are the filters. There are
// `size` elements in memory.
template <class T, class Row>
CNNEXT_INLINE void transpose_taps(const Phases& phases, const Gather& g, const TapNumbers& taps,
                                  const T* from, int64_t count, int64_t size, Row&& row) {
  constexpr int64_t L = kLanes<Acc<T>>;
  const int64_t step = phases.weight_channel, read = max_of(taps.all, L);
  int64_t i = 0;
  if (taps.listed) {
    Acc<T>* rows[TapNumbers::kMost];  // of the kernel's taps
    for (int64_t tap = 0; tap < taps.all; ++tap)
      rows[tap] = taps.number[tap] < 0 ? nullptr : row(taps.number[tap]);
    for (; i + L <= count && (i + L - 1) * step + read <= size; i += L) {
      for (int64_t part = 0; part < taps.all; part += L) {  // the last vector overlaps the one before
        const int64_t first = max_of(min_of(part, taps.all - L), 0), end = min_of(L, taps.all - first);
        Vec<Acc<T>> x[L];
#pragma GCC unroll 16
        for (int64_t n = 0; n < L; ++n) x[n] = load(from + (i + n) * step + first);
        transpose<Acc<T>>(x);
        for (int64_t tap = 0; tap < end; ++tap) {
          if (rows[first + tap]) store(rows[first + tap] + i, x[tap]);
        }
      }
    }
  }
  for (int64_t m = 0; i < count && m < g.taps(); ++m) {
    const T* tap = from + phases.weight_offset(g, m);
    for (int64_t n = i; n < count; ++n) row(m)[n] = load_one(tap + n * step);
  }
}

// visit(tap, source channels) for all that a range of the depth has.
template <class Visit>
CNNEXT_INLINE void for_each_tap(const Gather& g, Range depth, Visit&& visit) {
  if (depth.size() <= 0) return;
  for (int64_t m = depth.begin / g.channels, first = m * g.channels; first < depth.end;
       ++m, first += g.channels) {
    visit(m, Range{max_of(depth.begin - first, 0), min_of(depth.end - first, g.channels)});
  }
}

// visit(where it begins in a channel's weights, columns) for each run of a range of the depth, where source
// channels are neighbours in memory.
template <class Visit>
CNNEXT_INLINE void for_each_weight_run(const Phases& phases, const Gather& g, Range depth, Visit&& visit) {
  if (phases.weight_tap == g.channels && !phases.gradient && g.taps() == phases.shape.taps())
    return visit(depth.begin, depth);  // all of [tap][source channel]
  for_each_tap(g, depth, [&](int64_t m, Range source) {
    const int64_t first = m * g.channels;
    visit(phases.weight_offset(g, m) + source.begin, Range{first + source.begin, first + source.end});
  });
}

// Weights of some channels: to[tap, source channel][kCols] for a range of that depth. The range is the whole
// depth where taps are neighbours in memory (see depth_in_parts).
template <class T>
void pack_weight_columns(const Phases& phases, const Gather& g, const T* weight, int64_t group,
                         Range channels, Range depth, Acc<T>* to) {
  constexpr int64_t kWide = kCols<Acc<T>>;
  const T* from = weight + group * phases.weight_group + channels.begin * phases.weight_channel;
  const auto row = [&](int64_t m, int64_t c) { return to + (m * g.channels + c - depth.begin) * kWide; };
  if constexpr (std::is_same_v<T, BFloat16Pair>) {
    if (phases.gradient) {  // the two of a pair are apart, the channels are neighbours
      const auto numbers = reinterpret_cast<const BFloat16*>(weight) + group * phases.weight_group;
      return for_each_tap(g, depth, [&](int64_t m, Range source) {
        const BFloat16* tap = numbers + phases.weight_offset(g, m) + channels.begin;
        for (int64_t c = source.begin; c < source.end; ++c) {
          const BFloat16Pairs pairs = {tap + c * phases.weight_source, phases.weight_source / 2};
          copy_run(pairs, row(m, c), channels.size());
        }
      });
    }
  }
  if (phases.weight_channel == 1) {  // the channels are neighbours in memory: rows are copied
    for_each_tap(g, depth, [&](int64_t m, Range source) {
      const T* tap = from + phases.weight_offset(g, m);
      for (int64_t c = source.begin; c < source.end; ++c)
        copy_run(tap + c * phases.weight_source, row(m, c), channels.size());
    });
  } else if (phases.weight_source == 1) {  // so are source channels, and perhaps taps: runs are transposed
    for_each_weight_run(phases, g, depth, [&](int64_t offset, Range columns) {
      transpose_block(from + offset, phases.weight_channel, channels.size(), columns.size(),
                      [&](int64_t i) { return to + (columns.begin - depth.begin + i) * kWide; });
    });
  } else if (const TapNumbers taps(phases, g); !phases.gradient && (taps.listed || g.taps() == taps.all)) {
    // [source channel][tap] are: those of some channels at once, of which a block of taps has a part
    const int64_t some = clamp(TapNumbers::kMost / taps.all, 1, kLanes<Acc<T>>);
    int32_t place[TapNumbers::kMost];
    Acc<T> unused[kWide];
    for (int64_t j = 0; taps.listed && j < some * taps.all; ++j) {
      const int32_t number = taps.number[j % taps.all];
      place[j] = number < 0 ? -1 : int32_t(number * g.channels + j / taps.all);
    }
    for (int64_t c = 0; c < g.channels; c += some) {
      const auto row_of = [&](int64_t j) {
        if (!taps.listed) return row(j % taps.all, c + j / taps.all);
        return place[j] < 0 ? unused : row(0, c) + place[j] * kWide;
      };
      transpose_block(from + c * taps.all, phases.weight_channel, channels.size(),
                      min_of(some, g.channels - c) * taps.all, row_of);
    }
  } else {  // taps are, and behind them a gradient's channels; a phase may have some of the taps only
    const int64_t ends = phases.gradient ? -channels.begin : channels.size() - 1;  // where the last one does
    for (int64_t c = 0; c < g.channels; ++c) {
      const T* block = from + c * phases.weight_source;
      const int64_t behind = (g.channels - c) * phases.weight_source + ends * phases.weight_channel;
      transpose_taps(phases, g, taps, block, channels.size(), behind, [&](int64_t m) { return row(m, c); });
    }
  }
}

// The same for kCols channels, zero beyond the last one.
template <class T>
void pack_weight_panel(const Phases& phases, const Gather& g, const T* weight, int64_t group, Range channels,
                       Range depth, Acc<T>* to) {
  if (channels.size() < kCols<Acc<T>>) fill_zero(to, depth.size() * kCols<Acc<T>>);
  if (!phases.gradient || phases.joined_groups == 1)
    return pack_weight_columns(phases, g, weight, group, channels, depth, to);
  const int64_t each = phases.channels / phases.joined_groups;  // the weights of joined groups are apart
  for (int64_t n = 0; n < phases.joined_groups; ++n) {
    pack_weight_columns(phases, g, weight + n * phases.weight_group / phases.joined_groups, group, {0, each},
                        depth, to + n * each);
  }
}

// The same for panels that follow each other, the first of which may begin inside: some rows of weights at a
// time.
template <class T>
void pack_weight_panels(const Phases& phases, const Gather& g, const T* weight, int64_t group, Range channels,
                        Range depth, Acc<T>* to) {
  constexpr int64_t kWide = kCols<Acc<T>>, kRowsAtOnce = 8;
  const int64_t some = channels.size() > kWide ? kRowsAtOnce : depth.size();
  for (int64_t d = depth.begin; d < depth.end; d += some) {
    Acc<T>* panel = to + (d - depth.begin) * kWide;
    for (int64_t k = channels.begin, end; k < channels.end; k = end, panel += depth.size() * kWide) {
      end = min_of(round_up(k + 1, kWide), channels.end);
      pack_weight_panel(phases, g, weight, group, {k, end}, {d, min_of(d + some, depth.end)}, panel);
    }
  }
}

// What pack_weight_panel is going to read, as far as it is regular.
template <class T>
FetchedRows fetched_weights(const Phases& phases, const Gather& g, const T* weight, int64_t group,
                            Range channels, Range depth, int64_t calls) {
  if (channels.size() <= 0 || depth.size() <= 0) return {};
  const int64_t tap = depth.begin / g.channels, c = depth.begin % g.channels;
  const int64_t size = min_of(depth.size(), g.channels - c), first = phases.weight_offset(g, tap);
  const T* from = weight + group * phases.weight_group + channels.begin * phases.weight_channel + first +
                  c * phases.weight_source;
  FetchedRows::Loop taps = {1, 0};
  if (phases.weight_tap > 1 && (depth.end - 1) / g.channels > tap)
    taps = {(depth.end - 1) / g.channels - tap + 1, phases.weight_offset(g, tap + 1) - first};
  if (phases.weight_source < phases.weight_channel)
    return {from, size * phases.weight_source, {channels.size(), phases.weight_channel}, taps, calls};
  return {from, channels.size() * phases.weight_channel, {size, phases.weight_source}, taps, calls};
}

// Whether pack_weight_panel takes a part of the depth.
CNNEXT_INLINE bool depth_in_parts(const Phases& phases) {
  return phases.weight_channel == 1 || phases.weight_source == 1;
}

}  // namespace cnnext::cpu::CNNEXT_ISA
