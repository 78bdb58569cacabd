// The destination of a convolution in boxes of pixels that read the same taps.
//
// With a large dilation most taps of a pixel may lie in the padding. Each box is a gather of its own with the
// taps that lie inside of the source, so that no product is one with zero. For channels last.
#pragma once

#include "conv_phases.h"

namespace cnnext::cpu::CNNEXT_ISA {

struct Region {
  Gather g;
  int64_t first[kAxes], taps[kAxes];  // the first of the phase's taps, and how many the phase has

  // Number among the phase's taps of the gather's m-th.
  int64_t tap(int64_t m) const {
    int64_t number = 0, unit = 1;
    for (int a = kAxes - 1; a >= 0; --a) {
      number += (first[a] + m % g.axis[a].taps) * unit;
      m /= g.axis[a].taps;
      unit *= taps[a];
    }
    return number;
  }
};

// All phases, each cut into its regions where that saves much, else a region of its own.
struct Regions {
  Regions(const Phases& all, Layout layout) : phases(all) {
    if (layout != Layout::kChannelsLast || phases.source_channels * phases.numbers < kFewChannels ||
        !may_be_cut())
      return;
    for (int64_t n = 0; n < phases.size(); ++n) {
      const Gather g = phases.at(n);
      for (int a = 0; a < kAxes; ++a) {
        int64_t count = 0;
        for (int64_t j = 0; j < g.axis[a].count; j = end_of_part(g.axis[a], j)) ++count;
        parts[a] = max_of(parts[a], count);
      }
    }
    const auto cost = [](const Gather& g) {
      const int64_t pixels = g.pixels() / g.images;
      return pixels > 0 ? g.taps() * (pixels + kRows) : 0;
    };
    cut = true;
    int64_t in_parts = 0, whole = 0;
    for (int64_t n = 0; n < size(); ++n) in_parts += cost(at(n).g);
    for (int64_t n = 0; n < phases.size(); ++n) whole += cost(phases.at(n));
    cut = 8 * in_parts < 7 * whole;
    if (!cut) parts[0] = parts[1] = parts[2] = 1;
  }

  int64_t size() const { return phases.size() * parts[0] * parts[1] * parts[2]; }

  Region at(int64_t number) const {
    Region r = {phases.at(number % phases.size()), {}, {}};
    number /= phases.size();
    for (int a = kAxes - 1; a >= 0; number /= parts[a], --a) {
      r.taps[a] = r.g.axis[a].taps;
      if (cut) r.first[a] = to_part(r.g.axis[a], number % parts[a]);
    }
    return r;
  }

  // For one image, source channel and destination channel.
  int64_t products() const {
    int64_t sum = 0;
    for (int64_t n = 0; n < size(); ++n) {
      const Gather g = at(n).g;
      sum += g.taps() * g.pixels() / g.images;
    }
    return sum;
  }
  int64_t most_pixels() const {
    int64_t most = 0;
    for (int64_t n = 0; n < size(); ++n) most = max_of(most, at(n).g.pixels());
    return most;
  }

  const Phases& phases;
  int64_t parts[kAxes] = {1, 1, 1};
  bool cut = false;

 private:
  static constexpr int64_t kFewChannels = 64;

  // Whether few enough taps lie inside of the source.
  bool may_be_cut() const {
    int64_t inside = 0, all = 0;
    for (int64_t n = 0; n < phases.size(); ++n) {
      const Gather g = phases.at(n);
      int64_t products = 1;
      for (const PhaseAxis& x : g.axis) {
        int64_t sum = 0;
        for (int64_t m = 0; m < x.taps; ++m) sum += positions_inside(x, m).size();
        products *= sum;
      }
      inside += products;
      all += g.taps() * g.pixels() / g.images;
    }
    return 8 * inside < 7 * all;
  }

  // The position after those that read the same taps as j: where the next tap enters or leaves the source.
  static int64_t end_of_part(const PhaseAxis& x, int64_t j) {
    int64_t end = x.count;
    for (int64_t m = 0; m < x.taps; ++m) {
      const Range inside = positions_inside(x, m);
      if (inside.size() <= 0) continue;
      if (inside.begin > j) end = min_of(end, inside.begin);
      if (inside.end > j) end = min_of(end, inside.end);
    }
    return end;
  }

  // Narrows the axis to a part, which may be empty; returns its first tap.
  static int64_t to_part(PhaseAxis& x, int64_t part) {
    int64_t begin = 0;
    for (; part > 0 && begin < x.count; --part) begin = end_of_part(x, begin);
    if (begin == x.count) return x.count = 0;
    const Range taps = taps_inside(x, begin);
    x.count = end_of_part(x, begin) - begin;
    x.start += begin * x.step;
    x.offset = x.source_index(begin, taps.begin);
    x.tap += taps.begin * x.tap_step;
    x.taps = taps.size();
    return taps.begin;
  }
};

}  // namespace cnnext::cpu::CNNEXT_ISA
