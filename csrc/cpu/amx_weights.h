// Weights as panels of channels, in parts of bfloat16.
#pragma once

#include "amx_blocks.h"

#if CNNEXT_VECTOR_BYTES == 64

namespace cnnext::cpu::CNNEXT_ISA {

template <class T>
struct AmxWeights {
  static constexpr int kP = kParts<T>;
  static constexpr int64_t kWide = kAmxCols;
  static constexpr int64_t kChunk = kP * kAmxPairs * kWide;  // of a panel
  static constexpr int64_t kSplitAtOnce = 4;                 // chunks, which the first-level cache holds

  // A slice of the depth for some channels: to[tap][chunk][part][pair][kWide]. `columns` is scratch memory.
  void pack(const AmxPlan<kP>& plan, int64_t group, Range channels, Range slice, float* to,
            float* columns) const {
    if (!depth_in_parts(phases) && !plan.joined_taps)
      return pack_chunks(plan.g, group, channels, slice, to, columns);
    const Gather& g = plan.g;
    const bool in_parts = depth_in_parts(phases), pairs = kP == 1 && g.channels % 2 == 0 && pairs_are_near();
    if (!in_parts) pack_weight_panel(phases, g, weight, group, channels, {0, g.depth()}, columns);
    for (int64_t m = 0; m < plan.units(); ++m) {
      for (Range some = {slice.begin, 0}; some.begin < slice.end; some.begin = some.end) {
        some.end = kP > 1 ? min_of(some.begin + kSplitAtOnce, slice.end) : slice.end;
        const int64_t first = m * plan.run;
        const Range depth = {first + some.begin * kAmxDepth, first + min_of(some.end * kAmxDepth, plan.run)};
        if (pairs && depth.size() % kAmxDepth == 0) {
          pack_pairs(g, group, channels, depth, to);
        } else {
          if (in_parts) pack_weight_panel(phases, g, weight, group, channels, depth, columns);
          const float* from = columns + (in_parts ? 0 : depth.begin * kWide);
          for (int64_t row = 0; row < depth.size(); row += kAmxDepth)
            put_columns<T>(from + row * kWide, kWide, depth.size() - row, to + row / kAmxDepth * kChunk);
        }
        to += some.size() * kChunk;
      }
    }
  }
  // The same where taps are neighbours in memory: a chunk of all taps at a time.
  void pack_chunks(const Gather& g, int64_t group, Range channels, Range slice, float* to,
                   float* columns) const {
    for (int64_t chunk = slice.begin; chunk < slice.end; ++chunk, to += kChunk) {
      Gather some = g;
      some.channels = min_of(kAmxDepth, g.channels - chunk * kAmxDepth);
      const T* from = weight + chunk * kAmxDepth * phases.weight_source;
      pack_weight_panel(phases, some, from, group, channels, {0, some.depth()}, columns);
      for (int64_t m = 0; m < g.taps(); ++m)
        put_columns<T>(columns + m * some.channels * kWide, kWide, some.channels,
                       to + m * slice.size() * kChunk);
    }
  }
  // What pack() is going to read, if it is short runs: long ones the processor fetches by itself.
  FetchedRows ahead(const AmxPlan<kP>& plan, int64_t group, Range channels, Range slice,
                    int64_t calls) const {
    const Gather& g = plan.g;
    const Range source = {slice.begin * kAmxDepth, min_of(slice.end * kAmxDepth, g.channels)};
    if (!depth_in_parts(phases) || plan.joined_taps || source.size() <= 0) return {};
    const int64_t first_tap = phases.weight_offset(g, 0);
    const T* from = weight + group * phases.weight_group + channels.begin * phases.weight_channel +
                    source.begin * phases.weight_source + first_tap;
    const FetchedRows::Loop taps = {g.taps(), g.taps() > 1 ? phases.weight_offset(g, 1) - first_tap : 0};
    if (phases.weight_source == 1)
      return {from, source.size(), {channels.size(), phases.weight_channel}, taps, calls};
    return {from, channels.size(), {source.size(), phases.weight_source}, taps, calls};
  }
  void pack_pairs(const Gather& g, int64_t group, Range channels, Range depth, float* to) const {
    Phases pairs = phases;
    pairs.pair_channels();
    Gather of_pairs = g;
    of_pairs.channels /= 2;
    const auto from = reinterpret_cast<const BFloat16Pair*>(weight);
    pack_weight_panel(pairs, of_pairs, from, group, channels, {depth.begin / 2, depth.end / 2}, to);
  }
  // Whether the two weights of a pair, or those of neighbouring channels, are neighbours in memory.
  bool pairs_are_near() const {
    return phases.gradient ? phases.weight_channel == 1 : phases.weight_source == 1;
  }

  const Phases& phases;
  const T* weight;
};

}  // namespace cnnext::cpu::CNNEXT_ISA

#endif  // AVX-512
