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

// All phases, each cut into its regions where it may be and that saves much, else a region of its own.
struct Regions {
  explicit Regions(const Phases& all, bool may_cut = true) : phases(all) {
    if (!may_cut || phases.source_channels * phases.numbers < kLeastChannels ||
        8 * inside_products() >= 7 * all_products())
      return;
    // A region costs its products, and so many more as if each tap had kRows pixels more.
    int64_t in_parts = 0, whole = 0;
    for (int64_t n = 0; n < phases.size(); ++n) {
      const Gather g = phases.at(n);
      const int64_t pixels = g.pixels() / g.images;
      whole += pixels > 0 ? g.taps() * (pixels + kRows) : 0;
      int64_t products = 1, taps = 1;
      for (int a = 0; a < kAxes; ++a) {
        int64_t count = 0, products_of_axis = 0, taps_of_axis = 0;
        for_each_part(g.axis[a], [&](Range positions, Range inside) {
          ++count;
          products_of_axis += positions.size() * inside.size();
          taps_of_axis += inside.size();
        });
        parts[a] = max_of(parts[a], count);
        products *= products_of_axis;
        taps *= taps_of_axis;
      }
      in_parts += products + kRows * taps;
    }
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
  int64_t products() const { return cut ? inside_products() : all_products(); }

  int64_t most_pixels() const {
    int64_t pixels = phases.shape.N;
    for (int a = 0; a < kAxes; ++a) {
      int64_t longest = 0;
      for (int64_t r = 0; r < phases.count[a]; ++r) {
        const PhaseAxis x = phases.axis(a, r);
        if (!cut) longest = max_of(longest, x.count);
        if (cut) for_each_part(x, [&](Range part, Range) { longest = max_of(longest, part.size()); });
      }
      pixels *= longest;
    }
    return pixels;
  }

  const Phases& phases;
  int64_t parts[kAxes] = {1, 1, 1};
  bool cut = false;

 private:
  static constexpr int64_t kLeastChannels = 64;  // of fewer there is little to save

  int64_t all_products() const {
    return products_of([](const PhaseAxis& x) { return x.taps * x.count; });
  }
  // Those of taps inside of the source.
  int64_t inside_products() const {
    return products_of([](const PhaseAxis& x) { return products_inside_axis(x); });
  }
  // There is a phase for each combination of the axes' residues: the sum over all is a product of sums.
  template <class OfAxis>
  int64_t products_of(OfAxis&& of_axis) const {
    int64_t products = 1;
    for (int a = 0; a < kAxes; ++a) {
      int64_t sum = 0;
      for (int64_t r = 0; r < phases.count[a]; ++r) sum += of_axis(phases.axis(a, r));
      products *= sum;
    }
    return products;
  }

  // The position after those that read the same taps as j: where the last of its taps leaves the source or
  // the next one enters it. A large stride may step over the source.
  static int64_t end_of_part(const PhaseAxis& x, int64_t j) {
    const Range taps = taps_inside(x, j);
    const int64_t leaves = taps.size() > 0 ? positions_inside(x, taps.end - 1).end : x.count;
    for (int64_t m = taps.begin - 1; m >= 0; --m) {
      const Range inside = positions_inside(x, m);
      if (inside.size() > 0) return min_of(leaves, inside.begin);
    }
    return leaves;
  }
  // Calls visit(positions, taps that lie inside of the source) for each part.
  template <class Visit>
  static void for_each_part(const PhaseAxis& x, Visit&& visit) {
    for (int64_t j = 0; j < x.count;) {
      const int64_t end = end_of_part(x, j);
      visit(Range{j, end}, taps_inside(x, j));
      j = end;
    }
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
